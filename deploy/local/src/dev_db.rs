//! A private PostgreSQL and Redis in the background, for developers:
//! `eval "$(peal-local dev-db)"`, then `peal-local dev-db --stop`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use crate::data_dir::{DataDir, local_dir};
use crate::postgres::SUPERUSER;
use crate::services::{ServiceOptions, Services};
use crate::{pidfiles, postgres, redis};

const DIR_NAME: &str = "dev";
const PORTS_FILE: &str = "addresses";

/// Ports of the running services.
#[derive(Debug, PartialEq, Eq)]
struct ServicePorts {
    postgres: u16,
    redis: u16,
}

impl ServicePorts {
    fn read(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let (postgres, redis) = text.trim().split_once(' ')?;
        Some(Self {
            postgres: postgres.parse().ok()?,
            redis: redis.parse().ok()?,
        })
    }

    /// `export` lines for a shell to evaluate.
    fn exports(&self) -> String {
        let database = postgres::url(self.postgres, SUPERUSER, "postgres");
        let redis = redis::url(self.redis);
        format!(
            "export DATABASE_URL='{database}'\n\
             export PEAL_TEST_DATABASE_URL='{database}'\n\
             export PEAL_TEST_REDIS_URL='{redis}'\n"
        )
    }
}

/// Starts the services unless they run, and returns lines for a shell to evaluate.
pub async fn start(checkout: &Path) -> Result<String> {
    let dir = local_dir(checkout)?.join(DIR_NAME);
    let file = dir.join(PORTS_FILE);
    let both_run = ["postgres", "redis"]
        .iter()
        .all(|name| pidfiles::is_alive(&dir.join("pids").join(name)));
    if both_run && let Some(addresses) = ServicePorts::read(&file) {
        return Ok(addresses.exports());
    }

    // Locked only while the services start; they keep running without the lock.
    let _dir = DataDir::try_acquire(&dir)?
        .ok_or_else(|| anyhow!("the services are being started or stopped"))?;
    let services = Services::start(ServiceOptions {
        dir: Some(dir),
        durable: false,
        detached: true,
    })
    .await?;

    let addresses = ServicePorts {
        postgres: services.postgres().port(),
        redis: services.redis().port(),
    };
    let line = format!("{} {}\n", addresses.postgres, addresses.redis);
    fs::write(&file, line).with_context(|| format!("writing {file:?}"))?;
    Ok(addresses.exports())
}

/// Stops the services and keeps their data.
pub fn stop(checkout: &Path) -> Result<()> {
    let dir = local_dir(checkout)?.join(DIR_NAME);
    // Acquiring a directory stops the processes that run in it.
    if DataDir::try_acquire(&dir)?.is_none() {
        bail!("the services are being started or stopped");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[tokio::test]
    async fn services_are_reused_until_they_are_stopped() {
        let name = format!("peal-dev-{}", Uuid::new_v4().simple());
        let checkout = std::env::temp_dir().join(name);
        fs::create_dir_all(&checkout).unwrap();

        let first = start(&checkout).await.unwrap();
        assert_eq!(start(&checkout).await.unwrap(), first);
        let pid_file = checkout.join(".local/dev/pids/postgres");
        assert!(pidfiles::is_alive(&pid_file));

        stop(&checkout).unwrap();
        assert!(!pidfiles::is_alive(&pid_file));
        crate::run_as::remove_dir(&checkout.join(".local/dev/postgres")).unwrap();
        fs::remove_dir_all(&checkout).unwrap();
    }
}
