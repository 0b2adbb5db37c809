//! Pid files, and the processes that an earlier launcher left running.
//!
//! Each child has a file `<dir>/pids/<name>` with its pid, its start time and a part of its
//! command line. A pid alone proves nothing, because the system reuses pids; a process belongs
//! to the launcher only if all three match. Other processes are left alone, and only the pid
//! file is removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Time that a process has for its stop signal before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Description of a process in its pid file.
#[derive(Debug, PartialEq, Eq)]
pub struct PidRecord {
    pid: i32,
    /// Start time in the kernel's clock ticks; 0 where the system does not report it.
    start_ticks: u64,
    stop_signal: Signal,
    /// Part of the command line that no other process has.
    cmdline_marker: String,
}

impl PidRecord {
    /// Describes the running process `pid`.
    pub fn describe(pid: u32, stop: Signal, mark: &str) -> Result<Self> {
        let pid = i32::try_from(pid)?;
        Ok(Self {
            pid,
            start_ticks: start_ticks(pid).unwrap_or(0),
            stop_signal: stop,
            cmdline_marker: mark.to_owned(),
        })
    }

    /// Writes the pid file.
    pub fn write(&self, file: &Path) -> Result<()> {
        let Self {
            pid,
            start_ticks: started,
            stop_signal: stop,
            cmdline_marker: mark,
        } = self;
        fs::write(file, format!("{pid} {started} {stop} {mark}\n"))
            .with_context(|| format!("writing {file:?}"))
    }

    fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file)?;
        let mut words = text.trim_end().splitn(4, ' ');
        let mut word = || words.next().ok_or_else(|| anyhow!("{file:?} is truncated"));
        Ok(Self {
            pid: word()?.parse()?,
            start_ticks: word()?.parse()?,
            stop_signal: word()?.parse()?,
            cmdline_marker: word()?.to_owned(),
        })
    }

    /// True if the process runs and is the described one.
    pub fn is_running(&self) -> bool {
        command_line(self.pid).is_some_and(|line| line.contains(&self.cmdline_marker))
            && (self.start_ticks == 0 || start_ticks(self.pid) == Some(self.start_ticks))
    }

    fn stop(&self) -> Result<()> {
        for signal in [self.stop_signal, Signal::SIGKILL] {
            // The process may be gone already.
            let _ = kill(Pid::from_raw(self.pid), signal);
            let deadline = Instant::now() + STOP_GRACE;
            while self.is_running() {
                if Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        if self.is_running() {
            bail!(
                "process {} ({}) does not end",
                self.pid,
                self.cmdline_marker
            );
        }
        Ok(())
    }
}

/// Stops every process that the pid files under `pids` describe; returns their count.
pub fn stop_all(pids: &Path) -> Result<usize> {
    let mut ended = 0;
    for file in pid_files(pids) {
        // A file truncated by a crash describes no process that could be checked.
        if let Ok(record) = PidRecord::read(&file)
            && record.is_running()
        {
            record.stop()?;
            ended += 1;
        }
        fs::remove_file(&file).with_context(|| format!("removing {file:?}"))?;
    }
    Ok(ended)
}

/// True if the process that `file` describes runs.
pub fn is_alive(file: &Path) -> bool {
    PidRecord::read(file).is_ok_and(|record| record.is_running())
}

fn pid_files(pids: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(pids) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    // Users of the services stop before the services.
    files.sort_by_key(|file| file.ends_with("postgres") || file.ends_with("redis"));
    files
}

/// The command line with its arguments separated by spaces; `None` when no process runs.
fn command_line(pid: i32) -> Option<String> {
    if Path::new("/proc/self/cmdline").exists() {
        let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&raw).replace('\0', " ");
        // A zombie has no command line left.
        return (!line.trim().is_empty()).then_some(line);
    }
    let output = Command::new("ps")
        .args(["-o", "command=", "-p", &pid.to_string()])
        .output()
        .ok()?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && !line.trim().is_empty()).then_some(line)
}

/// Field 22 of `/proc/<pid>/stat`. The second field is a name that may hold spaces and
/// brackets, so fields are counted after its last bracket.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    struct ScratchDir(PathBuf);

    impl ScratchDir {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("peal-pids-{}", Uuid::new_v4().simple()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for ScratchDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Starts a process that waits for input; `mark` is in its command line.
    fn spawn_sleeper(mark: &str) -> std::process::Child {
        let child = Command::new("sh")
            .args(["-c", "read -r line", mark])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !command_line(pid).is_some_and(|line| line.contains(mark)) {
            assert!(Instant::now() < deadline, "the child did not exec");
            std::thread::yield_now();
        }
        child
    }

    #[test]
    fn a_stale_process_is_stopped_and_its_file_removed() {
        let scratch = ScratchDir::new();
        let mut child = spawn_sleeper("mark-of-a-stale-process");
        let file = scratch.0.join("sleeper");
        PidRecord::describe(child.id(), Signal::SIGTERM, "mark-of-a-stale-process")
            .unwrap()
            .write(&file)
            .unwrap();
        assert!(is_alive(&file));

        assert_eq!(stop_all(&scratch.0).unwrap(), 1);

        assert!(!file.exists());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_foreign_process_with_a_reused_pid_is_left_alone() {
        let scratch = ScratchDir::new();
        let mut child = spawn_sleeper("mark-of-another-process");
        let truth =
            PidRecord::describe(child.id(), Signal::SIGKILL, "mark-of-another-process").unwrap();
        let other_program = PidRecord {
            cmdline_marker: "mark-of-ours".to_owned(),
            ..PidRecord::describe(child.id(), Signal::SIGKILL, "").unwrap()
        };
        other_program.write(&scratch.0.join("one")).unwrap();
        if truth.start_ticks != 0 {
            let other_start = PidRecord {
                start_ticks: truth.start_ticks + 1,
                ..PidRecord::describe(child.id(), Signal::SIGKILL, "mark-of-another-process")
                    .unwrap()
            };
            other_start.write(&scratch.0.join("two")).unwrap();
        }

        assert_eq!(stop_all(&scratch.0).unwrap(), 0);

        assert!(truth.is_running());
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!truth.is_running());
    }

    #[test]
    fn a_record_round_trips_through_its_file() {
        let scratch = ScratchDir::new();
        let file = scratch.0.join("pid");
        let record = PidRecord {
            pid: 12,
            start_ticks: 345,
            stop_signal: Signal::SIGINT,
            cmdline_marker: "a mark with spaces".to_owned(),
        };
        record.write(&file).unwrap();
        assert_eq!(PidRecord::read(&file).unwrap(), record);

        fs::write(&file, "12 345").unwrap();
        assert!(PidRecord::read(&file).is_err());
        assert_eq!(stop_all(&scratch.0).unwrap(), 0);
        assert!(!file.exists());
    }
}
