//! Python programs that tests run against Peal.
//!
//! Each pinned list of requirements is installed once, into a directory next to the test binary's.
//! Without Python or its registry, a test that needs them prints a note and passes, unless `CI`
//! is set.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Longest time for an installation.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(180);

/// Installs `tests/{folder}/requirements.txt` and returns the directory of its programs, or `None`
/// when the installation is not possible.
pub async fn install_programs(folder: &str) -> Option<PathBuf> {
    match try_install(folder).await {
        Ok(programs) => Some(programs),
        Err(why) if std::env::var_os("CI").is_none() => {
            eprintln!("SKIPPED: tests/{folder} needs Python and its registry: {why}");
            None
        }
        Err(why) => panic!("tests/{folder}/requirements.txt cannot be installed: {why}"),
    }
}

async fn try_install(folder: &str) -> Result<PathBuf, String> {
    let folder_path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let list = folder_path.join("requirements.txt");
    let mut hasher = DefaultHasher::new();
    fs::read_to_string(&list).expect("a list").hash(&mut hasher);
    let test = std::env::current_exe().expect("a path");
    let beside = test.parent().and_then(Path::parent).expect("a directory");
    let home = beside.join(format!("python-{folder}-{:016x}", hasher.finish()));
    let done = home.join("installed");
    if !done.exists() {
        let _gone = fs::remove_dir_all(&home);
        run(
            INSTALL_TIMEOUT,
            Command::new("python3").args(["-m", "venv"]).arg(&home),
        )
        .await?;
        let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "-r"];
        let python = home.join("bin/python");
        run(INSTALL_TIMEOUT, Command::new(python).args(pip).arg(&list)).await?;
        fs::write(&done, "").expect("write");
    }
    Ok(home.join("bin"))
}

/// Runs a command to its end. Returns an error with its output when it fails or takes too long.
pub async fn run(patience: Duration, command: &mut Command) -> Result<(), String> {
    let output = timeout(patience, command.kill_on_drop(true).output())
        .await
        .map_err(|_elapsed| format!("not within {patience:?}: {command:?}"))?
        .map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}
