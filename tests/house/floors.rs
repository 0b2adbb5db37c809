//! Floors of the house: imports run downwards, and no circle of modules is left.

use std::collections::{BTreeMap, BTreeSet};

use super::sources::{entries, is_test, none, root, sources, without_unit_tests};

/// Modules of `shared`, from the lowest floor up: each imports only modules that stand before it.
const SHARED_FLOORS: [&str; 30] = [
    "platform",
    "access",
    "mail",
    "outbound",
    "config",
    "users",
    "audit",
    "auth",
    "orgs",
    "api_keys",
    "feature_flags",
    "idempotency",
    "catalog",
    "voices",
    "agents",
    "tools",
    "analysis",
    "workflows",
    "telephony",
    "trunks",
    "caller_numbers",
    "wallets",
    "billing",
    "earnings",
    "calls",
    "campaigns",
    "metrics",
    "traces",
    "context",
    "telemetry_server",
];
/// Most entries of one folder.
const FOLDER_ENTRIES: usize = 34;

/// Modules of a crate by their paths, such as `http::error`, each with the modules it imports.
type ImportGraph = BTreeMap<String, BTreeSet<String>>;

/// Reads the imports of a crate, one node for each file.
fn imports(folder: &str) -> ImportGraph {
    let mut code_of = BTreeMap::new();
    for file in sources(&[folder], &[".rs"]) {
        let inside = file.path[folder.len() + 1..].trim_end_matches(".rs");
        let module = inside.trim_end_matches("/mod").replace('/', "::");
        if is_test(&file.path) || matches!(module.as_str(), "lib" | "main") {
            continue;
        }

        let lines = without_unit_tests(&file.text).lines();
        let code: Vec<&str> = lines
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        code_of.insert(module, code.join("\n"));
    }

    let mut graph = ImportGraph::new();
    for (module, code) in &code_of {
        let imported = paths_in(module, code)
            .into_iter()
            .filter_map(|path| longest_module(&path, &code_of))
            .filter(|other| other != module)
            .collect();
        graph.insert(module.clone(), imported);
    }
    graph
}

/// Paths below the crate that a file names, `super` and groups in braces resolved.
fn paths_in(module: &str, code: &str) -> Vec<String> {
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut paths = Vec::new();

    for (marker, base) in [("crate::", ""), ("super::", parent)] {
        for rest in code.split(marker).skip(1) {
            let is_path = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
            let end = rest.find(|c: char| !is_path(c)).unwrap_or(rest.len());
            let (path, after) = rest.split_at(end);
            let start = [base, path.trim_end_matches("::")].join("::");

            let group = after
                .strip_prefix('{')
                .and_then(|group| group.split('}').next());
            match group.filter(|_| path.is_empty() || path.ends_with("::")) {
                Some(group) => {
                    let items = group.split(',').map(str::trim);
                    paths.extend(items.map(|item| format!("{start}::{item}")));
                }
                None => paths.push(start),
            }
        }
    }
    paths
}

/// The module that a path leads to: its longest part that is a file.
fn longest_module(path: &str, known: &BTreeMap<String, String>) -> Option<String> {
    let parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
    (1..=parts.len())
        .rev()
        .map(|length| parts[..length].join("::"))
        .find(|module| known.contains_key(module))
}

/// Circles of imports, each as the way from a module back to itself.
fn circles(graph: &ImportGraph) -> Vec<String> {
    let mut found = Vec::new();
    for module in graph.keys() {
        let mut seen = BTreeSet::new();
        let mut ways = vec![vec![module.as_str()]];

        while let Some(way) = ways.pop() {
            let last = way.last().copied().unwrap_or_default();
            for next in graph.get(last).into_iter().flatten() {
                if next == module {
                    found.push(format!("{} -> {module}", way.join(" -> ")));
                } else if seen.insert(next.as_str()) {
                    let mut longer = way.clone();
                    longer.push(next);
                    ways.push(longer);
                }
            }
        }
    }
    found
}

#[test]
fn modules_of_shared_import_downwards() {
    let feature = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
    let floor_of = |module: &str| SHARED_FLOORS.iter().position(|name| *name == module);
    let mut offences = Vec::new();

    for (module, imported) in imports("shared/src") {
        let Some(floor) = floor_of(&feature(&module)) else {
            offences.push(format!("{module} has no floor"));
            continue;
        };
        for other in imported {
            if floor_of(&feature(&other)).is_none_or(|other| other > floor) {
                offences.push(format!("{module} imports {other}, which stands above it"));
            }
        }
    }
    none(offences, "imports that run upwards");
}

#[test]
fn no_file_of_the_api_imports_itself_through_others() {
    none(circles(&imports("api/src")), "circles of imports");
}

#[test]
fn circles_are_found() {
    let one = |name: &str| BTreeSet::from([name.to_owned()]);
    let graph = BTreeMap::from([
        ("a".to_owned(), one("b")),
        ("b".to_owned(), one("c")),
        ("c".to_owned(), one("b")),
    ]);

    assert_eq!(circles(&graph), ["b -> c -> b", "c -> b -> c"]);
}

#[test]
fn paths_are_read_from_groups_and_from_above() {
    let code = "use crate::http::{error, extract::Path};\nuse crate::{a, b};\nuse super::c::D;";
    let paths = paths_in("x::y", code);

    let read: Vec<&str> = paths
        .iter()
        .map(|path| path.trim_start_matches(':'))
        .collect();
    assert_eq!(
        read,
        ["http::error", "http::extract::Path", "a", "b", "x::c::D"]
    );
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
