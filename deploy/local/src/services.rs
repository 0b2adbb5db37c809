//! PostgreSQL and Redis, started together.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::data_dir::{CLUSTER_DIR, DataDir};
use crate::postgres::{Durability, PostgresServer, SUPERUSER};
use crate::processes::ProcessDir;
use crate::redis::RedisServer;

/// Options of the services. The default suits tests: a temporary directory, no fsync.
#[derive(Clone, Debug, Default)]
pub struct ServiceOptions {
    /// Directory of the data, logs and pid files; `None` is a temporary directory that is
    /// removed at the end.
    pub dir: Option<PathBuf>,
    /// Commits are synced to disk.
    pub durable: bool,
    /// The servers outlive this process. Needs a `dir`.
    pub detached: bool,
}

/// Running services. Dropping them stops them without reporting errors; prefer
/// [`Services::stop`].
#[derive(Debug)]
pub struct Services {
    /// URL of the database `postgres` for the superuser.
    pub database_url: String,
    pub redis_url: String,
    redis: RedisServer,
    postgres: PostgresServer,
    // Declared last: a temporary directory is removed after the servers have ended.
    temp_dir: Option<DataDir>,
}

impl Services {
    /// Starts both servers and waits until they answer.
    pub async fn start(options: ServiceOptions) -> Result<Self> {
        let (room, dir) = match options.dir {
            Some(dir) => (None, dir),
            None if options.detached => bail!("detached services need a directory"),
            None => {
                let room = DataDir::temporary()?;
                let dir = room.path().to_owned();
                (Some(room), dir)
            }
        };

        let process_dir = ProcessDir::create(&dir)?;
        let durability = if options.durable {
            Durability::Full
        } else {
            Durability::Scratch
        };
        let data = dir.join(CLUSTER_DIR);
        let postgres =
            PostgresServer::start(data, durability, options.detached, &process_dir).await?;
        let redis = RedisServer::start(options.detached, &process_dir).await?;

        Ok(Self {
            database_url: postgres.url(SUPERUSER, "postgres"),
            redis_url: redis.url(),
            redis,
            postgres,
            temp_dir: room,
        })
    }

    /// Stops both servers and keeps the data, unless the directory is temporary.
    pub async fn stop(mut self) -> Result<()> {
        self.redis.stop_server().await?;
        self.postgres.stop_server().await
    }

    /// The temporary directory, if the services run in one.
    pub fn temporary_dir(&self) -> Option<&Path> {
        self.temp_dir.as_ref().map(DataDir::path)
    }

    pub fn postgres(&self) -> &PostgresServer {
        &self.postgres
    }

    pub fn redis(&self) -> &RedisServer {
        &self.redis
    }

    /// Fails with the end of the log if a server has ended by itself.
    pub fn ensure_running(&mut self) -> Result<()> {
        self.postgres.ensure_running()?;
        self.redis.ensure_running()
    }

    /// Crashes PostgreSQL and restarts it with the same data and port.
    pub async fn restart_postgres(&mut self) -> Result<()> {
        self.crash_postgres().await?;
        self.start_postgres().await
    }

    /// Stops PostgreSQL immediately, without a checkpoint, and leaves it down.
    pub async fn crash_postgres(&mut self) -> Result<()> {
        self.postgres.crash_server().await
    }

    /// Starts PostgreSQL after [`Services::crash_postgres`].
    pub async fn start_postgres(&mut self) -> Result<()> {
        self.postgres.start_server().await
    }

    /// Kills Redis, which loses its data, and leaves it down.
    pub async fn kill_redis(&mut self) -> Result<()> {
        self.redis.kill_server().await
    }

    /// Starts an empty Redis on the same port.
    pub async fn start_redis(&mut self) -> Result<()> {
        self.redis.start_server().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::pid_at;

    #[tokio::test]
    async fn committed_rows_survive_a_crash_and_stop_removes_the_directory() {
        let mut services = Services::start(ServiceOptions::default()).await.unwrap();
        let dir = services.temporary_dir().unwrap().to_owned();
        let sql = |services: &Services, text: &str| services.postgres().run_sql("postgres", text);
        sql(&services, "create table kept as select 42 as answer").unwrap();

        services.restart_postgres().await.unwrap();
        assert_eq!(
            sql(&services, "select answer from kept").unwrap().trim(),
            "42"
        );

        services.kill_redis().await.unwrap();
        assert_eq!(pid_at(services.redis().port()).await, None);
        services.start_redis().await.unwrap();
        assert!(pid_at(services.redis().port()).await.is_some());

        services.ensure_running().unwrap();
        services.stop().await.unwrap();
        assert!(!dir.exists());
    }

    #[tokio::test]
    async fn the_product_owns_its_database_without_being_superuser() {
        let services = Services::start(ServiceOptions::default()).await.unwrap();
        let postgres = services.postgres();
        let first = postgres.create_owned_database("peal").unwrap();
        assert_eq!(postgres.create_owned_database("peal").unwrap(), first);

        let roles = "select rolsuper or rolbypassrls from pg_roles where rolname = 'peal'";
        assert_eq!(postgres.run_sql("peal", roles).unwrap().trim(), "f");
        services.stop().await.unwrap();
    }
}
