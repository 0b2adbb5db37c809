# `make help` lists the targets. Build output goes to a directory under the user's
# cache, unless CARGO_TARGET_DIR is set; see deploy/local/target-dir.sh.

.DEFAULT_GOAL := help
.PHONY: help install build demo up test bench soak lint audit prepare dev-db dev-db-stop

# The macros of sqlx read .sqlx/ instead of connecting to a database.
export SQLX_OFFLINE := true

IN_TARGET := @sh deploy/local/target-dir.sh sh -euc
BUILD := cargo build --workspace --bins
LAUNCH := exec "$$CARGO_TARGET_DIR/debug/peal-local"

help: ## Lists the targets.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: ## Installs PostgreSQL, Redis and a C compiler where they are missing.
	@sh deploy/local/install.sh

build: install ## Builds all programs.
	$(IN_TARGET) '$(BUILD)'

demo: install ## Calls a thousand made-up people and keeps running; DEMO_EXIT=1 ends after the check.
	$(IN_TARGET) '$(BUILD); $(LAUNCH) demo'

up: install ## Runs everything and keeps the data, without the demo's calls.
	$(IN_TARGET) '$(BUILD); $(LAUNCH) up'

test: install ## Runs all tests on a private PostgreSQL and Redis.
	@sh deploy/local/install.sh tests
	$(IN_TARGET) '$(BUILD); \
	    if cargo nextest --version >/dev/null 2>&1; then set -- nextest run; else set -- test; fi; \
	    $(LAUNCH) with-services -- cargo "$$@" --workspace'

bench: install ## Measures everything, each number next to a limit of the same run; SMALL=1 is a short run.
	$(IN_TARGET) 'cargo build --workspace --bin peal-local; \
	    cargo build --release --package peal-bench --package peal-api --package peal-worker; \
	    export PEAL_BENCH_SMALL=$${SMALL:-$${PEAL_BENCH_SMALL:-}}; \
	    $(LAUNCH) with-services --durable -- "$$CARGO_TARGET_DIR/release/peal-bench"'

soak: install ## Runs FAULT (killed workers) with SEEDS (100) seeds from FROM (1) on, printing each.
	$(IN_TARGET) '$(BUILD); \
	    export PEAL_SEED=$${FROM:-1} PEAL_FAULT_SEEDS=$${SEEDS:-100}; \
	    $(LAUNCH) with-services -- cargo test --workspace --test all -- \
	        --test-threads=1 --nocapture "faults::$${FAULT:-workers::killed}"'

lint: install ## Checks formatting and lints.
	$(IN_TARGET) 'cargo fmt --all --check; \
	    exec cargo clippy --workspace --all-targets -- -D warnings'

audit: ## Checks licences, sources and advisories of all dependencies (.deny.toml); needs cargo-deny.
	@if ! cargo deny --version >/dev/null 2>&1; then \
	    echo "cargo-deny is missing: cargo install cargo-deny --locked" >&2; exit 1; fi
	@cargo deny check bans licenses sources
	@cargo deny check advisories || { \
	    echo "Without access to the advisory database: cargo deny check --disable-fetch advisories" >&2; \
	    echo "uses the copy in ~/.cargo/advisory-dbs, if there is one." >&2; exit 1; }

prepare: install ## Rewrites .sqlx/ after a statement or a migration has changed.
	$(IN_TARGET) 'cargo build --workspace --bin peal-local; $(LAUNCH) prepare'

dev-db: ## Starts PostgreSQL and Redis in the background; eval "$(make -s dev-db)".
	$(IN_TARGET) 'cargo build --quiet --workspace --bin peal-local; $(LAUNCH) dev-db 9>&-'

dev-db-stop: ## Stops the services of dev-db.
	$(IN_TARGET) 'cargo build --quiet --workspace --bin peal-local; $(LAUNCH) dev-db --stop'
