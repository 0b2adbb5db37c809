//! One-off runs of Peal's programs, such as a migration or a ledger query.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::processes::command_bound_to_launcher;

/// Directory of the programs and the environment that all of them get.
pub struct ProgramRunner {
    pub(crate) programs: PathBuf,
    pub(crate) envs: Vec<(&'static str, OsString)>,
}

impl ProgramRunner {
    /// Runs a program to its end; returns its standard output.
    pub async fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let path = self.program(program)?;
        let output = Command::from(command_bound_to_launcher(path.as_os_str(), Signal::SIGTERM))
            .args(args)
            .envs(self.envs.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("running {program}"))?;

        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let words = args.iter().take_while(|arg| !arg.starts_with("--"));
            let task = words.copied().collect::<Vec<_>>().join(" ");
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("`{program} {task}` failed: {}\n{printed}", message.trim());
        }
        Ok(printed)
    }

    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        if !path.is_file() {
            bail!("{} is missing; `make build` builds it", path.display());
        }
        Ok(path)
    }
}
