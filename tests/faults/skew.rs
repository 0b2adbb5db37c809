//! Version skew: the schema is migrated while processes of the previous version run.

use std::time::{Duration, Instant};

use peal_local::ports;
use peal_local::processes::ChildProcess;
use peal_shared::context::{MIGRATIONS, run_migrations};
use serde_json::{Value, json};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{PgPool, SqlSafeStr as _};

use super::{SeededRng, seeds};
use crate::harness::client::TEST_TIMEOUT;
use crate::harness::cluster::{Cluster, ClusterOptions};
use crate::harness::eventually;

/// Migration that a next version might add.
const NEXT_MIGRATION: &str = "
    alter table calls add column next_words text;
    alter table batch_data add column next_words text;
    create table next_notes (id bigint primary key, call_id uuid references calls (id));
    create index calls_by_next_words on calls (next_words) where next_words is not null;";

fn current_migrations() -> Vec<Migration> {
    MIGRATIONS.iter().cloned().collect()
}

/// Migrations of this build and one more.
fn migrator_ahead() -> Migrator {
    let mut migrations = current_migrations();
    migrations.push(Migration::new(
        20990101000000,
        "add next words".into(),
        MigrationType::Simple,
        NEXT_MIGRATION.into_sql_str(),
        false,
    ));
    Migrator::with_migrations(migrations)
}

/// Migrations of this build without the last one.
fn migrator_behind() -> Migrator {
    let mut migrations = current_migrations();
    migrations.sort_by_key(|migration| migration.version);
    migrations.pop();
    Migrator::with_migrations(migrations)
}

/// Waits until a program exits; returns true when it succeeded, and the end of its log.
async fn wait_for_exit(mut process: ChildProcess) -> (bool, String) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        if let Some(status) = process.exit_status().expect("a status") {
            return (status.success(), process.log_tail());
        }
        assert!(
            Instant::now() < deadline,
            "still running: {}",
            process.log_tail()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_completes_during_a_migration_to_a_newer_schema() {
    for seed in seeds(1) {
        let mut dice = SeededRng::new(seed);
        let mut cluster = Cluster::start(seed, ClusterOptions::default()).await;
        let batch = cluster
            .start_campaign(300, json!({"batch_size": 100}))
            .await;
        cluster.wait_for_accepted(dice.draw(40..80)).await;

        let mut db = cluster.pool().acquire().await.expect("a connection");
        run_migrations(&migrator_ahead(), &mut db)
            .await
            .expect("migrate ahead");
        drop(db);

        // 1. Processes that run already continue.
        cluster.wait_for_accepted(dice.draw(100..140)).await;

        // 2. Processes that start after the migration work next to an older worker.
        cluster.kill_api().await;
        cluster.start_api().await;
        cluster.start_worker();
        let old = cluster.workers.remove(0);
        old.stop(Duration::from_secs(30)).await.expect("stop");
        cluster
            .wait_for_accepted_despite_silence(dice.draw(180..220))
            .await;

        // 3. A version that is rolled back runs its migrations first.
        let migrate = cluster.spawn_with("migrate", "peal-api", &["migrate"], &[]);
        let (succeeded, log) = wait_for_exit(migrate).await;
        assert!(succeeded, "seed {seed}: {log}");

        let applied = cluster
            .query_number("select count(*) from _sqlx_migrations")
            .await;
        let all = i64::try_from(MIGRATIONS.iter().count() + 1).expect("few");
        assert_eq!(applied, all, "seed {seed}");

        cluster.finish(&batch, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_refuse_an_older_schema_until_it_is_migrated() {
    let setup = ClusterOptions {
        workers: 0,
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(1, setup).await;

    for name in ["empty", "behind"] {
        let url = cluster.services.postgres().create_owned_database(name);
        let url = url.expect("database");
        if name == "behind" {
            let pool = PgPool::connect(&url).await.expect("connect");
            migrator_behind().run(&pool).await.expect("migrate halfway");
            pool.close().await;
        }

        let port = ports::ReservedPort::localhost().expect("a free port");
        let listen = port.address().to_string();
        let envs = [
            ("PEAL_DATABASE_URL", &*url),
            ("PEAL_LISTEN", &*listen),
            // Only the end of a log is read.
            ("RUST_BACKTRACE", "0"),
        ];

        let worker = format!("{name}-worker");
        let (succeeded, log) =
            wait_for_exit(cluster.spawn_with(&worker, "peal-worker", &[], &envs)).await;
        assert!(!succeeded, "{name}: {log}");
        assert!(log.contains("run `peal-api migrate`"), "{name}: {log}");

        let _api = cluster.spawn_with(&format!("{name}-api"), "peal-api", &[], &envs);
        let ready = async || {
            let answer = reqwest::get(format!("http://{listen}/health/ready")).await;
            let answer = answer.ok()?;
            let status = answer.status().as_u16();
            Some((status, answer.json::<Value>().await.ok()?))
        };
        eventually("the API answers", TEST_TIMEOUT, || async {
            ready().await.is_some()
        })
        .await;

        let (status, body) = ready().await.expect("an answer");
        assert_eq!((status, &body["migrations"]), (503, &json!("pending")));

        let migrate = cluster.spawn_with(&format!("{name}-up"), "peal-api", &["migrate"], &envs);
        let (succeeded, log) = wait_for_exit(migrate).await;
        assert!(succeeded, "{name}: {log}");
        eventually("the API is ready", TEST_TIMEOUT, || async {
            matches!(ready().await, Some((200, body)) if body["migrations"] == "current")
        })
        .await;
    }
    cluster.close().await;
}
