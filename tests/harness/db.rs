//! A database per test, copied from a template that is migrated once.
//!
//! The template is named by the checksum of the migrations, so an edited migration leads to a new
//! template. An advisory lock lets one test build it while the others wait, and it gets its final
//! name only when it is complete.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;

use peal_shared::context::{MIGRATIONS, pool_options};
use peal_shared::platform::ids::JobId;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool};

use super::env_setting;

/// Advisory lock under which the template is built: "pealtest" in ASCII.
const TEMPLATE_LOCK: i64 = 0x7065_616c_7465_7374;

/// Login role of the programs: unprivileged, as in production.
const PROGRAM_ROLE: &str = "peal_test";

/// A fresh database, dropped with this value unless the test has failed.
pub struct TestDatabase {
    /// Connections as the server's administrator, who owns the tables.
    pub pool: PgPool,
    /// URL for the administrator.
    pub url: String,
    /// URL for the programs.
    pub program_url: String,
    pub name: String,
}

/// Creates a fresh database on the server of `PEAL_TEST_DATABASE_URL`.
pub async fn fresh_database() -> TestDatabase {
    let server = server_options();
    let mut admin = server.connect().await.expect("connect to the test server");
    let template = ensure_template(&mut admin, &server).await;

    let name = format!("test_{}", JobId::new().0.simple());
    execute(
        &mut admin,
        format!("create database {name} template {template}"),
    )
    .await;
    admin.close().await.expect("close");

    let options = server.database(&name);
    let quiet = options.clone().options([("client_min_messages", "error")]);
    let pool = pool_options()
        .max_connections(10)
        .connect_with(quiet)
        .await
        .expect("connect to the fresh database");

    let url = options.to_url_lossy().to_string();
    let program = options.username(PROGRAM_ROLE).password(PROGRAM_ROLE);
    let program_url = program.to_url_lossy().to_string();

    TestDatabase {
        pool,
        url,
        program_url,
        name,
    }
}

fn server_options() -> PgConnectOptions {
    PgConnectOptions::from_str(&env_setting("PEAL_TEST_DATABASE_URL"))
        .expect("PEAL_TEST_DATABASE_URL is a PostgreSQL URL")
}

/// Builds the migrated template when it is missing, and returns its name.
async fn ensure_template(admin: &mut PgConnection, server: &PgConnectOptions) -> String {
    let mut hasher = DefaultHasher::new();
    for migration in MIGRATIONS.iter() {
        migration.checksum.hash(&mut hasher);
    }
    let name = format!("template_{:016x}", hasher.finish());

    // 1. Let other tests wait.
    sqlx::query("select pg_advisory_lock($1)")
        .bind(TEMPLATE_LOCK)
        .execute(&mut *admin)
        .await
        .expect("lock");

    // 2. Build the template under a draft name.
    let built: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(&name)
            .fetch_one(&mut *admin)
            .await
            .expect("look for the template");
    if !built {
        let draft = format!("{name}_draft");
        execute(
            admin,
            format!("drop database if exists {draft} with (force)"),
        )
        .await;
        execute(admin, format!("create database {draft}")).await;
        let mut connection = server
            .clone()
            .database(&draft)
            .connect()
            .await
            .expect("connect to the template");
        MIGRATIONS.run(&mut connection).await.expect("migrate");
        connection.close().await.expect("close");
        execute(
            admin,
            format!(
                "do $$ begin create role {PROGRAM_ROLE} login password '{PROGRAM_ROLE}'; \
                 exception when duplicate_object then null; end $$; \
                 grant peal_system, peal_tenant to {PROGRAM_ROLE}"
            ),
        )
        .await;
        execute(admin, format!("alter database {draft} rename to {name}")).await;
    }

    // 3. Let them go on.
    sqlx::query("select pg_advisory_unlock($1)")
        .bind(TEMPLATE_LOCK)
        .execute(&mut *admin)
        .await
        .expect("unlock");
    name
}

async fn execute(admin: &mut PgConnection, statement: String) {
    // Safe: names are generated here from hexadecimal digits.
    admin
        .execute(AssertSqlSafe(statement))
        .await
        .expect("manage databases");
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("database kept for inspection: {}", self.url);
            return;
        }
        drop_database(&self.name);
    }
}

/// Drops a test's database and closes its connections.
pub fn drop_database(name: &str) {
    let statement = format!("drop database if exists {name} with (force)");
    // A separate runtime, because a destructor cannot wait for the test's own.
    let dropped = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let mut admin = server_options().connect().await.expect("connect");
            execute(&mut admin, statement).await;
        });
    });
    dropped.join().expect("drop the database");
}
