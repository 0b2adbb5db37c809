//! A private PostgreSQL: search for its programs, creation of a cluster, its server.
//!
//! The server listens on 127.0.0.1 only and accepts every connection without a password, as a
//! scratch server may. Unix sockets are off: checkouts exceed their short path limit.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;

use crate::processes::{ChildProcess, POLL_INTERVAL, ProcessDir, ProcessSpec};
use crate::run_as::ServerUser;
use crate::{ports, run_as};

/// Oldest major version that Peal supports.
pub const MIN_MAJOR_VERSION: u32 = 15;

/// Superuser of every private cluster.
pub const SUPERUSER: &str = "postgres";

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_secs(20);

/// Environment variables that would direct the client programs to another server.
const CLIENT_ENV_VARS: [&str; 9] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGSERVICE",
    "PGOPTIONS",
    "PGSSLMODE",
];

/// Durability of commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Every commit is synced to disk, as in production.
    Full,
    /// Commits survive a crash of the server, not of the machine. For tests.
    Scratch,
}

impl Durability {
    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Full => &["max_connections=200", "shared_buffers=256MB"],
            Self::Scratch => &[
                "fsync=off",
                "full_page_writes=off",
                "max_connections=400",
                "shared_buffers=128MB",
            ],
        }
    }
}

/// A private cluster and its server, which may be stopped.
#[derive(Debug)]
pub struct PostgresServer {
    programs: PathBuf,
    data: PathBuf,
    durability: Durability,
    run_as: Option<ServerUser>,
    detached: bool,
    process_dir: ProcessDir,
    port: ports::ReservedPort,
    child: Option<ChildProcess>,
}

impl PostgresServer {
    /// Creates the cluster `data` unless it exists, and starts its server.
    pub async fn start(
        data: PathBuf,
        durability: Durability,
        detached: bool,
        process_dir: &ProcessDir,
    ) -> Result<Self> {
        let mut postgres = Self {
            programs: find_programs()?,
            data,
            durability,
            run_as: ServerUser::resolve()?,
            detached,
            process_dir: process_dir.clone(),
            port: ports::ReservedPort::localhost()?,
            child: None,
        };
        postgres.create_cluster()?;
        postgres.start_server().await?;
        Ok(postgres)
    }

    pub fn port(&self) -> u16 {
        self.port.port()
    }

    /// URL of `database` for `user`.
    pub fn url(&self, user: &str, database: &str) -> String {
        url(self.port(), user, database)
    }

    /// Starts the stopped server again on the same port.
    pub async fn start_server(&mut self) -> Result<()> {
        // 1. Its command line.
        let program = self.programs.join("postgres");
        let data = self.data.to_string_lossy().into_owned();
        let mut args: Vec<OsString> = vec!["-D".into(), self.data.clone().into()];
        let port = format!("port={}", self.port());
        let fixed = [
            port.as_str(),
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "timezone=UTC",
            "log_timezone=UTC",
            "log_line_prefix=%m [%p] %q%d ",
        ];
        for setting in fixed.iter().chain(self.durability.settings()) {
            args.extend(["-c".into(), setting.into()]);
        }

        // 2. The process.
        let mut server = ChildProcess::spawn(
            ProcessSpec {
                name: "postgres",
                program: &program,
                args,
                envs: vec![("LC_ALL", "C".into())],
                run_as: self.run_as,
                // Fast shutdown: sessions are terminated, data is written.
                stop_signal: Signal::SIGINT,
                cmdline_marker: &data,
                detached: self.detached,
            },
            &self.process_dir,
        )?;

        // 3. Wait until it answers.
        let deadline = Instant::now() + START_DEADLINE;
        while !is_ready(&self.programs, self.port()) {
            server.ensure_running()?;
            if Instant::now() > deadline {
                bail!(
                    "PostgreSQL is not ready after a minute:\n{}",
                    server.log_tail()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }

        // 4. Another server may have taken the port.
        if self.run_sql("postgres", "show data_directory")?.trim() != data {
            bail!("Address already in use by another PostgreSQL");
        }
        self.child = Some(server);
        Ok(())
    }

    /// Stops the server and keeps its data and its port.
    pub async fn stop_server(&mut self) -> Result<()> {
        match self.child.take() {
            Some(server) => server.stop(STOP_GRACE).await,
            None => Ok(()),
        }
    }

    /// Stops the server immediately, as a crash would: no checkpoint, every session cut.
    pub async fn crash_server(&mut self) -> Result<()> {
        let Some(server) = self.child.take() else {
            return Ok(());
        };
        server.signal(Signal::SIGQUIT);
        server.stop(STOP_GRACE).await
    }

    /// Fails with the end of the log if the server has ended by itself.
    pub fn ensure_running(&mut self) -> Result<()> {
        self.child
            .as_mut()
            .map_or(Ok(()), ChildProcess::ensure_running)
    }

    /// Runs `sql` as the superuser; returns the unaligned output without headers.
    pub fn run_sql(&self, database: &str, sql: &str) -> Result<String> {
        self.psql(database, &["-At", "-c", sql])
    }

    /// Runs the script `file` in one transaction as the superuser.
    pub fn run_file(&self, database: &str, file: &Path) -> Result<()> {
        let name = file.to_string_lossy();
        self.psql(database, &["--single-transaction", "-f", &name])?;
        Ok(())
    }

    /// Creates an unprivileged role and a database that it owns, unless they exist; returns the
    /// URL. Row-level security does not apply to superusers, so the product must not connect as
    /// one. Creates the roles that the product switches to as well, because the product may not
    /// create roles.
    pub fn create_owned_database(&self, name: &str) -> Result<String> {
        let count = format!("select count(*) from pg_database where datname = '{name}'");
        if self.run_sql("postgres", &count)?.trim() == "0" {
            self.create_role(name, "login")?;
            let database = format!("create database {name} owner {name}");
            self.run_sql("postgres", &database)?;
        }
        for role in ["peal_system", "peal_tenant"] {
            self.create_role(role, "nologin")?;
            self.run_sql("postgres", &format!("grant {role} to {name}"))?;
        }
        Ok(self.url(name, name))
    }

    fn create_role(&self, name: &str, login: &str) -> Result<()> {
        let exists = format!("select count(*) from pg_roles where rolname = '{name}'");
        if self.run_sql("postgres", &exists)?.trim() == "0" {
            self.run_sql("postgres", &format!("create role {name} {login}"))?;
        }
        Ok(())
    }

    fn psql(&self, database: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.programs.join("psql"));
        command
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.url(SUPERUSER, database))
            .args(args);
        let output = sanitized_client(&mut command)
            .output()
            .context("running psql")?;
        if !output.status.success() {
            bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn create_cluster(&mut self) -> Result<()> {
        // 1. An empty directory that the servers' user can write.
        let path = self.data.clone();
        let exists = path.join("PG_VERSION").exists();
        if !exists {
            // An earlier attempt may have left an incomplete cluster.
            run_as::remove_dir(&path)?;
            run_as::create_dir_for(&path, self.run_as)?;
        }
        // The servers' user may have no access to the link, only to its target.
        self.data = fs::canonicalize(&path)?;
        if exists {
            return Ok(());
        }

        // 2. The cluster.
        let mut command = Command::new(self.programs.join("initdb"));
        command
            .arg("-D")
            .arg(&self.data)
            .args(["-U", SUPERUSER, "-E", "UTF8", "--locale=C", "--auth=trust"])
            .arg("--no-instructions")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null());
        if self.durability == Durability::Scratch {
            command.arg("--no-sync");
        }
        if let Some(owner) = self.run_as {
            owner.apply_to(&mut command);
        }

        let output = command.output().context("running initdb")?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            run_as::remove_dir(&path)?;
            bail!("initdb failed: {}", message.trim());
        }
        Ok(())
    }
}

/// URL of `database` for `user` on the private server at `port`.
pub fn url(port: u16, user: &str, database: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{port}/{database}")
}

/// True if a server at `port` accepts connections.
pub fn is_ready(programs: &Path, port: u16) -> bool {
    let mut command = Command::new(programs.join("pg_isready"));
    command
        .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
        .args(["-U", SUPERUSER, "-d", "postgres"]);
    sanitized_client(&mut command)
        .status()
        .is_ok_and(|status| status.success())
}

fn sanitized_client(command: &mut Command) -> &mut Command {
    for name in CLIENT_ENV_VARS {
        command.env_remove(name);
    }
    command.stdin(Stdio::null())
}

/// Directory of the newest PostgreSQL programs on this machine.
pub fn find_programs() -> Result<PathBuf> {
    newest_installation(candidate_dirs()).ok_or_else(|| {
        anyhow!(
            "found no PostgreSQL {MIN_MAJOR_VERSION} or newer (initdb, postgres, psql); \
             `sh deploy/local/install.sh` installs it or prints how"
        )
    })
}

/// Directories to search, package directories first: programs on PATH may be wrappers.
fn candidate_dirs() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for (base, inside) in [
        ("/usr/lib/postgresql", "bin"),
        ("/usr/local/opt", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr", "bin"),
    ] {
        let Ok(entries) = fs::read_dir(base) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_version = base == "/usr/lib/postgresql";
            if is_version || name.starts_with("postgresql") || name.starts_with("pgsql-") {
                dirs.push(entry.path().join(inside));
            }
        }
    }

    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        dirs.push(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        ));
    }
    if let Some(path) = std::env::var_os("PATH") {
        dirs.extend(std::env::split_paths(&path));
    }
    dirs
}

fn newest_installation(dirs: Vec<PathBuf>) -> Option<PathBuf> {
    let mut best: Option<(u32, PathBuf)> = None;
    for dir in dirs {
        let complete = ["initdb", "postgres", "psql", "pg_isready"]
            .iter()
            .all(|program| dir.join(program).is_file());
        if !complete {
            continue;
        }

        let version = version_in(&dir).unwrap_or(0);
        // The first of equal versions wins, so that PATH has the lowest priority.
        if version >= MIN_MAJOR_VERSION && best.as_ref().is_none_or(|(found, _)| version > *found) {
            best = Some((version, dir));
        }
    }
    best.map(|(_, dir)| dir)
}

fn version_in(dir: &Path) -> Option<u32> {
    let output = Command::new(dir.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// The major version in `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
fn parse_version(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("(PostgreSQL) ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use uuid::Uuid;

    #[test]
    fn versions_are_read_from_every_vendor() {
        for (text, expected) in [
            (
                "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)",
                Some(15),
            ),
            ("postgres (PostgreSQL) 17.2", Some(17)),
            ("postgres (PostgreSQL) 18beta1", Some(18)),
            ("postgres (PostgreSQL) ", None),
            ("psql 15.1", None),
        ] {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }

    fn fake_installation(base: &Path, dir: &str, version: &str, programs: &[&str]) -> PathBuf {
        let bin = base.join(dir);
        fs::create_dir_all(&bin).unwrap();
        for program in programs {
            let file = bin.join(program);
            let script = format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n");
            fs::write(&file, script).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        bin
    }

    #[test]
    fn the_newest_complete_installation_wins() {
        let base = std::env::temp_dir().join(format!("peal-pg-{}", Uuid::new_v4().simple()));
        let all = ["initdb", "postgres", "psql", "pg_isready"];
        let too_old = fake_installation(&base, "14", "14.9", &all);
        let fitting = fake_installation(&base, "15", "15.3", &all);
        let client_only = fake_installation(&base, "18", "18.0", &["psql", "pg_isready"]);
        let same_again = fake_installation(&base, "path", "15.3", &all);

        let found = newest_installation(vec![
            too_old.clone(),
            fitting.clone(),
            client_only,
            same_again,
        ]);
        assert_eq!(found, Some(fitting));
        assert_eq!(newest_installation(vec![too_old]), None);
        fs::remove_dir_all(&base).unwrap();
    }
}
