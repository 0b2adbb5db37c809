//! Rows as columns: statements take many rows as one array for each column, which the database
//! need not parse as it would a document.

/// One column of rows.
pub(crate) fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}
