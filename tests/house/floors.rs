//! Floors of the house: imports run down, and no circle of modules is left.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::{entries, is_test, none, root, sources, without_unit_tests};

/// Rooms and features of `shared`, from the lowest floor up: each imports only what stands
/// before it.
const SHARED_FLOORS: [&str; 0] = [];
/// Most entries of one folder.
const FOLDER_ENTRIES: usize = 34;

/// Top-level modules of a crate, each with the modules that it imports and one file that does.
fn imports(folder: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut imports: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();

    for file in sources(&[folder], &[".rs"]) {
        let inside = file.path[folder.len() + 1..].to_owned();
        let module = inside.split(['/', '.']).next().unwrap_or_default();
        if is_test(&inside) || matches!(module, "lib" | "main") {
            continue;
        }

        let named = imports.entry(module.to_owned()).or_default();
        let code = without_unit_tests(&file.text)
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for path in code.flat_map(|line| line.split("crate::").skip(1)) {
            let other: String = path
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let is_module = other.starts_with(|c: char| c.is_ascii_lowercase());
            if is_module && other != module {
                named.entry(other).or_insert_with(|| file.path.clone());
            }
        }
    }
    imports
}

/// Modules from which an import leads back to themselves, each with one such way.
fn circles(imports: &BTreeMap<String, BTreeMap<String, String>>) -> Vec<String> {
    let mut found = Vec::new();
    for module in imports.keys() {
        let mut seen = BTreeSet::new();
        let mut ways = vec![vec![module.as_str()]];

        while let Some(way) = ways.pop() {
            let last = way.last().copied().unwrap_or_default();
            for (next, file) in imports.get(last).into_iter().flatten() {
                if next == module {
                    found.push(format!("{} -> {module} (last in {file})", way.join(" -> ")));
                } else if seen.insert(next.as_str()) {
                    let mut longer = way.clone();
                    longer.push(next.as_str());
                    ways.push(longer);
                }
            }
        }
    }
    found
}

#[test]
fn features_of_shared_import_downwards() {
    let floor_of = |module: &str| SHARED_FLOORS.iter().position(|name| *name == module);
    let mut offences = Vec::new();

    for (module, imported) in imports("shared/src") {
        let Some(floor) = floor_of(&module) else {
            offences.push(format!("{module} has no floor"));
            continue;
        };
        for (other, file) in imported {
            if floor_of(&other).is_some_and(|other| other > floor) {
                offences.push(format!(
                    "{file} imports {other}, which stands above {module}"
                ));
            }
        }
    }
    none(offences, "imports that run up");
}

#[test]
fn no_module_of_the_api_imports_itself_through_others() {
    none(circles(&imports("api/src")), "circles of imports");
}

#[test]
fn circles_are_found() {
    let one = |name: &str| BTreeMap::from([(name.to_owned(), "a file".to_owned())]);
    let round = BTreeMap::from([
        ("a".to_owned(), one("b")),
        ("b".to_owned(), one("c")),
        ("c".to_owned(), one("b")),
    ]);

    let found = circles(&round);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("b -> c -> b"), "{found:?}");
}

#[test]
fn folders_stay_small() {
    let mut folders = ["api/src", "worker/src", "shared/src", "deploy", "tests"]
        .map(|folder| root().join(folder))
        .to_vec();
    let mut offences = Vec::new();

    while let Some(folder) = folders.pop() {
        let inside = entries(&folder);
        if inside.len() > FOLDER_ENTRIES {
            offences.push(format!("{} has {} entries", folder.display(), inside.len()));
        }
        folders.extend(inside.into_iter().filter(|path| path.is_dir()));
    }
    none(offences, "folders with too many entries");
}
