//! The rules of the house that no compiler checks.

use super::sources::{
    SourceFile, code_lines, functions, is_test, none, root, rust, sources, without_unit_tests,
};

/// Most code lines of a source file and of a test file; blank lines and comments are free.
const FILE_LINES: usize = 500;
const TEST_FILE_LINES: usize = 800;
/// Most code lines of a function.
const FUNCTION_LINES: usize = 70;
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = [
    "utils", "util", "helpers", "common", "misc", "manager", "service",
];

#[test]
fn files_and_functions_stay_short() {
    let mut offences = Vec::new();
    for file in rust() {
        let lines = code_lines(&file.text);
        let limit = if is_test(&file.path) {
            TEST_FILE_LINES
        } else {
            FILE_LINES
        };
        if lines > limit {
            offences.push(format!("{} has {lines} code lines", file.path));
        }
        for function in functions(&file.text)
            .iter()
            .filter(|function| function.code_lines > FUNCTION_LINES)
        {
            offences.push(format!(
                "{}:{} {} has {} code lines",
                file.path, function.line, function.name, function.code_lines
            ));
        }
    }
    none(offences, "too long to read at once");
}

#[test]
fn modules_are_named_for_what_they_do() {
    let offences = rust()
        .into_iter()
        .filter(|file| {
            file.path
                .split(['/', '.'])
                .any(|part| EMPTY_NAMES.contains(&part))
        })
        .map(|file| file.path)
        .collect();
    none(offences, "names that say nothing");
}

#[test]
fn sql_lives_in_shared_and_migrations() {
    let offences = sources(&["api", "worker", "deploy/simulator"], &[".rs"])
        .into_iter()
        .filter(|file| file.text.contains("sqlx::query"))
        .map(|file| file.path)
        .collect();
    none(offences, "SQL outside of shared");
}

#[test]
fn each_framework_stays_in_its_place() {
    let uses = |file: &SourceFile, name: &str| {
        file.text.contains(&format!("use {name}::")) || file.text.contains(&format!(" {name}::"))
    };
    let mut offences = Vec::new();
    for file in sources(&["shared", "worker", "api"], &[".rs"]) {
        if !file.path.starts_with("api/") && uses(&file, "axum") {
            offences.push(format!("{} uses axum", file.path));
        }
        let queue =
            file.path.starts_with("shared/src/platform/queue/") || file.path.starts_with("worker/");
        if !queue && (uses(&file, "apalis") || uses(&file, "apalis_core")) {
            offences.push(format!("{} uses apalis", file.path));
        }
    }
    none(offences, "frameworks out of place");
}

#[test]
fn whoever_touches_tenant_rows_takes_a_scope_or_says_that_it_does_not() {
    // Jobs, mail and the schema's own table belong to the platform; `rows` and `ingest` pass a
    // target that was found in a scope.
    let platform = [
        "shared/src/platform/queue/",
        "shared/src/mail.rs",
        "shared/src/context.rs",
        "shared/src/campaigns/ingest/",
    ];
    let mut offences = Vec::new();
    for file in sources(&["shared/src"], &[".rs"]) {
        if platform.iter().any(|prefix| file.path.starts_with(prefix)) || is_test(&file.path) {
            continue;
        }
        for function in functions(without_unit_tests(&file.text)) {
            let reads = function.body.contains("sqlx::query");
            let scoped =
                function.signature.contains("Scope") || function.name.ends_with("_unscoped");
            if function.public && reads && !scoped {
                offences.push(format!("{}:{} {}", file.path, function.line, function.name));
            }
        }
    }
    none(
        offences,
        "neither a Scope nor a name that ends in _unscoped",
    );
}

#[test]
fn what_is_private_of_a_call_is_named_where_that_is_known() {
    // Who shows one of these columns shows nothing of a call under HIPAA (shared/src/platform/privacy.rs).
    let known: [(&str, &[&str]); 3] = [
        (
            "variable_values",
            &[
                "calls/answer.rs",             // speaks them
                "calls/log.rs",                // shows them
                "calls/make_calls.sql",        // copies them from the row
                "calls/request.rs",            // writes them
                "campaigns/ingest/records.rs", // writes them
                "campaigns/ingest/write.rs",   // writes them
                "campaigns/readiness.rs",      // looks for empty ones
                "campaigns/rows.rs",           // shows them
            ],
        ),
        ("call_turns", &["calls/answer.rs"]), // writes them
        (
            "recording_url",
            // All of them carry it from the carrier's event to the call.
            &[
                "calls/append.sql",
                "calls/apply.rs",
                "calls/events.rs",
                "calls/store.sql",
            ],
        ),
    ];
    let files = sources(&["shared/src"], &[".rs", ".sql"]);
    let mut offences = Vec::new();
    for (column, known) in known {
        let named = files.iter().filter(|file| {
            let has_sql = file.path.ends_with(".sql") || file.text.contains("sqlx::query");
            has_sql && !is_test(&file.path) && file.text.contains(column)
        });
        let paths = named.filter_map(|file| file.path.strip_prefix("shared/src/"));
        let unknown = paths.filter(|path| !known.contains(path));
        offences.extend(unknown.map(|path| format!("{path} names {column}")));
    }
    none(
        offences,
        "say here why it may, once it hides what is private",
    );
}

#[test]
fn there_is_one_place_that_asks_a_carrier_to_dial() {
    let mut places = Vec::new();
    for file in sources(&["shared/src", "worker/src", "api/src"], &[".rs"]) {
        if file.path.starts_with("shared/src/telephony/") {
            continue;
        }
        let count = file.text.matches("carrier.create(").count();
        places.extend(std::iter::repeat_n(file.path, count));
    }
    assert_eq!(places, ["worker/src/dial/place.rs"]);
}

#[test]
fn a_carriers_callback_only_appends() {
    for file in sources(&["api/src"], &[".rs"]) {
        assert!(
            !file.text.contains("apply_unscoped"),
            "{} moves calls itself",
            file.path
        );
    }
}

#[test]
fn every_job_has_its_file_and_its_test() {
    let mut kinds = Vec::new();
    for file in sources(&["shared/src"], &[".rs"]) {
        for line in without_unit_tests(&file.text).lines() {
            if let Some(kind) = line.trim().strip_prefix("const KIND: &'static str = \"") {
                kinds.push(kind.trim_end_matches("\";").to_owned());
            }
        }
    }
    assert!(kinds.len() >= 4, "{kinds:?}");
    let mut tests = sources(&["tests"], &[".rs"]);
    tests.retain(|file| file.path != "tests/house/tidy.rs");
    for kind in kinds {
        assert!(
            root().join(format!("worker/src/jobs/{kind}.rs")).exists(),
            "{kind} has no file"
        );
        let named = tests.iter().any(|file| file.text.contains(&kind));
        assert!(named, "no test names {kind}");
    }
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    let marker = format!("#[{}(", "allow");
    let inner = format!("#![{}(", "allow");
    let offences = rust()
        .into_iter()
        .filter(|file| file.text.contains(&marker) || file.text.contains(&inner))
        .map(|file| file.path)
        .collect();
    none(offences, "use #[expect(lint, reason = \"...\")]");
}

#[test]
fn nothing_is_left_for_later() {
    let words = ["todo!", "unimplemented!", "FIXME", "XXX"].map(|word| word.to_owned());
    let mut offences = Vec::new();
    for file in rust()
        .into_iter()
        .filter(|file| file.path != "tests/house/tidy.rs")
    {
        for word in &words {
            if file.text.contains(word) {
                offences.push(format!("{} says {word}", file.path));
            }
        }
    }
    none(offences, "unfinished");
}

#[test]
fn migrations_only_go_up_and_say_what_they_do() {
    for file in sources(&["migrations"], &[".sql"]) {
        let name = file.path.trim_start_matches("migrations/");
        let (stamp, words) = name.split_once('_').expect("a time stamp and words");
        assert_eq!(stamp.len(), 14, "{name}");
        assert!(stamp.chars().all(|c| c.is_ascii_digit()), "{name}");
        assert!(!words.contains(".down."), "{name}");
    }
}
