//! A second API on the database of an [`App`], as a separate process.

use std::ffi::OsString;

use nix::sys::signal::Signal;
use peal_local::ports;
use peal_local::processes::{ChildProcess, ProcessDir, ProcessSpec};

use super::app::{App, JWT_SECRET};
use super::client::TEST_TIMEOUT;
use super::cluster::{built_program, process_env};
use super::{env_setting, eventually};

/// A running second API.
pub struct SecondApi {
    pub url: String,
    process: ChildProcess,
    // Held so that no other test gets the port before the process listens on it.
    _port: ports::ReservedPort,
}

impl SecondApi {
    /// Starts the API with these faults and waits until it is ready.
    pub async fn start(app: &App, faults: &str) -> Self {
        let port = ports::ReservedPort::localhost().expect("a free port");
        let listen = port.address().to_string();
        let url = format!("http://{listen}");
        let directory = app.directory();

        let redis_url = env_setting("PEAL_TEST_REDIS_URL");
        let mut envs = process_env(app.program_url(), &redis_url, &listen, directory);
        let prefix = &app.context.config.redis_prefix;

        let own: [(&str, OsString); 8] = [
            // As in `app::settings`.
            ("PEAL_EGRESS_HTTP", "true".into()),
            ("PEAL_EGRESS_PORTS", "1-65535".into()),
            ("PEAL_EGRESS_NETWORKS", "127.0.0.2/32".into()),
            ("PEAL_LIMIT_REQUESTS_PER_SEC", "100000".into()),
            ("PEAL_LIMIT_REFUSALS_PER_MIN", "100000".into()),
            ("PEAL_REDIS_PREFIX", prefix.into()),
            ("PEAL_JWT_SECRET", JWT_SECRET.into()),
            ("PEAL_FAULT", faults.into()),
        ];
        envs.extend(own);

        let spec = ProcessSpec {
            name: "api-beside",
            program: &built_program("peal-api"),
            args: Vec::new(),
            envs,
            run_as: None,
            stop_signal: Signal::SIGTERM,
            cmdline_marker: "peal-api",
            detached: false,
        };
        let desk = ProcessDir::create(directory).expect("logs");
        let process = ChildProcess::spawn(spec, &desk).expect("start");

        let ready = format!("{url}/health/ready");
        let is_ready = || async {
            let answer = reqwest::get(&ready).await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        eventually("the second API is ready", TEST_TIMEOUT, is_ready).await;

        Self {
            url,
            process,
            _port: port,
        }
    }

    /// Stops the API gracefully.
    pub async fn stop(self) {
        self.process.stop(TEST_TIMEOUT).await.expect("stop");
    }
}
