//! Child processes: start, supervision and stop.
//!
//! A child gets a process group of its own, so that Ctrl-C reaches only the launcher, which
//! stops the children in order; a log file; a pid file, by which a later launcher finds it after
//! a crash; and, through `setpriv`, a parent-death signal from the kernel.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::pidfiles::PidRecord;
use crate::run_as::ServerUser;

pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Number of log lines that an error message quotes.
const LOG_TAIL_LINES: usize = 15;

/// Description of a process to start.
pub struct ProcessSpec<'a> {
    /// Name of the log and of the pid file.
    pub name: &'a str,
    pub program: &'a Path,
    pub args: Vec<OsString>,
    pub envs: Vec<(&'a str, OsString)>,
    pub run_as: Option<ServerUser>,
    /// Signal that asks the program to stop.
    pub stop_signal: Signal,
    /// Part of the command line that no other process has.
    pub cmdline_marker: &'a str,
    /// Outlives the launcher.
    pub detached: bool,
}

/// Directories of logs and pid files.
#[derive(Clone, Debug)]
pub struct ProcessDir {
    pub logs: PathBuf,
    pub pids: PathBuf,
}

impl ProcessDir {
    /// Creates the directories under `dir` when missing.
    pub fn create(dir: &Path) -> Result<Self> {
        let dirs = Self {
            logs: dir.join("logs"),
            pids: dir.join("pids"),
        };
        for path in [&dirs.logs, &dirs.pids] {
            fs::create_dir_all(path).with_context(|| format!("creating {path:?}"))?;
        }
        Ok(dirs)
    }
}

/// A running child. Dropping it stops it, unless it is detached.
#[derive(Debug)]
pub struct ChildProcess {
    name: String,
    child: Child,
    stop_signal: Signal,
    log: PathBuf,
    pid_file: PathBuf,
    detached: bool,
}

impl ChildProcess {
    /// Starts `spec` with its output appended to the log.
    pub fn spawn(spec: ProcessSpec<'_>, process_dir: &ProcessDir) -> Result<Self> {
        let log = process_dir.logs.join(format!("{}.log", spec.name));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {log:?}"))?;

        let mut command = if spec.detached {
            Command::new(spec.program)
        } else {
            command_bound_to_launcher(spec.program.as_os_str(), spec.stop_signal)
        };
        command
            .args(&spec.args)
            .envs(spec.envs.iter().map(|(key, value)| (key, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        if let Some(owner) = spec.run_as {
            owner.apply_to(&mut command);
        }

        let child = command
            .spawn()
            .with_context(|| format!("starting {:?}", spec.program))?;

        let process = Self {
            name: spec.name.to_owned(),
            stop_signal: spec.stop_signal,
            log,
            pid_file: process_dir.pids.join(spec.name),
            detached: spec.detached,
            child,
        };
        PidRecord::describe(process.child.id(), spec.stop_signal, spec.cmdline_marker)?
            .write(&process.pid_file)?;
        Ok(process)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Exit status, if the process has ended.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends `signal` to the process group.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // The group may be gone already.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }

    /// Requests a stop, waits for `grace`, then kills the process.
    pub async fn stop(mut self, grace: Duration) -> Result<()> {
        self.signal(self.stop_signal);
        self.wait_or_kill(grace).await
    }

    /// Kills the process, as a crash would.
    pub async fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL);
        self.wait_or_kill(Duration::from_secs(5)).await
    }

    async fn wait_or_kill(&mut self, grace: Duration) -> Result<()> {
        let deadline = Instant::now() + grace;
        while self.exit_status()?.is_none() {
            if Instant::now() > deadline {
                self.signal(Signal::SIGKILL);
                self.child.wait()?;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let skipped = lines.len().saturating_sub(LOG_TAIL_LINES);
        let tail: Vec<_> = lines.into_iter().skip(skipped).collect();
        tail.join("\n")
    }

    /// Fails with the end of the log if the process has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.exit_status()? {
            bail!(
                "{} ended ({status}); the end of {}:\n{}",
                self.name,
                self.log.display(),
                self.log_tail()
            );
        }
        Ok(())
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        if let Ok(None) = self.child.try_wait() {
            self.signal(self.stop_signal);
            let deadline = Instant::now() + Duration::from_secs(5);
            while let Ok(None) = self.child.try_wait() {
                if Instant::now() > deadline {
                    self.signal(Signal::SIGKILL);
                    let _ = self.child.wait();
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        let _ = fs::remove_file(&self.pid_file);
    }
}

/// A command that gets `signal` when the thread that starts it ends; a plain command where the
/// system's `setpriv` is missing or cannot do so.
pub(crate) fn command_bound_to_launcher(program: &OsStr, signal: Signal) -> Command {
    if !setpriv_works() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", signal.as_str().trim_start_matches("SIG")])
        .arg("--")
        .arg(program);
    command
}

fn setpriv_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--", "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}
