//! Source files of the project, read as text: files, functions, types and doc comments.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the project, by its path from the root.
pub(super) struct SourceFile {
    pub path: String,
    pub text: String,
}

/// A function of a formatted file.
pub(super) struct SourceFunction<'a> {
    pub name: &'a str,
    pub public: bool,
    pub signature: String,
    pub body: String,
    /// Lines that are neither blank nor a comment.
    pub code_lines: usize,
    /// All lines, signature and braces included.
    pub lines: usize,
    /// The line it begins at, counted from 1.
    pub line: usize,
}

pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the root")
        .to_owned()
}

/// Files below `folders` whose names end with one of `endings`.
pub(super) fn sources(folders: &[&str], endings: &[&str]) -> Vec<SourceFile> {
    let mut found = Vec::new();
    for folder in folders {
        collect(&root().join(folder), endings, &mut found);
    }
    assert!(!found.is_empty(), "no files in {folders:?}");
    found
}

fn collect(folder: &Path, endings: &[&str], found: &mut Vec<SourceFile>) {
    for path in entries(folder) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();

        if path.is_dir() {
            collect(&path, endings, found);
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            let inside = path.strip_prefix(root()).expect("inside the root");
            found.push(SourceFile {
                path: inside.display().to_string(),
                text: fs::read_to_string(&path).expect("text"),
            });
        }
    }
}

/// Files and folders in a folder, without build output, vectors and hidden names, sorted.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let is_output = matches!(name, "target" | "vectors" | "__pycache__");
            !name.starts_with('.') && (path.is_file() || !is_output)
        })
        .collect();
    found.sort();
    found
}

/// Every Rust file.
pub(super) fn rust() -> Vec<SourceFile> {
    sources(&["api", "worker", "shared", "deploy", "tests"], &[".rs"])
}

pub(super) fn is_test(path: &str) -> bool {
    path.starts_with("tests/")
        || path.contains("/tests")
        || path.ends_with("_tests.rs")
        || path.ends_with("tests.rs")
}

/// The text before the unit tests.
pub(super) fn without_unit_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

/// Counts lines that are neither blank nor a comment.
pub(super) fn code_lines(text: &str) -> usize {
    text.lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

/// The functions of a formatted file: a function ends at the first closing brace that stands
/// where its `fn` does.
pub(super) fn functions(text: &str) -> Vec<SourceFunction<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();

    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some(at) = code.find("fn ") else { continue };
        let words = &code[..at];
        let modifiers = words.split_whitespace().all(|word| {
            matches!(word, "pub" | "async" | "const" | "unsafe" | "extern")
                || word.starts_with("pub(")
        });
        if !modifiers || code.starts_with("//") {
            continue;
        }

        // A declaration without a body ends with a semicolon.
        let opening = lines[start..]
            .iter()
            .position(|line| line.ends_with(['{', '}', ';']));
        if opening.is_some_and(|at| lines[start + at].ends_with(';')) {
            continue;
        }

        let indent = &line[..line.len() - code.len()];
        let close = format!("{indent}}}");
        let Some(length) = lines[start..]
            .iter()
            .position(|line| *line == close || line.trim_end().ends_with("{}"))
        else {
            continue;
        };

        let whole = lines[start..=start + length].join("\n");
        let (signature, body) = whole.split_once("{\n").unwrap_or((&whole, ""));
        functions.push(SourceFunction {
            name: code[at + 3..].split(['(', '<']).next().unwrap_or_default(),
            public: words.contains("pub "),
            signature: signature.to_owned(),
            body: body.to_owned(),
            code_lines: code_lines(&whole),
            lines: length + 1,
            line: start + 1,
        });
    }
    functions
}

/// Fails with a list of offences against a rule.
#[track_caller]
pub(super) fn none(offences: Vec<String>, rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn functions_are_found_as_they_are_written() {
    let text = "impl A {\n    pub async fn one(\n        a: u8,\n    ) -> u8 {\n        // Two.\n\n        2\n    }\n}\nfn two() {\n    3\n}\n";
    let found = functions(text);

    let facts: Vec<_> = found
        .iter()
        .map(|function| {
            (
                function.name,
                function.lines,
                function.code_lines,
                function.public,
            )
        })
        .collect();
    assert_eq!(facts, [("one", 7, 5, true), ("two", 3, 3, false)]);
    assert!(found[0].signature.contains("a: u8"));
}
