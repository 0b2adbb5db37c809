//! A private Redis server that a test can kill and restart.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use peal_local::ports::ReservedPort;
use peal_shared::platform::ids::JobId;
use tokio::process::{Child, Command};

use super::eventually;

/// A private Redis server, stopped when this value is dropped.
pub struct PrivateRedis {
    child: Child,
    port: ReservedPort,
    directory: PathBuf,
}

impl PrivateRedis {
    /// Starts a server on a free port, without persistence.
    pub async fn start() -> Self {
        let port = ReservedPort::localhost().expect("a free port");
        let directory = std::env::temp_dir().join(format!("redis-{}", JobId::new()));
        std::fs::create_dir(&directory).expect("directory");
        let child = spawn(port.port(), &directory);
        let server = Self {
            child,
            port,
            directory,
        };
        server.wait_until_ready().await;
        server
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.port())
    }

    /// Kills the server with SIGKILL; its data is lost.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("kill");
    }

    /// Starts an empty server on the same port.
    pub async fn restart(&mut self) {
        self.child = spawn(self.port.port(), &self.directory);
        self.wait_until_ready().await;
    }

    /// Deletes all keys.
    pub async fn flush(&self) {
        let client = redis::Client::open(self.url()).expect("url");
        let mut connection = client
            .get_multiplexed_async_connection()
            .await
            .expect("connect");
        let () = redis::cmd("FLUSHALL")
            .query_async(&mut connection)
            .await
            .expect("flush");
    }

    async fn wait_until_ready(&self) {
        let client = redis::Client::open(self.url()).expect("url");
        eventually("Redis answers", Duration::from_secs(10), || async {
            client.get_multiplexed_async_connection().await.is_ok()
        })
        .await;
    }
}

fn spawn(port: u16, directory: &PathBuf) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .current_dir(directory)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("redis-server is installed")
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
