//! Rows of the table, their bounds, and the output of both.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::machine;
use crate::machine::CpuUsage;

/// Kind of a bound.
#[derive(Clone, Copy)]
pub enum BoundKind {
    AtLeast(f64),
    AtMost(f64),
}

/// A value with its bound.
pub struct ResultBound {
    name: &'static str,
    value: f64,
    kind: BoundKind,
    unit: &'static str,
}

impl ResultBound {
    pub fn at_least(name: &'static str, value: f64, least: f64, unit: &'static str) -> Self {
        let kind = BoundKind::AtLeast(least);
        Self {
            name,
            value,
            kind,
            unit,
        }
    }

    pub fn at_most(name: &'static str, value: f64, most: f64, unit: &'static str) -> Self {
        let kind = BoundKind::AtMost(most);
        Self {
            name,
            value,
            kind,
            unit,
        }
    }

    fn is_reached(&self) -> bool {
        match self.kind {
            BoundKind::AtLeast(least) => self.value >= least,
            BoundKind::AtMost(most) => self.value <= most,
        }
    }

    fn requirement(&self) -> String {
        match self.kind {
            BoundKind::AtLeast(least) => format!("{} >= {least}{}", self.name, self.unit),
            BoundKind::AtMost(most) => format!("{} <= {most}{}", self.name, self.unit),
        }
    }
}

/// A line of the table.
pub struct BenchRow {
    pub label: String,
    pub measured: String,
    /// The limit that was measured in the same run.
    pub limit: Option<String>,
    pub ratio: Option<f64>,
    pub bounds: Vec<ResultBound>,
    /// Processor time during the measurement.
    pub cpu: CpuUsage,
    /// Further numbers for the JSON file.
    pub details: Value,
}

impl BenchRow {
    fn missed(&self) -> Vec<&ResultBound> {
        let missed = |bound: &&ResultBound| !bound.is_reached();
        self.bounds.iter().filter(missed).collect()
    }

    /// The row in Markdown.
    pub fn markdown_line(&self) -> String {
        let ratio = self.ratio.map(|ratio| format!("{ratio:.2}"));
        let wanted: Vec<String> = self.bounds.iter().map(ResultBound::requirement).collect();
        let missed: Vec<String> = self
            .missed()
            .iter()
            .map(|bound| format!("{} {:.3}{}", bound.name, bound.value, bound.unit))
            .collect();
        let verdict = match missed.is_empty() {
            true => "reached".to_owned(),
            false => format!("**missed**: {}", missed.join(", ")),
        };
        format!(
            "| {} | {} | {} | {} | {} | {verdict} |",
            self.label,
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
                    "what": bound.name,
                    "value": bound.value,
                    "must": bound.requirement(),
                    "reached": bound.is_reached(),
                })
            })
            .collect();
        json!({
            "row": self.label,
            "measured": self.measured,
            "limit": self.limit,
            "ratio": self.ratio,
            "bounds": bounds,
            "reached": self.missed().is_empty(),
            "processor_seconds": self.cpu.json(),
            "details": self.details,
        })
    }
}

/// The head of the table.
pub const TABLE_HEAD: &str = "| row | measured | limit beside it | ratio | must reach | |\n\
                        |---|---|---|---|---|---|";

/// Prints the table and writes it as JSON next to the programs; returns the file.
pub fn publish(rows: &[BenchRow], size: &str) -> anyhow::Result<PathBuf> {
    println!("\n{} ({size})\n\n{TABLE_HEAD}", machine::describe());
    for row in rows {
        println!("{}", row.markdown_line());
    }
    let rows: Vec<Value> = rows.iter().map(BenchRow::json).collect();
    let report = json!({"machine": machine::machine_facts(), "size": size, "rows": rows});
    let file = machine::programs()?.join("peal-bench.json");
    std::fs::write(&file, serde_json::to_string_pretty(&report)?)?;
    Ok(file)
}
