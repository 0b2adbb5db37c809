//! The whole product on one machine: services, carrier simulator, API, two workers.
//!
//! ```text
//! postgres, redis -> migrate -> simulator -> api -> bootstrap -> worker-1, worker-2
//! ```
//!
//! They stop in the reverse order: workers first, so that they return claimed work while the
//! services still answer.

use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::data_dir::{DataDir, local_dir};
use crate::ports;
use crate::processes::{ChildProcess, POLL_INTERVAL, ProcessDir, ProcessSpec};
use crate::services::{ServiceOptions, Services};
use crate::tools::ProgramRunner;

/// Calls per second that the demo's trunk allows.
pub const TRUNK_CPS: u32 = 30;

const TRUNK_MAX_CONCURRENT: &str = "200";
const TRUNK_ACCOUNT: &str = "AC5e0d1f2a3b4c5d6e7f8091a2b3c4d5e6";
const TRUNK_TOKEN: &str = "c0ffee00c0ffee00c0ffee00c0ffee00";

/// Simulated seconds in one real second.
const SIMULATOR_SPEED: &str = "20";
const SIMULATOR_SEED: &str = "7";

const AGENT_MESSAGE: &str = "Hello {{name}}, this is the Blue Door clinic in {{city}}. \
                             Can you come to your appointment on {{appointment}}?";

/// Credit of the demo's user.
const CREDIT_USD: &str = "500";

const READY_DEADLINE: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_secs(15);

/// Ids and key that `peal-api bootstrap` created or found.
#[derive(Debug)]
pub struct BootstrapAccount {
    pub agent_id: String,
    pub phone_id: String,
    pub api_key: String,
}

/// All processes of a running Peal.
pub struct Stack {
    pub api_url: String,
    pub simulator_url: String,
    pub account: BootstrapAccount,
    pub logs: PathBuf,
    /// One-off runs of Peal's programs.
    pub tools: ProgramRunner,
    // In the order they started; see `stop`.
    processes: Vec<ChildProcess>,
    services: Services,
}

impl Stack {
    /// Starts everything in `dir`; `report` gets a line after each step.
    pub async fn start(checkout: &Path, dir: &DataDir, report: impl Fn(&str)) -> Result<Self> {
        let dir = dir.path();

        // 1. PostgreSQL and Redis.
        let begin = Instant::now();
        let services = Services::start(ServiceOptions {
            dir: Some(dir.to_owned()),
            durable: true,
            detached: false,
        })
        .await?;
        let database_url = services.postgres().create_owned_database("peal")?;
        report(&format!(
            "PostgreSQL and Redis run ({:.1} s)",
            begin.elapsed().as_secs_f64()
        ));

        // 2. The simulator, and the port of the API, which the settings name.
        let mut starter = StackBuilder {
            tools: ProgramRunner {
                programs: programs_dir()?,
                envs: environment(checkout, dir, &database_url, &services.redis_url)?,
            },
            process_dir: ProcessDir::create(dir)?,
            processes: Vec::new(),
        };
        let simulator_url = starter
            .start_listening("peal-simulator", &dir.join("simulator.port"), |port| {
                simulator_args(port)
            })
            .await?;
        starter.set_api_port(ports::reuse_saved_port(&dir.join("api.port"))?);

        // 3. The schema, then an organization with a trunk, an agent and an API key.
        starter.tools.run("peal-api", &["migrate"]).await?;
        report("the database is migrated");
        let answer = starter
            .tools
            .run(
                "peal-api",
                &bootstrap_args(&simulator_url, &TRUNK_CPS.to_string()),
            )
            .await?;
        let account = read_account(&answer)?;

        // 4. The API, then the workers.
        let api_url = starter
            .start_listening("peal-api", &dir.join("api.port"), |_| Vec::new())
            .await?;
        for name in ["worker-1", "worker-2"] {
            let args = ["--roles", "dial,ingest,inbox,misc"];
            starter.spawn(name, "peal-worker", args.map(OsString::from).into())?;
        }
        report("API, two workers and the carrier simulator run");

        Ok(Self {
            api_url,
            simulator_url,
            account,
            logs: starter.process_dir.logs.clone(),
            tools: starter.tools,
            processes: starter.processes,
            services,
        })
    }

    /// Fails with the end of the log if a process has ended by itself.
    pub fn ensure_running(&mut self) -> Result<()> {
        self.services.ensure_running()?;
        self.processes
            .iter_mut()
            .try_for_each(ChildProcess::ensure_running)
    }

    /// Stops everything in the reverse order of the start.
    pub async fn stop(mut self) -> Result<()> {
        while let Some(process) = self.processes.pop() {
            process.stop(STOP_GRACE).await?;
        }
        self.services.stop().await
    }
}

/// Starts Peal's own programs, all with the same environment.
struct StackBuilder {
    tools: ProgramRunner,
    process_dir: ProcessDir,
    processes: Vec<ChildProcess>,
}

impl StackBuilder {
    /// Starts `program` on the port saved in `file`, or on another port if that one is taken
    /// meanwhile; returns its address once it is ready.
    async fn start_listening(
        &mut self,
        program: &str,
        file: &Path,
        args: impl Fn(u16) -> Vec<OsString>,
    ) -> Result<String> {
        let name = program.trim_start_matches("peal-");
        for attempt in 1.. {
            let port = ports::reuse_saved_port(file)?;
            if program == "peal-api" {
                self.set_api_port(port);
            }
            let url = format!("http://127.0.0.1:{port}");
            self.spawn(name, program, args(port))?;

            match self.wait_ready(name, &url).await {
                Ok(()) => return Ok(url),
                Err(error)
                    if attempt < ports::MAX_PORT_ATTEMPTS
                        && format!("{error:#}").contains("in use") =>
                {
                    self.processes.pop();
                }
                Err(error) => return Err(error),
            }
        }
        bail!("{program} found no free port");
    }

    fn set_api_port(&mut self, port: u16) {
        let address = format!("127.0.0.1:{port}");
        let envs = &mut self.tools.envs;
        envs.retain(|(key, _)| *key != "PEAL_LISTEN" && *key != "PEAL_PUBLIC_URL");
        envs.push(("PEAL_PUBLIC_URL", format!("http://{address}").into()));
        envs.push(("PEAL_LISTEN", address.into()));
    }

    fn spawn(&mut self, name: &str, program: &str, args: Vec<OsString>) -> Result<()> {
        let path = self.tools.program(program)?;
        let process = ChildProcess::spawn(
            ProcessSpec {
                name,
                program: &path,
                args,
                envs: self.tools.envs.clone(),
                run_as: None,
                stop_signal: Signal::SIGTERM,
                cmdline_marker: program,
                detached: false,
            },
            &self.process_dir,
        )?;
        self.processes.push(process);
        Ok(())
    }

    /// Waits until the last started process answers its health check.
    async fn wait_ready(&mut self, name: &str, url: &str) -> Result<()> {
        let path = match name {
            "api" => "/health/ready",
            _ => "/_sim/health",
        };
        let process = self
            .processes
            .last_mut()
            .ok_or_else(|| anyhow!("nothing was started"))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(2))
            .build()?;

        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            process.ensure_running()?;
            let answer = http.get(format!("{url}{path}")).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return process.ensure_running();
            }
            if Instant::now() > deadline {
                bail!(
                    "{name} is not ready after a minute:\n{}",
                    process.log_tail()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// Directory of all programs, which is the launcher's own.
fn programs_dir() -> Result<PathBuf> {
    let launcher = std::env::current_exe()?;
    let dir = launcher.parent().ok_or_else(|| anyhow!("no directory"))?;
    Ok(dir.to_owned())
}

fn environment(
    checkout: &Path,
    dir: &Path,
    database_url: &str,
    redis_url: &str,
) -> Result<Vec<(&'static str, OsString)>> {
    let store = dir.join("store");
    let mail = dir.join("mail");
    for path in [&store, &mail] {
        fs::create_dir_all(path).with_context(|| format!("creating {path:?}"))?;
    }
    let level = std::env::var_os("RUST_LOG").unwrap_or_else(|| "info".into());
    Ok(vec![
        ("PEAL_DATABASE_URL", database_url.into()),
        ("PEAL_REDIS_URL", redis_url.into()),
        ("PEAL_MASTER_KEY", master_key(checkout)?.into()),
        ("PEAL_STORE_URL", file_url(&store)?.into()),
        ("PEAL_MAIL_DIR", mail.into()),
        ("RUST_LOG", level),
    ])
}

/// A percent-encoded `file://` URL.
fn file_url(path: &Path) -> Result<String> {
    let url = reqwest::Url::from_file_path(path)
        .map_err(|()| anyhow!("{} is not absolute", path.display()))?;
    Ok(url.into())
}

/// Reads the master key of the checkout: 32 random bytes in base64. Creates it when missing.
fn master_key(checkout: &Path) -> Result<String> {
    let file = local_dir(checkout)?.join("master.key");
    if let Ok(key) = fs::read_to_string(&file)
        && BASE64_STANDARD
            .decode(key.trim())
            .is_ok_and(|bytes| bytes.len() == 32)
    {
        return Ok(key.trim().to_owned());
    }

    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let key = BASE64_STANDARD.encode(bytes);

    let _ = fs::remove_file(&file);
    let mut options = File::options();
    let mut created = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&file)
        .with_context(|| format!("creating {file:?}"))?;
    std::io::Write::write_all(&mut created, key.as_bytes())?;
    Ok(key)
}

fn simulator_args(port: u16) -> Vec<OsString> {
    let listen = format!("127.0.0.1:{port}");
    let account = format!("{TRUNK_TOKEN}:0");
    [
        ["--listen", listen.as_str()],
        ["--speed", SIMULATOR_SPEED],
        ["--seed", SIMULATOR_SEED],
        ["--default-account", account.as_str()],
    ]
    .concat()
    .into_iter()
    .map(OsString::from)
    .collect()
}

fn bootstrap_args<'a>(simulator_url: &'a str, cps: &'a str) -> Vec<&'a str> {
    let options = [
        ["--org", "Demo"],
        ["--email", "demo@example.com"],
        ["--trunk-kind", "twilio"],
        ["--trunk-account", TRUNK_ACCOUNT],
        ["--trunk-token", TRUNK_TOKEN],
        ["--trunk-base-url", simulator_url],
        ["--trunk-cps", cps],
        ["--trunk-max-concurrent", TRUNK_MAX_CONCURRENT],
        ["--number", "+15005550100"],
        ["--agent-message", AGENT_MESSAGE],
        ["--credit-usd", CREDIT_USD],
    ];
    [&["bootstrap"], options.concat().as_slice()].concat()
}

fn read_account(answer: &str) -> Result<BootstrapAccount> {
    let answer: Value = serde_json::from_str(answer.trim())
        .with_context(|| "`peal-api bootstrap` did not print JSON".to_owned())?;
    let text = |key: &str| {
        let value = answer.get(key).and_then(Value::as_str);
        value
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("`peal-api bootstrap` printed no {key}"))
    };
    Ok(BootstrapAccount {
        agent_id: text("agent_id")?,
        phone_id: text("phone_id")?,
        api_key: text("api_key")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn the_master_key_is_made_once() {
        let name = format!("peal-key-{}", Uuid::new_v4().simple());
        let checkout = std::env::temp_dir().join(name);
        fs::create_dir_all(&checkout).unwrap();

        let key = master_key(&checkout).unwrap();
        assert_eq!(BASE64_STANDARD.decode(&key).unwrap().len(), 32);
        assert_eq!(master_key(&checkout).unwrap(), key);

        fs::write(checkout.join(".local/master.key"), "cut sh").unwrap();
        assert_ne!(master_key(&checkout).unwrap(), key);
        fs::remove_dir_all(&checkout).unwrap();
    }

    #[test]
    fn a_store_under_an_odd_path_has_an_address() {
        let url = file_url(Path::new("/home/a b/peal/.local/store")).unwrap();
        assert_eq!(url, "file:///home/a%20b/peal/.local/store");
        assert!(file_url(Path::new("relative")).is_err());
    }

    #[test]
    fn an_account_needs_all_three_ids() {
        let whole = r#"{"org_id":"o","agent_id":"a","phone_id":"p","api_key":"k"}"#;
        assert_eq!(read_account(whole).unwrap().api_key, "k");
        let error = read_account(r#"{"agent_id":"a","phone_id":"p"}"#).unwrap_err();
        assert!(error.to_string().contains("api_key"), "{error}");
        assert!(read_account("done").is_err());
    }
}
