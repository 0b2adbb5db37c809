//! Rows of the table, their bounds, and the output of both.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::machine;
use crate::machine::Spent;

/// Kind of a bound.
#[derive(Clone, Copy)]
pub enum Must {
    AtLeast(f64),
    AtMost(f64),
}

/// A value with its bound.
pub struct Bound {
    what: &'static str,
    value: f64,
    must: Must,
    unit: &'static str,
}

impl Bound {
    pub fn at_least(what: &'static str, value: f64, least: f64, unit: &'static str) -> Self {
        let must = Must::AtLeast(least);
        Self {
            what,
            value,
            must,
            unit,
        }
    }

    pub fn at_most(what: &'static str, value: f64, most: f64, unit: &'static str) -> Self {
        let must = Must::AtMost(most);
        Self {
            what,
            value,
            must,
            unit,
        }
    }

    fn is_reached(&self) -> bool {
        match self.must {
            Must::AtLeast(least) => self.value >= least,
            Must::AtMost(most) => self.value <= most,
        }
    }

    fn wanted(&self) -> String {
        match self.must {
            Must::AtLeast(least) => format!("{} >= {least}{}", self.what, self.unit),
            Must::AtMost(most) => format!("{} <= {most}{}", self.what, self.unit),
        }
    }
}

/// A line of the table.
pub struct Row {
    pub what: String,
    pub measured: String,
    /// The limit that was measured in the same run.
    pub limit: Option<String>,
    pub ratio: Option<f64>,
    pub bounds: Vec<Bound>,
    /// Processor time during the measurement.
    pub spent: Spent,
    /// Further numbers for the JSON file.
    pub details: Value,
}

impl Row {
    fn missed(&self) -> Vec<&Bound> {
        let missed = |bound: &&Bound| !bound.is_reached();
        self.bounds.iter().filter(missed).collect()
    }

    /// The row in Markdown.
    pub fn line(&self) -> String {
        let ratio = self.ratio.map(|ratio| format!("{ratio:.2}"));
        let wanted: Vec<String> = self.bounds.iter().map(Bound::wanted).collect();
        let missed: Vec<String> = self
            .missed()
            .iter()
            .map(|bound| format!("{} {:.3}{}", bound.what, bound.value, bound.unit))
            .collect();
        let verdict = match missed.is_empty() {
            true => "reached".to_owned(),
            false => format!("**missed**: {}", missed.join(", ")),
        };
        format!(
            "| {} | {} | {} | {} | {} | {verdict} |",
            self.what,
            self.measured,
            self.limit.as_deref().unwrap_or("-"),
            ratio.as_deref().unwrap_or("-"),
            wanted.join(", ")
        )
    }

    fn json(&self) -> Value {
        let bounds: Vec<Value> = self
            .bounds
            .iter()
            .map(|bound| {
                json!({
                    "what": bound.what,
                    "value": bound.value,
                    "must": bound.wanted(),
                    "reached": bound.is_reached(),
                })
            })
            .collect();
        json!({
            "row": self.what,
            "measured": self.measured,
            "limit": self.limit,
            "ratio": self.ratio,
            "bounds": bounds,
            "reached": self.missed().is_empty(),
            "processor_seconds": self.spent.json(),
            "details": self.details,
        })
    }
}

/// The head of the table.
pub const HEAD: &str = "| row | measured | limit beside it | ratio | must reach | |\n\
                        |---|---|---|---|---|---|";

/// Prints the table and writes it as JSON next to the programs; returns the file.
pub fn publish(rows: &[Row], size: &str) -> anyhow::Result<PathBuf> {
    println!("\n{} ({size})\n\n{HEAD}", machine::describe());
    for row in rows {
        println!("{}", row.line());
    }
    let rows: Vec<Value> = rows.iter().map(Row::json).collect();
    let report = json!({"machine": machine::facts(), "size": size, "rows": rows});
    let file = machine::programs()?.join("peal-bench.json");
    std::fs::write(&file, serde_json::to_string_pretty(&report)?)?;
    Ok(file)
}
