//! What Peal is built from: nothing that is known to be vulnerable, everything from the one
//! registry and as it was there, and no unsafe code of our own. `make audit` knows more.

use std::fs;
use std::path::{Path, PathBuf};

/// The least version of what has had a hole that would be ours.
const LEAST: [(&str, Version); 12] = [
    // CVE-2026-25537: `exp` and `nbf` of the wrong type are skipped.
    ("jsonwebtoken", Version(10, 3, 0)),
    // RUSTSEC-2024-0363: lengths are cut, so that a bind becomes a statement.
    ("sqlx", Version(0, 8, 1)),
    ("sqlx-postgres", Version(0, 8, 1)),
    // RUSTSEC-2026-0258.
    ("h2", Version(0, 4, 16)),
    // RUSTSEC-2025-0168: archives write outside of their folder.
    ("zip", Version(2, 3, 0)),
    // RUSTSEC-2026-0141.
    ("lettre", Version(0, 11, 22)),
    // RUSTSEC-2024-0399: a client's hello stops the server.
    ("rustls", Version(0, 23, 18)),
    // RUSTSEC-2025-0009: a packet of a chosen size panics.
    ("ring", Version(0, 17, 12)),
    // As they are known to be good; both are C underneath.
    ("aws-lc-rs", Version(1, 19, 0)),
    ("aws-lc-sys", Version(0, 47, 0)),
    // RUSTSEC-2024-0421: one name, written two ways, is two names.
    ("idna", Version(1, 0, 0)),
    // RUSTSEC-2025-0055: what is logged drives the terminal.
    ("tracing-subscriber", Version(0, 3, 20)),
];
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// A release; what stands behind `-` or `+` is looked at by [`Version::parse`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u64, u64, u64);

impl Version {
    /// A version before the release of its number counts as none.
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
struct Package<'a> {
    name: &'a str,
    version: &'a str,
    source: Option<&'a str>,
    checksum: Option<&'a str>,
}

fn packages(lock: &str) -> Vec<Package<'_>> {
    let mut found = Vec::new();
    for entry in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let mut lines = entry.lines();
            lines.find_map(|line| {
                let (key, value) = line.split_once(" = ")?;
                (key == name).then(|| value.trim_matches('"'))
            })
        };
        found.push(Package {
            name: field("name").expect("a name"),
            version: field("version").expect("a version"),
            source: field("source"),
            checksum: field("checksum"),
        });
    }
    found
}

/// What of a lock file is older than it may be.
fn outdated(lock: &str) -> Vec<String> {
    let mut old = Vec::new();
    for package in packages(lock) {
        for (name, least) in LEAST {
            let is_good = Version::parse(package.version).is_some_and(|version| version >= least);
            if package.name == name && !is_good {
                let Version(major, minor, patch) = least;
                let version = package.version;
                old.push(format!("{name} {version} is below {major}.{minor}.{patch}"));
            }
        }
    }
    old
}

/// What of a lock file comes from elsewhere, or could be something else tomorrow.
fn strange(lock: &str, members: &[String]) -> Vec<String> {
    let mut odd = Vec::new();
    for package in packages(lock) {
        let name = package.name;
        let is_ours = members.iter().any(|member| member == name);
        let is_sum = |sum: &str| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
        match (package.source, package.checksum) {
            (None, None) if is_ours => {}
            (Some(REGISTRY), Some(sum)) if is_sum(sum) => {}
            (source, sum) => odd.push(format!("{name} is from {source:?}, checksum {sum:?}")),
        }
    }
    odd
}

/// Why unsafe code of a crate would not be refused, if it would not.
fn lets_unsafe_in(manifest: &str, workspace: &str) -> Option<&'static str> {
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

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the root").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The folders of the workspace's crates, as its manifest lists them.
fn folders(workspace: &str) -> Vec<&str> {
    let members = workspace.split("members = [").nth(1).expect("members");
    let members = members.split(']').next().expect("their end");
    let folders: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(folders.len() >= 7, "{folders:?}");
    folders
}

fn members() -> Vec<String> {
    let workspace = read("Cargo.toml");
    let folders = folders(&workspace).into_iter();
    let names = folders.map(|folder| {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        let name = manifest
            .lines()
            .find_map(|line| line.strip_prefix("name = "));
        name.expect("a name").trim_matches('"').to_owned()
    });
    names.collect()
}

#[test]
fn nothing_that_is_known_to_be_vulnerable_is_built_in() {
    let lock = read("Cargo.lock");
    assert!(packages(&lock).len() > 300, "the lock file was not read");
    let old = outdated(&lock);
    assert!(old.is_empty(), "cargo update -p ...: {old:#?}");
}

#[test]
fn everything_comes_from_the_registry_as_it_was_there() {
    let odd = strange(&read("Cargo.lock"), &members());
    assert!(odd.is_empty(), "{odd:#?}");
}

#[test]
fn no_crate_of_ours_may_have_unsafe_code() {
    let workspace = read("Cargo.toml");
    for folder in folders(&workspace) {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        let why = lets_unsafe_in(&manifest, &workspace);
        assert_eq!(why, None, "{folder}");
    }
}

#[test]
fn deny_toml_bans_what_is_too_old_here() {
    let deny = read(".deny.toml");
    for name in ["jsonwebtoken", "sqlx", "h2", "zip", "lettre"] {
        let (_, Version(major, minor, patch)) = LEAST
            .into_iter()
            .find(|(known, _)| *known == name)
            .expect("known");
        let ban = format!("crate = \"{name}:<{major}.{minor}.{patch}\"");
        assert!(deny.contains(&ban), ".deny.toml lacks {ban}");
    }
}

#[test]
fn a_vulnerable_version_a_fork_and_unsafe_code_would_be_seen() {
    let entry = |name: &str, version: &str, rest: &str| {
        format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n{rest}\n")
    };
    let sum = "a".repeat(64);
    let good = format!("source = \"{REGISTRY}\"\nchecksum = \"{sum}\"");
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
        (format!("source = \"{REGISTRY}\""), true),
        (
            format!("source = \"git+https://example.com/h2#abc\"\nchecksum = \"{sum}\""),
            true,
        ),
        (
            format!("source = \"registry+https://example.com/index\"\nchecksum = \"{sum}\""),
            true,
        ),
        (
            format!("source = \"{REGISTRY}\"\nchecksum = \"short\""),
            true,
        ),
        (String::new(), true),
    ] {
        let lock = entry("h2", "0.4.16", &rest);
        assert_eq!(strange(&lock, &ours).len(), usize::from(is_odd), "{rest}");
    }
    assert!(strange(&entry("peal-api", "0.1.0", ""), &ours).is_empty());

    let forbidding = "[workspace.lints.rust]\nunsafe_code = \"forbid\"\n";
    let denying = "[workspace.lints.rust]\nunsafe_code = \"deny\"\n";
    let inheriting = "[lints]\nworkspace = true\n";
    let own = "[lints.rust]\nunsafe_code = \"forbid\"\n";
    assert_eq!(lets_unsafe_in(inheriting, forbidding), None);
    assert_eq!(lets_unsafe_in(own, denying), None);
    assert!(lets_unsafe_in(inheriting, denying).is_some());
    assert!(lets_unsafe_in("[dependencies]\n", forbidding).is_some());
}
