//! CSV files that a spreadsheet opens as text. A cell that a spreadsheet would take for a formula
//! begins with an apostrophe; lines end with CRLF (RFC 4180).

use bytes::Bytes;

use crate::platform::error::{Error, Result};

/// Creates a writer into memory.
#[must_use]
pub fn writer() -> csv::Writer<Vec<u8>> {
    csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new())
}

/// Returns the bytes of the file. Writing into memory does not fail in practice.
pub fn finish(csv: csv::Writer<Vec<u8>>) -> Result<Bytes> {
    csv.into_inner()
        .map(Bytes::from)
        .map_err(|error| Error::Unexpected(error.into_error().into()))
}

/// Converts the error of a line that could not be written; always a bug.
#[must_use]
pub fn write_error(error: csv::Error) -> Error {
    Error::Unexpected(error.into())
}

/// Adds an apostrophe in front of a cell that a spreadsheet would run as a formula, or that
/// already has such an apostrophe. A phone number may begin with `+`, as long as nothing but
/// digits and their separators follow.
#[must_use]
pub fn neutralize(cell: &str) -> String {
    let mut chars = cell.trim_start_matches('\'').chars();
    let is_formula = match chars.next() {
        Some('+') => !chars.all(|c| c.is_ascii_digit() || matches!(c, ' ' | '(' | ')' | '.')),
        Some(
            '=' | '-' | '@' | '\t' | '\r' | '\n' | '\u{ff1d}' | '\u{ff0b}' | '\u{ff0d}'
            | '\u{ff20}',
        ) => true,
        _ => false,
    };
    if is_formula {
        format!("'{cell}")
    } else {
        cell.to_owned()
    }
}

/// Reverts [`neutral`].
#[must_use]
pub fn restore(cell: &str) -> &str {
    match cell.strip_prefix('\'') {
        Some(rest) if neutralize(rest) == cell => rest,
        _ => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_a_spreadsheet_would_run_is_made_text() {
        for (cell, expected) in [
            ("=1+1", "'=1+1"),
            ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
            ("+91 98765 432", "+91 98765 432"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "'\r=1"),
            ("\u{ff1d}1", "'\u{ff1d}1"),
            ("'=1+1", "''=1+1"),
            ("'tis", "'tis"),
            ("Asha", "Asha"),
            ("", ""),
        ] {
            assert_eq!(neutralize(cell), expected);
            assert_eq!(restore(expected), cell);
        }
    }
}
