//! The language of the house: five measurements, each with a bound.
//!
//! The bounds are those of well-read Rust services: nearly every long function separates its
//! steps with blank lines, most type names have two words, a type name is declared once in a
//! crate, and doc comments begin with a noun or a verb.

use std::collections::BTreeMap;

use super::sources::{SourceFile, functions, is_test, none, rust};

/// A function of this many lines needs a blank line between its steps.
const LONG_FUNCTION_LINES: usize = 30;
/// Least share of long functions that have a blank line inside, in percent.
const AIR_PERCENT: usize = 80;
/// Largest share of type names of one word, in percent.
const ONE_WORD_PERCENT: usize = 25;
/// Words that no head and no doc comment begins with.
const QUESTION_WORDS: [&str; 10] = [
    "What",
    "Who",
    "Whom",
    "Whose",
    "How",
    "Whether",
    "Why",
    "Somebody",
    "Nobody",
    "Everybody",
];

/// First words of doc comments and heads, each with its file and line.
fn doc_openings(file: &SourceFile) -> Vec<(usize, String)> {
    let mut openings = Vec::new();
    let mut inside = false;

    for (at, line) in file.text.lines().enumerate() {
        let line = line.trim_start();
        let text = line
            .strip_prefix("//!")
            .or_else(|| line.strip_prefix("///"));
        if let Some(text) = text
            && !inside
        {
            let word = text.trim_start().split([' ', ',', ':', '.']).next();
            openings.push((at + 1, word.unwrap_or_default().to_owned()));
        }
        inside = text.is_some();
    }
    openings
}

/// Type names declared in a file, with their lines.
fn declared_types(file: &SourceFile) -> Vec<(usize, String)> {
    let mut names = Vec::new();

    for (at, line) in file.text.lines().enumerate() {
        let mut words = line.split_whitespace();
        let mut word = words.next().unwrap_or_default();
        if word == "pub" || word.starts_with("pub(") {
            word = words.next().unwrap_or_default();
        }
        if !matches!(word, "struct" | "enum" | "trait" | "union") {
            continue;
        }

        let name: String = words
            .next()
            .unwrap_or_default()
            .chars()
            .take_while(|c| c.is_alphanumeric())
            .collect();
        if name.starts_with(|c: char| c.is_ascii_uppercase()) {
            names.push((at + 1, name));
        }
    }
    names
}

/// The crate that a file belongs to.
fn crate_of(path: &str) -> &str {
    ["deploy/local", "deploy/simulator", "tests/bench"]
        .into_iter()
        .find(|name| path.starts_with(name))
        .unwrap_or_else(|| path.split('/').next().unwrap_or_default())
}

#[test]
fn long_functions_separate_their_steps() {
    let (mut long, mut airy, mut commented) = (0, 0, 0);
    let mut offences = Vec::new();

    for file in rust() {
        for function in functions(&file.text) {
            if function.lines < LONG_FUNCTION_LINES {
                continue;
            }
            long += 1;
            let comment = function
                .body
                .lines()
                .any(|line| line.trim_start().starts_with("//"));
            commented += usize::from(comment);

            if function.body.lines().any(|line| line.trim().is_empty()) {
                airy += 1;
            } else {
                offences.push(format!("{}:{} {}", file.path, function.line, function.name));
            }
        }
    }

    println!("long functions: {long}, with a blank line {airy}, with a comment {commented}");
    if airy * 100 < long * AIR_PERCENT {
        none(offences, "long functions without a blank line");
    }
}

#[test]
fn types_have_names_of_two_words() {
    let mut one_word = Vec::new();
    let mut all = 0;

    for file in rust() {
        for (line, name) in declared_types(&file) {
            all += 1;
            if name.chars().filter(char::is_ascii_uppercase).count() < 2 {
                one_word.push(format!("{}:{line} {name}", file.path));
            }
        }
    }

    println!("types: {all}, of one word {}", one_word.len());
    if one_word.len() * 100 > all * ONE_WORD_PERCENT {
        none(one_word, "types with a name of one word");
    }
}

#[test]
fn a_type_name_is_declared_once_in_a_crate() {
    let mut declared: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for file in rust() {
        for (line, name) in declared_types(&file) {
            declared
                .entry((crate_of(&file.path).to_owned(), name))
                .or_default()
                .push(format!("{}:{line}", file.path));
        }
    }

    let offences = declared
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|((_, name), places)| format!("{name}: {}", places.join(", ")))
        .collect();
    none(offences, "type names declared more than once");
}

#[test]
fn docs_begin_with_a_noun_or_a_verb() {
    let mut all = 0;
    let mut offences = Vec::new();

    for file in rust() {
        for (line, word) in doc_openings(&file) {
            all += 1;
            if QUESTION_WORDS.contains(&word.as_str()) {
                offences.push(format!("{}:{line} {word}", file.path));
            }
        }
    }

    println!(
        "doc comments: {all}, with a question word {}",
        offences.len()
    );
    none(
        offences,
        "heads and doc comments that begin with a question word",
    );
}

#[test]
fn prose_avoids_its_banned_turns() {
    // Each has a plain word: after, again, reports, must retry.
    const BANNED: [&str; 6] = [
        "come again",
        "rings the bell",
        "ring the bell",
        " anew",
        "nobody's business",
        "behind the commit",
    ];

    let mut offences = Vec::new();
    for file in rust().iter().filter(|file| !is_test(&file.path)) {
        for (at, line) in file.text.lines().enumerate() {
            for turn in BANNED.iter().filter(|turn| line.contains(**turn)) {
                offences.push(format!("{}:{} \"{}\"", file.path, at + 1, turn.trim()));
            }
        }
    }
    none(offences, "say it in plain words");
}
