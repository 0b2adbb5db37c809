//! A private Redis without persistence: losing it costs Peal latency, never work.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ports;
use crate::processes::{ChildProcess, POLL_INTERVAL, ProcessDir, ProcessSpec};
use crate::run_as::ServerUser;

const START_DEADLINE: Duration = Duration::from_secs(30);
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A private Redis; its server may be down for a while in fault tests.
#[derive(Debug)]
pub struct RedisServer {
    program: PathBuf,
    detached: bool,
    process_dir: ProcessDir,
    port: ports::ReservedPort,
    child: Option<ChildProcess>,
}

impl RedisServer {
    pub async fn start(detached: bool, process_dir: &ProcessDir) -> Result<Self> {
        let mut redis = Self {
            program: find_program()?,
            detached,
            process_dir: process_dir.clone(),
            port: ports::ReservedPort::localhost()?,
            child: None,
        };
        redis.start_server().await?;
        Ok(redis)
    }

    pub fn port(&self) -> u16 {
        self.port.port()
    }

    /// URL of its first database.
    pub fn url(&self) -> String {
        url(self.port())
    }

    /// Starts the stopped server again on the same port, empty.
    pub async fn start_server(&mut self) -> Result<()> {
        let port = self.port().to_string();
        let args = [
            ["--port", port.as_str()],
            ["--bind", "127.0.0.1"],
            ["--save", ""],
            ["--appendonly", "no"],
            ["--daemonize", "no"],
        ];

        let mut server = ChildProcess::spawn(
            ProcessSpec {
                name: "redis",
                program: &self.program,
                args: args.concat().into_iter().map(OsString::from).collect(),
                envs: vec![("LC_ALL", "C".into())],
                run_as: ServerUser::resolve()?,
                stop_signal: Signal::SIGTERM,
                // Redis rewrites its command line; both forms contain the port.
                cmdline_marker: &port,
                detached: self.detached,
            },
            &self.process_dir,
        )?;

        let deadline = Instant::now() + START_DEADLINE;
        loop {
            server.ensure_running()?;
            match pid_at(self.port()).await {
                Some(pid) if pid == server.id() => break,
                Some(_) => bail!("Address already in use by another Redis"),
                None if Instant::now() > deadline => {
                    bail!(
                        "Redis is not ready after 30 seconds:\n{}",
                        server.log_tail()
                    )
                }
                None => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }

        self.child = Some(server);
        Ok(())
    }

    pub async fn stop_server(&mut self) -> Result<()> {
        match self.child.take() {
            Some(server) => server.stop(STOP_GRACE).await,
            None => Ok(()),
        }
    }

    /// Kills the server, as a crash would.
    pub async fn kill_server(&mut self) -> Result<()> {
        match self.child.take() {
            Some(server) => server.kill().await,
            None => Ok(()),
        }
    }

    /// Fails with the end of the log if the server has ended by itself.
    pub fn ensure_running(&mut self) -> Result<()> {
        self.child
            .as_mut()
            .map_or(Ok(()), ChildProcess::ensure_running)
    }
}

/// URL of the private Redis at `port`.
pub fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}/0")
}

/// The pid of the Redis at `port`, if one answers.
pub async fn pid_at(port: u16) -> Option<u32> {
    let info = timeout(ANSWER_DEADLINE, server_info(port))
        .await
        .ok()?
        .ok()?;
    let (_, rest) = info.split_once("process_id:")?;
    rest.lines().next()?.trim().parse().ok()
}

async fn server_info(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"INFO server\r\nQUIT\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn find_program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(
        [
            "/usr/bin",
            "/usr/sbin",
            "/usr/local/bin",
            "/opt/homebrew/bin",
        ]
        .map(PathBuf::from),
    );
    find_in(&dirs).ok_or_else(|| {
        anyhow!("found no redis-server; `sh deploy/local/install.sh` installs it or prints how")
    })
}

/// Finds Redis, or Valkey, which speaks the same protocol and replaces Redis on some systems.
fn find_in(dirs: &[PathBuf]) -> Option<PathBuf> {
    ["redis-server", "valkey-server"]
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)))
        .find(|program: &PathBuf| Path::is_file(program))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use uuid::Uuid;

    #[test]
    fn redis_is_preferred_over_valkey_wherever_it_lies() {
        let base = std::env::temp_dir().join(format!("peal-redis-{}", Uuid::new_v4().simple()));
        let (first, second) = (base.join("first"), base.join("second"));
        for dir in [&first, &second] {
            fs::create_dir_all(dir).unwrap();
        }
        assert_eq!(find_in(&[first.clone(), second.clone()]), None);

        fs::write(first.join("valkey-server"), "").unwrap();
        let dirs = [first.clone(), second.clone()];
        assert_eq!(find_in(&dirs), Some(first.join("valkey-server")));

        fs::write(second.join("redis-server"), "").unwrap();
        assert_eq!(find_in(&dirs), Some(second.join("redis-server")));
        fs::remove_dir_all(&base).unwrap();
    }
}
