//! Mapping of a file's columns, and the reason columns of an error file.

use serde::{Deserialize, Serialize};

use super::header::{PHONE_COLUMN, ZONE_COLUMN};
use super::reader::CsvRecord;
use crate::config::uploads::REASON_COLUMN_COUNT;
use crate::platform::spreadsheet;

/// Columns that an error file has after the row's own, so that it can be corrected and uploaded.
pub(super) const REASON_COLUMNS: [&str; REASON_COLUMN_COUNT] =
    ["line", "column", "value", "code", "message"];

/// Mapping of a file's columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ColumnMap {
    /// The file's names, cleaned.
    pub names: Vec<String>,
    pub phone: usize,
    pub zone: Option<usize>,
    /// Column and variable.
    pub variables: Vec<(usize, String)>,
    /// Index of the first reason column of an error file, whose cells were neutralised.
    // Left out when none: runs compare checkpoints, also with those of other versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasons: Option<usize>,
}

impl ColumnMap {
    /// Returns a record's cell; empty when the record is too short or the cell is not UTF-8.
    pub fn cell<'a>(&self, record: CsvRecord<'a>, column: usize) -> &'a str {
        let cell = record.field(column).unwrap_or_default();
        match self.reasons {
            Some(_) => spreadsheet::restore(cell),
            None => cell,
        }
    }

    /// True for a column with the reason why an earlier upload rejected the row.
    pub fn is_reason(&self, column: usize) -> bool {
        is_reason(self.reasons, column)
    }

    /// Columns that an error file repeats, with their names there.
    pub fn error_file_columns(&self) -> impl Iterator<Item = (usize, &str)> {
        let variables = self.variables.iter();
        std::iter::once((self.phone, PHONE_COLUMN))
            .chain(self.zone.map(|column| (column, ZONE_COLUMN)))
            .chain(variables.map(|(column, name)| (*column, name.as_str())))
    }
}

/// Finds the first reason column of an error file: the last index at which all their names follow
/// each other, unless they are variables that the file has nowhere else.
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

/// True for a column that is one of the reasons from that index on.
pub(super) fn is_reason(reasons: Option<usize>, column: usize) -> bool {
    reasons.is_some_and(|at| (at..at.saturating_add(REASON_COLUMNS.len())).contains(&column))
}
