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

use crate::pidfiles::Record;
use crate::run_as::Owner;

pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Number of log lines that an error message quotes.
const TAIL_LINES: usize = 15;

/// Description of a process to start.
pub struct Spec<'a> {
    /// Name of the log and of the pid file.
    pub name: &'a str,
    pub program: &'a Path,
    pub args: Vec<OsString>,
    pub envs: Vec<(&'a str, OsString)>,
    pub owner: Option<Owner>,
    /// Signal that asks the program to stop.
    pub stop: Signal,
    /// Part of the command line that no other process has.
    pub mark: &'a str,
    /// Outlives the launcher.
    pub detached: bool,
}

/// Directories of logs and pid files.
#[derive(Clone, Debug)]
pub struct Desk {
    pub logs: PathBuf,
    pub pids: PathBuf,
}

impl Desk {
    /// Creates the directories under `dir` when missing.
    pub fn under(dir: &Path) -> Result<Self> {
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
pub struct Process {
    name: String,
    child: Child,
    stop: Signal,
    log: PathBuf,
    pid_file: PathBuf,
    detached: bool,
}

impl Process {
    /// Starts `spec` with its output appended to the log.
    pub fn spawn(spec: Spec<'_>, process_dir: &Desk) -> Result<Self> {
        let log = process_dir.logs.join(format!("{}.log", spec.name));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {log:?}"))?;

        let mut command = if spec.detached {
            Command::new(spec.program)
        } else {
            dies_with_launcher(spec.program.as_os_str(), spec.stop)
        };
        command
            .args(&spec.args)
            .envs(spec.envs.iter().map(|(key, value)| (key, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        if let Some(owner) = spec.owner {
            owner.applies_to(&mut command);
        }

        let child = command
            .spawn()
            .with_context(|| format!("starting {:?}", spec.program))?;

        let process = Self {
            name: spec.name.to_owned(),
            stop: spec.stop,
            log,
            pid_file: process_dir.pids.join(spec.name),
            detached: spec.detached,
            child,
        };
        Record::of(process.child.id(), spec.stop, spec.mark)?.write(&process.pid_file)?;
        Ok(process)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Exit status, if the process has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
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
        self.signal(self.stop);
        self.wait_or_kill(grace).await
    }

    /// Kills the process, as a crash would.
    pub async fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL);
        self.wait_or_kill(Duration::from_secs(5)).await
    }

    async fn wait_or_kill(&mut self, grace: Duration) -> Result<()> {
        let deadline = Instant::now() + grace;
        while self.ended()?.is_none() {
            if Instant::now() > deadline {
                self.signal(Signal::SIGKILL);
                self.child.wait()?;
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let skipped = lines.len().saturating_sub(TAIL_LINES);
        let tail: Vec<_> = lines.into_iter().skip(skipped).collect();
        tail.join("\n")
    }

    /// Fails with the end of the log if the process has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
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

impl Drop for Process {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        if let Ok(None) = self.child.try_wait() {
            self.signal(self.stop);
            let deadline = Instant::now() + Duration::from_secs(5);
            while let Ok(None) = self.child.try_wait() {
                if Instant::now() > deadline {
                    self.signal(Signal::SIGKILL);
                    let _ = self.child.wait();
                }
                std::thread::sleep(POLL);
            }
        }
        let _ = fs::remove_file(&self.pid_file);
    }
}

/// A command that gets `signal` when the thread that starts it ends; a plain command where the
/// system's `setpriv` is missing or cannot do so.
pub(crate) fn dies_with_launcher(program: &OsStr, signal: Signal) -> Command {
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
