//! A whole installation of release programs: the API and workers as processes on a fresh
//! database of the durable server, with the simulator in this process as the carrier.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use peal_local::ports;
use peal_local::processes::{ChildProcess, ProcessDir, ProcessSpec};
use peal_shared::config::Config;
use peal_simulator::{Faults, RunningSimulator, Simulator, SimulatorConfig as Carrier};
use serde_json::json;

use crate::harness::app::{
    AppOptions, carrier_where_all_answer, connect_with, create_tenant, test_settings,
};
use crate::harness::client::{ApiClient, phone_number};
use crate::harness::db::{TestDatabase, fresh_database};
use crate::harness::env_setting;
use crate::machine;
use crate::machine::WatchedProcesses;

/// Longest wait for any condition.
const WAIT_DEADLINE: Duration = Duration::from_secs(900);
const STOP_GRACE: Duration = Duration::from_secs(30);
/// Rows of a batch, and its most calls at once.
const BATCH_ROWS: u32 = 1000;
/// The master key of the installation.
pub const MASTER_KEY: [u8; 32] = [7; 32];
pub const ALL_ROLES: &str = "dial,inbox,ingest,misc";

/// A carrier without outcomes by suffix, whose callees talk briefly.
pub fn carrier_config(latency_ms: u64) -> Carrier {
    let mut carrier = carrier_where_all_answer();
    carrier.keep_callbacks = false;
    carrier.behavior.suffixes.clear();
    carrier.faults = Faults {
        create_latency_ms: latency_ms,
        ..Faults::default()
    };
    carrier
}

/// A running installation.
pub struct Installation {
    pub client: ApiClient,
    pub carrier: RunningSimulator,
    pub config: Config,
    pub database: TestDatabase,
    pub workers: Vec<ChildProcess>,
    pub api: ChildProcess,
    process_dir: ProcessDir,
    envs: Vec<(&'static str, OsString)>,
    directory: PathBuf,
    redis_pid: u32,
    postgres_pid: u32,
    // The port of the API, reserved while it runs.
    _port: ports::ReservedPort,
}

impl Installation {
    /// Starts everything except workers, on a trunk with this many calls per second.
    pub async fn start(cps: i64, carrier: Carrier) -> anyhow::Result<Self> {
        // 1. The database, the carrier and the settings.
        let database = fresh_database().await;
        let carrier = Simulator::start(carrier).await?;
        let port = ports::ReservedPort::localhost()?;
        let listen = port.address().to_string();
        let url = format!("http://{listen}");
        let directory = std::env::temp_dir().join(&database.name);
        let dirs = ProcessDir::create(&directory)?;
        let redis_url = env_setting("PEAL_TEST_REDIS_URL");
        let mut settings = test_settings(&database.program_url, &redis_url, &url, &directory);
        settings.redis_prefix = database.name.clone();
        let envs = environment(&database, &redis_url, &listen, &directory);

        // 2. An organization with a trunk and an agent.
        let context = connect_with(settings).await;
        let options = AppOptions {
            cps,
            max_concurrent: 100_000,
            ..AppOptions::default()
        };
        let tenant = create_tenant(&context, "Acme", carrier.url(), &options).await;
        sqlx::query("update organizations set max_concurrent_calls = 100000")
            .execute(&database.pool)
            .await?;
        let config = context.config.clone();
        context.pool.close().await;

        // 3. The API.
        let api = spawn("api", "peal-api", &[], &quiet_envs(&envs), &dirs)?;
        let stack = Self {
            client: ApiClient::new(url, tenant),
            carrier,
            config,
            workers: Vec::new(),
            api,
            process_dir: dirs,
            envs,
            directory,
            redis_pid: redis_pid(&redis_url).await?,
            postgres_pid: postgres_pid(&database).await?,
            database,
            _port: port,
        };
        stack
            .until("the api is ready", async || {
                let ready = reqwest::get(format!("{}/health/ready", stack.client.url)).await;
                Ok(ready.is_ok_and(|answer| answer.status().is_success()))
            })
            .await?;
        Ok(stack)
    }

    /// The settings of the API.
    pub fn quiet_envs(&self) -> Vec<(&'static str, OsString)> {
        quiet_envs(&self.envs)
    }

    /// Adds a worker process with these roles.
    pub fn start_worker(&mut self, roles: &str) -> anyhow::Result<u32> {
        let name = format!("worker-{}", self.workers.len() + 1);
        let args = ["--roles", roles];
        let worker = spawn(&name, "peal-worker", &args, &self.envs, &self.process_dir)?;
        let pid = worker.id();
        self.workers.push(worker);
        Ok(pid)
    }

    /// All processes whose processor time is measured.
    pub fn watched_processes(&self) -> WatchedProcesses {
        let mut watched = WatchedProcesses::default();
        watched.add("api", self.api.id());
        for worker in &self.workers {
            watched.add("workers", worker.id());
        }
        watched.add_family("postgres", self.postgres_pid);
        watched.add("redis", self.redis_pid);
        watched.add("simulator_and_load", std::process::id());
        watched
    }

    /// Creates batches of the people `from..from + count`, ready to start. A batch has as many
    /// rows as calls at once.
    pub async fn batches(&self, from: u32, count: u32) -> Vec<String> {
        let mut batches = Vec::new();
        for first in (from..from + count).step_by(usize::try_from(BATCH_ROWS).unwrap_or(1)) {
            let last = (first + BATCH_ROWS).min(from + count);
            let batch = self
                .client
                .create_batch(json!({ "batch_size": BATCH_ROWS }))
                .await;
            let mut csv = String::from("to_phonenumber,name\n");
            for n in first..last {
                csv.push_str(&format!("{},Person {n}\n", phone_number(n)));
            }
            self.client.upload(&batch, &csv).await;
            batches.push(batch);
        }
        batches
    }

    /// Creates batches and dials them to their end.
    pub async fn campaign(&self, count: u32) -> anyhow::Result<()> {
        let batches = self.batches(0, count).await;
        for batch in &batches {
            self.client.start_batch(batch).await;
        }
        self.until("the campaign ends", async || {
            // The carrier counts, so the database has no extra load.
            Ok(self.carrier.oracle().outcomes.values().sum::<u64>() >= u64::from(count))
        })
        .await?;
        self.until("the batches complete", async || {
            Ok(self
                .count("select count(*) from call_batches where status <> 'completed'")
                .await?
                == 0)
        })
        .await
    }

    /// Runs a query that returns one number.
    pub async fn count(&self, sql: &'static str) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar(sql)
            .fetch_one(&self.database.pool)
            .await?)
    }

    /// Waits until `holds` returns true.
    pub async fn until(
        &self,
        what: &str,
        holds: impl AsyncFn() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        while !holds().await? {
            anyhow::ensure!(
                start.elapsed() < WAIT_DEADLINE,
                "not within {WAIT_DEADLINE:?}: {what}; the end of the API's log:\n{}",
                self.api.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Count of a text in the workers' logs.
    pub fn count_in_worker_logs(&self, text: &str) -> usize {
        let logs = self.workers.iter().map(|worker| {
            let log = self.process_dir.logs.join(format!("{}.log", worker.name()));
            std::fs::read_to_string(log).unwrap_or_default()
        });
        logs.map(|log| log.matches(text).count()).sum()
    }

    /// Stops everything but the database server.
    pub async fn stop(self) -> anyhow::Result<TestDatabase> {
        for worker in self.workers {
            worker.stop(STOP_GRACE).await?;
        }
        self.api.stop(STOP_GRACE).await?;
        self.carrier.stop().await;
        std::fs::remove_dir_all(&self.directory)?;
        Ok(self.database)
    }

    /// Kills everything at once, for rows that end with open calls.
    pub async fn kill(self) -> anyhow::Result<()> {
        for worker in self.workers {
            worker.kill().await?;
        }
        self.api.kill().await?;
        self.carrier.stop().await;
        std::fs::remove_dir_all(&self.directory)?;
        Ok(())
    }
}

fn spawn(
    name: &str,
    program: &str,
    args: &[&str],
    envs: &[(&'static str, OsString)],
    process_dir: &ProcessDir,
) -> anyhow::Result<ChildProcess> {
    let path = machine::programs()?.join(program);
    anyhow::ensure!(
        path.exists(),
        "{} is missing; `make bench` builds it",
        path.display()
    );
    let spec = ProcessSpec {
        name,
        program: &path,
        args: args.iter().map(OsString::from).collect(),
        envs: envs.to_vec(),
        run_as: None,
        stop_signal: Signal::SIGTERM,
        cmdline_marker: program,
        detached: false,
    };
    ChildProcess::spawn(spec, process_dir)
}

fn environment(
    database: &TestDatabase,
    redis_url: &str,
    listen: &str,
    directory: &std::path::Path,
) -> Vec<(&'static str, OsString)> {
    vec![
        ("PEAL_DATABASE_URL", database.program_url.clone().into()),
        ("PEAL_REDIS_URL", redis_url.into()),
        ("PEAL_REDIS_PREFIX", database.name.clone().into()),
        ("PEAL_MASTER_KEY", STANDARD.encode(MASTER_KEY).into()),
        ("PEAL_PUBLIC_URL", format!("http://{listen}").into()),
        ("PEAL_LISTEN", listen.into()),
        (
            "PEAL_STORE_URL",
            format!("file://{}/store", directory.display()).into(),
        ),
        ("PEAL_MAIL_DIR", directory.join("mail").into()),
        ("PEAL_LOG", "text".into()),
        ("RUST_LOG", "warn,peal_worker::dial=debug".into()),
    ]
}

/// Reduces the log of the API: callbacks with wrong signatures would write a line each.
fn quiet_envs(envs: &[(&'static str, OsString)]) -> Vec<(&'static str, OsString)> {
    let mut quiet = envs.to_vec();
    quiet.push(("RUST_LOG", "error".into()));
    quiet
}

async fn postgres_pid(database: &TestDatabase) -> anyhow::Result<u32> {
    let backend: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&database.pool)
        .await?;
    machine::parent_pid(u32::try_from(backend)?).context("PostgreSQL runs on another machine")
}

async fn redis_pid(url: &str) -> anyhow::Result<u32> {
    let mut redis = redis::Client::open(url)?
        .get_multiplexed_async_connection()
        .await?;
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut redis)
        .await?;
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("process_id:"));
    Ok(pid
        .context("Redis does not report its process")?
        .trim()
        .parse()?)
}
