//! Data directories, each used by one launcher at a time.
//!
//! A directory is locked while its launcher lives; the kernel releases the lock when the
//! launcher is killed. Acquiring a directory first stops the processes that an earlier launcher
//! left running in it.

use std::ffi::OsString;
use std::fs;
use std::fs::{File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
use uuid::Uuid;

use crate::{pidfiles, run_as};

/// Name of the PostgreSQL cluster in every data directory; it may be a link to an external
/// directory.
pub const CLUSTER_DIR: &str = "postgres";

const LOCK_FILE: &str = "lock";
const TEMPORARY_PREFIX: &str = "peal-services-";

/// Age after which a hidden directory counts as abandoned. A temporary directory has its hidden
/// name only while it is created or removed, which takes moments.
const MAX_HIDDEN_AGE: Duration = Duration::from_secs(3600);

/// Most directories of one name in use at once in one checkout.
const MAX_SIBLINGS: usize = 9;

/// A locked directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    temporary: bool,
    // Dropping the file releases the lock.
    _lock: File,
}

impl DataDir {
    /// Locks `<checkout>/.local/<name>`, or the first of `<name>-2`, `<name>-3`, ... that is not
    /// in use.
    pub fn acquire(checkout: &Path, name: &str) -> Result<Self> {
        let local = local_dir(checkout)?;
        for number in 1..=MAX_SIBLINGS {
            let path = match number {
                1 => local.join(name),
                _ => local.join(format!("{name}-{number}")),
            };
            if let Some(dir) = Self::try_acquire(&path)? {
                return Ok(dir);
            }
        }
        bail!("{MAX_SIBLINGS} of `{name}` run in this checkout already");
    }

    /// Locks `path`; returns `None` if another launcher uses it.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>> {
        fs::create_dir_all(path).with_context(|| write_error_hint(path))?;
        let Some(lock) = try_lock(path)? else {
            return Ok(None);
        };
        pidfiles::stop_all(&path.join("pids"))?;
        Ok(Some(Self {
            path: path.to_owned(),
            temporary: false,
            _lock: lock,
        }))
    }

    /// Creates a temporary directory that is removed with its contents when dropped. Removes the
    /// temporary directories of killed launchers first.
    pub fn temporary() -> Result<Self> {
        let base = std::env::temp_dir();
        remove_abandoned(&base)?;
        let name = format!("{TEMPORARY_PREFIX}{}", Uuid::new_v4().simple());
        let path = base.join(name);

        // It gets its final name only once it is locked, so that no other launcher removes it.
        let unlocked = hidden_path(&path);
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&unlocked)
            .with_context(|| format!("creating {unlocked:?}"))?;
        let Some(lock) = try_lock(&unlocked)? else {
            bail!("{unlocked:?} is locked by another process");
        };

        fs::rename(&unlocked, &path)?;
        Ok(Self {
            path,
            temporary: true,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes everything but the lock.
    pub fn clear(&self) -> Result<()> {
        run_as::remove_dir(&self.path.join(CLUSTER_DIR))?;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() == LOCK_FILE {
                continue;
            }
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(&path).with_context(|| write_error_hint(&path))?;
            } else {
                fs::remove_file(&path).with_context(|| write_error_hint(&path))?;
            }
        }
        Ok(())
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.temporary {
            let _ = run_as::remove_dir(&self.path.join(CLUSTER_DIR));
            remove_locked(&self.path);
        }
    }
}

/// The hidden name of a temporary directory; other launchers do not lock hidden directories.
fn hidden_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Removes a temporary directory that this launcher has locked. The directory gets its hidden
/// name first; otherwise another launcher could lock it again once its lock file is gone.
fn remove_locked(path: &Path) {
    let hidden = hidden_path(path);
    let path = match fs::rename(path, &hidden) {
        Ok(()) => hidden.as_path(),
        Err(_) => path,
    };
    // A later launcher removes the remains.
    let _ = fs::remove_dir_all(path);
}

/// `<checkout>/.local`, created when missing.
pub fn local_dir(checkout: &Path) -> Result<PathBuf> {
    let local = checkout.join(".local");
    fs::create_dir_all(&local).with_context(|| write_error_hint(&local))?;
    Ok(local)
}

/// Removes the temporary directories of launchers that no longer run.
fn remove_abandoned(base: &Path) -> Result<()> {
    for entry in fs::read_dir(base)?.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let shown = name.strip_prefix('.').unwrap_or(name);
        if !shown.starts_with(TEMPORARY_PREFIX) || !is_private_dir(&path) {
            continue;
        }

        // A hidden directory has no lock; its age decides.
        if shown != name {
            if is_abandoned(&path) {
                pidfiles::stop_all(&path.join("pids"))?;
                run_as::remove_dir(&path.join(CLUSTER_DIR))?;
                let _ = fs::remove_dir_all(&path);
            }
            continue;
        }

        // Another launcher may be removing it at the same moment.
        if let Ok(Some(_lock)) = try_lock(&path) {
            pidfiles::stop_all(&path.join("pids"))?;
            run_as::remove_dir(&path.join(CLUSTER_DIR))?;
            remove_locked(&path);
        }
    }
    Ok(())
}

/// Reports a hidden directory that is unmodified for too long. It needs no lock: if its launcher
/// is still removing it, two concurrent removals do no harm.
fn is_abandoned(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > MAX_HIDDEN_AGE))
}

/// Reports a directory that only this user can write. The system's temporary directory is shared:
/// files of other users must not decide which processes are stopped or which files are removed.
fn is_private_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| {
        metadata.is_dir()
            && metadata.uid() == Uid::effective().as_raw()
            && metadata.permissions().mode() & 0o022 == 0
    })
}

fn try_lock(dir: &Path) -> Result<Option<File>> {
    let path = dir.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| write_error_hint(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {path:?}")),
    }
}

fn write_error_hint(path: &Path) -> String {
    format!(
        "cannot write {}; if another user ran Peal in this checkout, remove .local as that user",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TempCheckout(PathBuf);

    impl TempCheckout {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("peal-dirs-{}", Uuid::new_v4().simple()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for TempCheckout {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_locked_directory_yields_the_next_number() {
        let checkout = TempCheckout::new();
        let first = DataDir::acquire(&checkout.0, "demo").unwrap();
        let second = DataDir::acquire(&checkout.0, "demo").unwrap();
        assert!(first.path().ends_with(".local/demo"));
        assert!(second.path().ends_with(".local/demo-2"));

        drop(first);
        let third = DataDir::acquire(&checkout.0, "demo").unwrap();
        assert!(third.path().ends_with(".local/demo"));
        assert!(DataDir::try_acquire(third.path()).unwrap().is_none());
    }

    #[test]
    fn clearing_keeps_the_lock() {
        let checkout = TempCheckout::new();
        let dir = DataDir::acquire(&checkout.0, "demo").unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        fs::write(dir.path().join("logs/api.log"), "x").unwrap();
        fs::write(dir.path().join("note"), "x").unwrap();

        dir.clear().unwrap();

        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), LOCK_FILE);
        assert!(DataDir::try_acquire(dir.path()).unwrap().is_none());
    }

    #[test]
    fn only_abandoned_directories_are_removed() {
        let base = TempCheckout::new();
        let dead = base.0.join(format!("{TEMPORARY_PREFIX}dead"));
        let alive = base.0.join(format!("{TEMPORARY_PREFIX}alive"));
        let foreign = base.0.join("something-else");
        let world_writable = base.0.join(format!("{TEMPORARY_PREFIX}open"));
        let recent = base.0.join(format!(".{TEMPORARY_PREFIX}recent"));
        let abandoned = base.0.join(format!(".{TEMPORARY_PREFIX}abandoned"));
        for dir in [
            &dead,
            &alive,
            &foreign,
            &world_writable,
            &recent,
            &abandoned,
        ] {
            fs::create_dir(dir).unwrap();
        }

        let long_ago = std::time::UNIX_EPOCH;
        let untouched = File::open(&abandoned).unwrap();
        untouched.set_modified(long_ago).unwrap();
        fs::set_permissions(&world_writable, fs::Permissions::from_mode(0o777)).unwrap();
        let _lock = try_lock(&alive).unwrap().unwrap();

        remove_abandoned(&base.0).unwrap();

        assert!(!dead.exists() && !hidden_path(&dead).exists());
        assert!(!abandoned.exists());
        assert!(recent.exists());
        assert!(alive.exists());
        assert!(foreign.exists());
        assert!(world_writable.exists());
    }

    #[test]
    fn a_temporary_directory_is_removed_when_dropped() {
        let dir = DataDir::temporary().unwrap();
        let path = dir.path().to_owned();
        fs::write(path.join("note"), "x").unwrap();
        drop(dir);
        assert!(!path.exists() && !hidden_path(&path).exists());
    }
}
