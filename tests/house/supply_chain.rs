//! Dependencies: no known vulnerable version, every crate from crates.io with its checksum, and no
//! unsafe code in the workspace. `make audit` checks more.

use std::fs;
use std::path::{Path, PathBuf};

/// Minimum versions of crates with vulnerabilities that affect Peal.
const MINIMUM_VERSIONS: [(&str, CrateVersion); 12] = [
    // CVE-2026-25537: `exp` and `nbf` of the wrong type are skipped.
    ("jsonwebtoken", CrateVersion(10, 3, 0)),
    // RUSTSEC-2024-0363: truncated lengths let a bind value become a statement.
    ("sqlx", CrateVersion(0, 8, 1)),
    ("sqlx-postgres", CrateVersion(0, 8, 1)),
    // RUSTSEC-2026-0258.
    ("h2", CrateVersion(0, 4, 16)),
    // RUSTSEC-2025-0168: archives write outside their directory.
    ("zip", CrateVersion(2, 3, 0)),
    // RUSTSEC-2026-0141.
    ("lettre", CrateVersion(0, 11, 22)),
    // RUSTSEC-2024-0399: a ClientHello panics the server.
    ("rustls", CrateVersion(0, 23, 18)),
    // RUSTSEC-2025-0009: a packet of a chosen size panics.
    ("ring", CrateVersion(0, 17, 12)),
    // Versions known to be good; both wrap C code.
    ("aws-lc-rs", CrateVersion(1, 19, 0)),
    ("aws-lc-sys", CrateVersion(0, 47, 0)),
    // RUSTSEC-2024-0421: two encodings of one name compare as different.
    ("idna", CrateVersion(1, 0, 0)),
    // RUSTSEC-2025-0055: logged text controls the terminal.
    ("tracing-subscriber", CrateVersion(0, 3, 20)),
];
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// A release version; only [`Version::parse`] reads the parts after `-` or `+`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CrateVersion(u64, u64, u64);

impl CrateVersion {
    /// Parses a release version; `None` for a pre-release.
    fn parse(text: &str) -> Option<Self> {
        let release = text.split('+').next()?;
        let mut parts = release.split('.').map(str::parse::<u64>);
        let version = Self(
            parts.next()?.ok()?,
            parts.next()?.ok()?,
            parts.next()?.ok()?,
        );
        parts.next().is_none().then_some(version)
    }
}

/// An entry of `Cargo.lock`.
struct LockedPackage<'a> {
    name: &'a str,
    version: &'a str,
    source: Option<&'a str>,
    checksum: Option<&'a str>,
}

fn locked_packages(lock: &str) -> Vec<LockedPackage<'_>> {
    let mut found = Vec::new();
    for entry in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let mut lines = entry.lines();
            lines.find_map(|line| {
                let (key, value) = line.split_once(" = ")?;
                (key == name).then(|| value.trim_matches('"'))
            })
        };
        found.push(LockedPackage {
            name: field("name").expect("a name"),
            version: field("version").expect("a version"),
            source: field("source"),
            checksum: field("checksum"),
        });
    }
    found
}

/// Packages of a lock file below their minimum version.
fn outdated(lock: &str) -> Vec<String> {
    let mut old = Vec::new();
    for package in locked_packages(lock) {
        for (name, least) in MINIMUM_VERSIONS {
            let is_good =
                CrateVersion::parse(package.version).is_some_and(|version| version >= least);
            if package.name == name && !is_good {
                let CrateVersion(major, minor, patch) = least;
                let version = package.version;
                old.push(format!("{name} {version} is below {major}.{minor}.{patch}"));
            }
        }
    }
    old
}

/// Packages of a lock file from another source, or without a checksum.
fn foreign_packages(lock: &str, members: &[String]) -> Vec<String> {
    let mut errors = Vec::new();
    for package in locked_packages(lock) {
        let name = package.name;
        let is_ours = members.iter().any(|member| member == name);
        let is_sum = |sum: &str| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
        match (package.source, package.checksum) {
            (None, None) if is_ours => {}
            (Some(CRATES_IO), Some(sum)) if is_sum(sum) => {}
            (source, sum) => errors.push(format!("{name} is from {source:?}, checksum {sum:?}")),
        }
    }
    errors
}

/// Reason that a crate may have unsafe code; `None` when it is forbidden.
fn unsafe_code_gap(manifest: &str, workspace: &str) -> Option<&'static str> {
    let forbids = |text: &str, table: &str| {
        let lints = text.split(&format!("[{table}]\n")).nth(1);
        let lints = lints.map(|rest| rest.split("\n[").next().unwrap_or(rest));
        lints.is_some_and(|lints| {
            lints
                .lines()
                .any(|line| line.trim() == "unsafe_code = \"forbid\"")
        })
    };
    let inherits = manifest.contains("[lints]\nworkspace = true");
    match (inherits, forbids(manifest, "lints.rust")) {
        (true, _) if forbids(workspace, "workspace.lints.rust") => None,
        (true, _) => Some("the workspace does not forbid it"),
        (false, true) => None,
        (false, false) => Some("it has no lints"),
    }
}

fn workspace_root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the root").to_owned()
}

fn read_file(path: &str) -> String {
    fs::read_to_string(workspace_root().join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Directories of the workspace's crates, from its manifest.
fn member_dirs(workspace: &str) -> Vec<&str> {
    let members = workspace.split("members = [").nth(1).expect("members");
    let members = members.split(']').next().expect("their end");
    let folders: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(folders.len() >= 7, "{folders:?}");
    folders
}

fn member_names() -> Vec<String> {
    let workspace = read_file("Cargo.toml");
    let folders = member_dirs(&workspace).into_iter();
    let names = folders.map(|folder| {
        let manifest = read_file(&format!("{folder}/Cargo.toml"));
        let name = manifest
            .lines()
            .find_map(|line| line.strip_prefix("name = "));
        name.expect("a name").trim_matches('"').to_owned()
    });
    names.collect()
}

#[test]
fn no_known_vulnerable_version_is_locked() {
    let lock = read_file("Cargo.lock");
    assert!(
        locked_packages(&lock).len() > 300,
        "the lock file was not read"
    );
    let old = outdated(&lock);
    assert!(old.is_empty(), "cargo update -p ...: {old:#?}");
}

#[test]
fn every_package_comes_from_crates_io_with_a_checksum() {
    let errors = foreign_packages(&read_file("Cargo.lock"), &member_names());
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
fn every_workspace_crate_forbids_unsafe_code() {
    let workspace = read_file("Cargo.toml");
    for folder in member_dirs(&workspace) {
        let manifest = read_file(&format!("{folder}/Cargo.toml"));
        let reason = unsafe_code_gap(&manifest, &workspace);
        assert_eq!(reason, None, "{folder}");
    }
}

#[test]
fn deny_toml_bans_the_same_minimum_versions() {
    let deny = read_file(".deny.toml");
    for name in ["jsonwebtoken", "sqlx", "h2", "zip", "lettre"] {
        let (_, CrateVersion(major, minor, patch)) = MINIMUM_VERSIONS
            .into_iter()
            .find(|(known, _)| *known == name)
            .expect("known");
        let ban = format!("crate = \"{name}:<{major}.{minor}.{patch}\"");
        assert!(deny.contains(&ban), ".deny.toml lacks {ban}");
    }
}

#[test]
fn the_checks_detect_old_versions_forks_and_unsafe_code() {
    let entry = |name: &str, version: &str, rest: &str| {
        format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n{rest}\n")
    };
    let sum = "a".repeat(64);
    let good = format!("source = \"{CRATES_IO}\"\nchecksum = \"{sum}\"");
    for (version, is_old) in [
        ("10.2.99", true),
        ("9.9.9", true),
        ("10.3.0-rc.1", true),
        ("10.3", true),
        ("10.3.0", false),
        ("10.3.0+build.7", false),
        ("10.10.0", false),
        ("11.0.0", false),
    ] {
        let lock = entry("jsonwebtoken", version, &good);
        assert_eq!(outdated(&lock).len(), usize::from(is_old), "{version}");
    }
    let several = entry("h2", "0.4.16", &good) + &entry("h2", "0.3.26", &good);
    assert_eq!(outdated(&several), ["h2 0.3.26 is below 0.4.16"]);

    let ours = ["peal-api".to_owned()];
    for (rest, is_odd) in [
        (good.clone(), false),
        (format!("source = \"{CRATES_IO}\""), true),
        (
            format!("source = \"git+https://example.com/h2#abc\"\nchecksum = \"{sum}\""),
            true,
        ),
        (
            format!("source = \"registry+https://example.com/index\"\nchecksum = \"{sum}\""),
            true,
        ),
        (
            format!("source = \"{CRATES_IO}\"\nchecksum = \"short\""),
            true,
        ),
        (String::new(), true),
    ] {
        let lock = entry("h2", "0.4.16", &rest);
        assert_eq!(
            foreign_packages(&lock, &ours).len(),
            usize::from(is_odd),
            "{rest}"
        );
    }
    assert!(foreign_packages(&entry("peal-api", "0.1.0", ""), &ours).is_empty());

    let forbidding = "[workspace.lints.rust]\nunsafe_code = \"forbid\"\n";
    let denying = "[workspace.lints.rust]\nunsafe_code = \"deny\"\n";
    let inheriting = "[lints]\nworkspace = true\n";
    let own = "[lints.rust]\nunsafe_code = \"forbid\"\n";
    assert_eq!(unsafe_code_gap(inheriting, forbidding), None);
    assert_eq!(unsafe_code_gap(own, denying), None);
    assert!(unsafe_code_gap(inheriting, denying).is_some());
    assert!(unsafe_code_gap("[dependencies]\n", forbidding).is_some());
}
