//! Reasons for a launcher to end: Ctrl-C, a plain `kill`, a closed terminal, or the end of its
//! parent process.

use std::os::unix::process::parent_id;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

const PARENT_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Stop signals: SIGINT, SIGTERM and SIGHUP.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    pub fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal; returns the shell's exit code for it.
    pub async fn recv(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }
}

/// Returns once the parent process is gone. A launcher that `make` started must end when `make`
/// is killed, because Ctrl-C no longer reaches it.
pub async fn parent_gone() {
    let parent = parent_id();
    let mut poll = tokio::time::interval(PARENT_POLL_INTERVAL);
    while parent_id() == parent {
        poll.tick().await;
    }
}
