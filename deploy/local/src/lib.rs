//! Runs Peal on one machine, with nothing but PostgreSQL's and Redis' programs installed.
//!
//! Everything lives in directories of our own: private servers on free ports, never a
//! server that the machine already runs. Three users: `make demo` and `make up` (the whole
//! product), `make test` and the benchmarks (services only, in a directory that vanishes),
//! and developers who want a database at hand.
//!
//! ```text
//! demo / up      .local/demo, .local/up   stack: services + api + two workers + simulator
//! with-services  a temporary directory    services around one command
//! dev-db         .local/dev               services that outlive the launcher
//! prepare        a temporary directory    services, migrations, then .sqlx/ is rewritten
//! ```
//!
//! No process stays behind: children stop in order when the launcher ends, the kernel
//! ends them when the launcher is killed (where `setpriv` exists), and whatever still
//! survives is found by its pid file when the directory is next used. A process is killed
//! only after its identity has been checked; see [`pidfiles`].

pub mod api_client;
pub mod data_dir;
pub mod demo;
pub mod dev_db;
pub mod pidfiles;
pub mod ports;
pub mod postgres;
pub mod prepare;
pub mod processes;
pub mod redis;
pub mod run_as;
pub mod services;
pub mod stack;
pub mod stop;
pub mod summary;
pub mod tools;
pub mod wallet;
pub mod with_services;
