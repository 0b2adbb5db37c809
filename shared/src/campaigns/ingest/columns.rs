//! Which column of a file is what, and the columns by which an error file says why it refused rows.

use serde::{Deserialize, Serialize};

use super::header::{PHONE_COLUMN, ZONE_COLUMN};
use super::reader::Record;
use crate::spreadsheet;

/// What an error file says of each row behind its own columns, so that it can be put right and
/// uploaded.
pub(super) const REASON_COLUMNS: [&str; 5] = ["line", "column", "value", "code", "message"];

/// Which column is what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Columns {
    /// The names as the file has them, cleaned.
    pub names: Vec<String>,
    pub phone: usize,
    pub zone: Option<usize>,
    /// Column and variable.
    pub variables: Vec<(usize, String)>,
    /// Where the reasons of an error file begin. Its cells were neutralised.
    // Left out when there are none: runs compare checkpoints, also with those of other versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasons: Option<usize>,
}

impl Columns {
    /// What a record says under a column; empty when it is too short, or no text.
    pub fn cell<'a>(&self, record: Record<'a>, column: usize) -> &'a str {
        let cell = record.field(column).unwrap_or_default();
        match self.reasons {
            Some(_) => spreadsheet::original(cell),
            None => cell,
        }
    }

    /// Whether a column says why an earlier upload refused the row.
    pub fn is_reason(&self, column: usize) -> bool {
        is_reason(self.reasons, column)
    }

    /// Those that an error file repeats, by their names there.
    pub fn repeated(&self) -> impl Iterator<Item = (usize, &str)> {
        let variables = self.variables.iter();
        std::iter::once((self.phone, PHONE_COLUMN))
            .chain(self.zone.map(|column| (column, ZONE_COLUMN)))
            .chain(variables.map(|(column, name)| (*column, name.as_str())))
    }
}

/// Where an error file's reasons begin: the last place where their names stand side by side,
/// unless these are variables that the file has nowhere else.
pub(super) fn find_reasons(names: &[String], variables: &[String]) -> Option<usize> {
    let is_variable = |name: &&str| variables.iter().any(|variable| variable == name);
    let at = names
        .windows(REASON_COLUMNS.len())
        .rposition(|part| part == REASON_COLUMNS)?;
    let elsewhere = names.get(..at)?;
    let are_variables = REASON_COLUMNS.iter().all(is_variable)
        && !elsewhere
            .iter()
            .any(|name| REASON_COLUMNS.contains(&name.as_str()));
    (!are_variables).then_some(at)
}

/// Whether a column is one of the reasons that begin there.
pub(super) fn is_reason(reasons: Option<usize>, column: usize) -> bool {
    reasons.is_some_and(|at| (at..at.saturating_add(REASON_COLUMNS.len())).contains(&column))
}
