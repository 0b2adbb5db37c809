//! Rows as columns: a statement takes many rows as one array per column, which the database
//! does not have to parse like a document.

/// Collects one column of the rows.
pub(crate) fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}
