//! When a launcher should end: Ctrl-C, a plain `kill`, the terminal going away, or the
//! death of whoever started it.

use std::os::unix::process::parent_id;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

const PARENT_POLL: Duration = Duration::from_millis(500);

/// Requests to end: Ctrl-C, a plain `kill`, or the terminal going away.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a request; returns the shell's exit code for it.
    pub async fn requested(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }
}

/// Returns once the parent process is gone. A launcher that `make` started must not stay
/// when `make` is killed: nobody could end it with Ctrl-C any more.
pub async fn orphaned() {
    let parent = parent_id();
    let mut poll = tokio::time::interval(PARENT_POLL);
    while parent_id() == parent {
        poll.tick().await;
    }
}
