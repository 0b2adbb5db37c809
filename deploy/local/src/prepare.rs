//! Rewrites `.sqlx/`, the descriptions of all statements for builds without a database.
//!
//! sqlx's macros describe every statement of the crate against a real, freshly migrated
//! database and write a file for each into `SQLX_OFFLINE_DIR`, provided that directory
//! exists and `SQLX_OFFLINE` is not true. The old files are removed only after the crate has
//! compiled.

use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::data_dir::local_dir;
use crate::postgres::SUPERUSER;
use crate::services::{ServiceOptions, Services};

const DATABASE_NAME: &str = "prepare";

/// Describes all statements of the crate whose library starts at `root`; returns their count.
pub async fn run(checkout: &Path, root: &Path) -> Result<usize> {
    // 1. A migrated database.
    let services = Services::start(ServiceOptions::default()).await?;
    let postgres = services.postgres();
    postgres.run_sql("postgres", &format!("create database {DATABASE_NAME}"))?;
    for migration in migrations(&checkout.join("migrations"))? {
        postgres
            .run_file(DATABASE_NAME, &migration)
            .with_context(|| format!("applying {migration:?}"))?;
    }

    // 2. An empty directory for the macros to write to.
    let fresh = local_dir(checkout)?.join("sqlx");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir(&fresh)?;

    // 3. A build. The macros run only when the crate is compiled, so its root is touched.
    File::options()
        .append(true)
        .open(checkout.join(root))?
        .set_modified(SystemTime::now())?;
    let status = Command::new("cargo")
        // The same check as `make lint`, so that dependencies are compiled once for both.
        .args(["check", "--workspace", "--all-targets"])
        .current_dir(checkout)
        .env("DATABASE_URL", postgres.url(SUPERUSER, DATABASE_NAME))
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", &fresh)
        .status()
        .await
        .context("running cargo")?;
    services.stop().await?;
    if !status.success() {
        bail!("the code does not compile against migrations/; .sqlx/ is as it was");
    }

    // 4. The new files replace the old ones.
    let current = checkout.join(".sqlx");
    if current.exists() {
        fs::remove_dir_all(&current)?;
    }
    fs::rename(&fresh, &current)?;
    Ok(fs::read_dir(&current)?.count())
}

/// All migrations in the order of their names.
fn migrations(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .with_context(|| format!("reading {dir:?}"))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    files.sort();
    Ok(files)
}
