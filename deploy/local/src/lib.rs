//! Launcher: runs Peal on one machine where only the programs of PostgreSQL and Redis are
//! installed.
//!
//! The launcher starts private servers on free ports, with their data in directories of its
//! own, and never uses a server that the machine already runs. It serves `make demo` and
//! `make up` (the whole product), `make test` and the benchmarks (services only, in a temporary
//! directory), and developers who need a database.
//!
//! ```text
//! demo / up      .local/demo, .local/up   stack: services + api + two workers + simulator
//! with-services  a temporary directory    services around one command
//! dev-db         .local/dev               services that outlive the launcher
//! prepare        a temporary directory    services, migrations, then .sqlx/ is rewritten
//! ```
//!
//! No process outlives the launcher: children stop in order when it ends, the kernel signals
//! them when it is killed (where `setpriv` exists), and the next launcher in the same directory
//! stops survivors by their pid files. A process is killed only after its identity has been
//! checked; see [`pidfiles`].

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
