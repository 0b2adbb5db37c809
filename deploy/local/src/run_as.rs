//! Operating system user of the servers.
//!
//! PostgreSQL refuses to run as root, so a launcher that runs as root gives its servers and
//! their directories to the `postgres` user of the package, or else to `nobody`. Any other
//! user runs them as itself.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};
use uuid::Uuid;

/// Name prefix of directories outside the checkout. Only those are removed through a link.
const EXTERNAL_DIR_PREFIX: &str = "peal-data-";

/// A user other than the launcher's, under which the servers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerUser {
    uid: u32,
    gid: u32,
}

impl ServerUser {
    /// Finds the user; `None` if the launcher's own user can run the servers.
    pub fn resolve() -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name)? {
                return Ok(Some(Self {
                    uid: user.uid.as_raw(),
                    gid: user.gid.as_raw(),
                }));
            }
        }
        bail!("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`");
    }

    /// Lets `command` run as this user.
    pub fn apply_to(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    fn can_write(self, dir: &Path) -> bool {
        let mut command = Command::new("test");
        command
            .args([OsStr::new("-w"), dir.as_os_str()])
            .current_dir("/")
            .stderr(Stdio::null());
        self.apply_to(&mut command);
        command.status().is_ok_and(|status| status.success())
    }
}

/// Creates the private directory `path` for `owner`. Where that user has no access to it (a
/// checkout under a closed home directory), the directory is created outside the checkout and
/// `path` becomes a link to it.
pub fn create_dir_for(path: &Path, owner: Option<ServerUser>) -> Result<()> {
    let Some(owner) = owner else {
        return create_private_dir(path, None);
    };
    if path.is_dir() && owner.can_write(path) {
        return Ok(());
    }
    remove_dir(path)?;
    create_private_dir(path, Some(owner))?;
    if owner.can_write(path) {
        return Ok(());
    }
    fs::remove_dir(path)?;

    // The user has no access to the checkout.
    for base in [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into()] {
        let outside = base.join(format!("{EXTERNAL_DIR_PREFIX}{}", Uuid::new_v4().simple()));
        if create_private_dir(&outside, Some(owner)).is_err() {
            continue;
        }
        if owner.can_write(&outside) {
            return symlink(&outside, path).with_context(|| format!("linking {path:?}"));
        }
        fs::remove_dir(&outside)?;
    }
    bail!("found no directory that the servers' user can write to");
}

/// Removes a directory of [`create_dir_for`] with its contents; a missing one is no error.
pub fn remove_dir(path: &Path) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.is_symlink() {
        return fs::remove_dir_all(path).with_context(|| format!("removing {path:?}"));
    }

    let target: PathBuf = fs::read_link(path)?;
    let is_ours = target
        .file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|name| name.starts_with(EXTERNAL_DIR_PREFIX));
    if is_ours && target.is_dir() {
        fs::remove_dir_all(&target).with_context(|| format!("removing {target:?}"))?;
    }
    fs::remove_file(path).with_context(|| format!("removing {path:?}"))
}

fn create_private_dir(path: &Path, owner: Option<ServerUser>) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && owner.is_none() => {}
        other => other.with_context(|| format!("creating {path:?}"))?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    if let Some(owner) = owner {
        chown(path, Some(owner.uid), Some(owner.gid))
            .with_context(|| format!("giving {path:?} to the servers' user"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_link_to_a_foreign_directory_is_removed() {
        let base = std::env::temp_dir().join(format!("peal-owner-{}", Uuid::new_v4().simple()));
        let precious = base.join("precious");
        fs::create_dir_all(&precious).unwrap();
        let link = base.join("link");
        symlink(&precious, &link).unwrap();

        remove_dir(&link).unwrap();

        assert!(!link.exists());
        assert!(precious.is_dir());
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn an_external_directory_is_removed_with_its_link() {
        let base = std::env::temp_dir().join(format!("peal-owner-{}", Uuid::new_v4().simple()));
        let outside = base.join(format!("{EXTERNAL_DIR_PREFIX}1"));
        fs::create_dir_all(&outside).unwrap();
        let link = base.join("link");
        symlink(&outside, &link).unwrap();

        remove_dir(&link).unwrap();

        assert!(!outside.exists());
        assert!(fs::symlink_metadata(&link).is_err());
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_directory_is_made_once_and_kept() {
        let base = std::env::temp_dir().join(format!("peal-owner-{}", Uuid::new_v4().simple()));
        fs::create_dir_all(&base).unwrap();
        let owner = ServerUser::resolve().unwrap();
        let dir = base.join("data");

        create_dir_for(&dir, owner).unwrap();
        fs::write(dir.join("file"), "1").unwrap();
        create_dir_for(&dir, owner).unwrap();

        assert!(dir.join("file").exists());
        remove_dir(&dir).unwrap();
        assert!(fs::symlink_metadata(&dir).is_err());
        fs::remove_dir_all(&base).unwrap();
    }
}
