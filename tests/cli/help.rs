//! The `--help` of the programs.

use std::process::Command;

use crate::harness::cluster::built_program;

/// Prints a program's help, without settings in the environment.
fn help_of(program: &str, command: &[&str]) -> String {
    let printed = Command::new(built_program(program))
        .args(command)
        .arg("--help")
        .env_clear()
        .output()
        .expect("run");
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).expect("text")
}

/// Position of a line that begins with these words.
fn line_of(help: &str, words: &str) -> usize {
    help.lines()
        .position(|line| line.trim_start().starts_with(words))
        .unwrap_or_else(|| panic!("no line begins with {words}:\n{help}"))
}

#[test]
fn a_worker_takes_no_commands() {
    let help = help_of("peal-worker", &[]);

    let usage = help.lines().find(|line| line.starts_with("Usage:"));
    assert_eq!(usage, Some("Usage: peal-worker [OPTIONS]"));
    assert!(!help.contains("Commands:"), "{help}");
    assert!(line_of(&help, "--roles") < line_of(&help, "Settings:"));
}

#[test]
fn a_command_shows_its_own_options_before_the_settings() {
    let help = help_of("peal-api", &["admin", "user", "create"]);

    let lines = [
        "Options:",
        "--email",
        "--role",
        "Settings:",
        "--database-url",
        "--database-pool",
        "--redis-url",
        "--limit-reads",
        "--egress-http",
    ]
    .map(|words| line_of(&help, words));
    assert!(lines.is_sorted(), "{lines:?}\n{help}");
}

#[test]
fn admin_lists_its_nouns_and_each_noun_its_verbs() {
    let nouns: [(&str, &[&str]); 8] = [
        ("user", &["create"]),
        ("key", &["rotate"]),
        ("queue", &["list", "pause", "resume"]),
        ("job", &["list", "retry"]),
        ("trunk", &["list", "resume"]),
        ("number", &["list"]),
        ("wallet", &["list"]),
        ("ledger", &["verify"]),
    ];

    let admin = help_of("peal-api", &["admin"]);
    for (noun, verbs) in nouns {
        line_of(&admin, noun);
        let help = help_of("peal-api", &["admin", noun]);
        for verb in verbs {
            line_of(&help, verb);
        }
    }
}
