//! Runs one command with private services: `make test` and the benchmarks.
//!
//! The command gets the addresses in `PEAL_TEST_DATABASE_URL` and
//! `PEAL_TEST_REDIS_URL`. It stays in the terminal's process group, so Ctrl-C reaches it
//! directly; the launcher waits for it and then cleans up.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::processes::command_bound_to_launcher;
use crate::services::{ServiceOptions, Services};
use crate::stop::StopSignals;

/// Runs `command` and returns the exit code for the launcher.
pub async fn run(command: &[OsString], durable: bool) -> Result<u8> {
    let Some((program, args)) = command.split_first() else {
        bail!("no command to run");
    };

    let mut stop = StopSignals::listen()?;
    let starting = Services::start(ServiceOptions {
        durable,
        ..ServiceOptions::default()
    });
    let services = tokio::select! {
        services = starting => services?,
        code = stop.recv() => return Ok(code),
    };

    let mut child = Command::from(command_bound_to_launcher(program, Signal::SIGTERM));
    let mut child = child
        .args(args)
        .env("PEAL_TEST_DATABASE_URL", &services.database_url)
        .env("PEAL_TEST_REDIS_URL", &services.redis_url)
        .spawn()
        .with_context(|| format!("starting {program:?}"))?;

    let status = wait(&mut child, &mut stop).await?;
    services.stop().await?;
    Ok(exit_code(status))
}

async fn wait(child: &mut Child, stop: &mut StopSignals) -> Result<ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status?),
            code = stop.recv() => {
                // The terminal sends SIGINT to the whole group; other signals reach only the
                // launcher.
                if code != 130
                    && let Some(id) = child.id()
                {
                    let _ = kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM);
                }
            }
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| signal + 128));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::find_programs;

    async fn run_words(words: &[&str]) -> Result<u8> {
        let command: Vec<_> = words.iter().map(OsString::from).collect();
        run(&command, false).await
    }

    #[tokio::test]
    async fn the_command_reaches_both_services_and_its_exit_code_is_returned() {
        let psql = find_programs().unwrap().join("psql");
        let script = "\"$0\" -XAtc 'select 1' \"$PEAL_TEST_DATABASE_URL\" | grep -qx 1 \
                      && case \"$PEAL_TEST_REDIS_URL\" in \
                             redis://127.0.0.1:*) exit 7 ;; \
                         esac";
        let words = ["sh", "-c", script, psql.to_str().unwrap()];
        assert_eq!(run_words(&words).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_command_that_dies_by_a_signal_is_a_failure() {
        assert_eq!(run_words(&["sh", "-c", "kill -9 $$"]).await.unwrap(), 137);
    }

    #[tokio::test]
    async fn no_command_is_an_error() {
        assert!(run_words(&[]).await.is_err());
    }
}
