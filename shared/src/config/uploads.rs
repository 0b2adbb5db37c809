//! Limits of uploaded files.

/// Columns of an error file beside those of the upload.
pub(crate) const REASON_COLUMN_COUNT: usize = 5;

/// Limits of ingests.
#[derive(Clone, Copy, Debug)]
pub struct IngestLimits {
    /// Size of a file.
    pub max_bytes: u64,
    pub max_rows_per_batch: i64,
    /// Columns that are variables.
    pub max_columns: usize,
    pub max_cell_chars: usize,
    /// Rows of one transaction, rejected ones included.
    pub chunk_rows: usize,
}

impl Default for IngestLimits {
    fn default() -> Self {
        Self {
            max_bytes: 200_000_000,
            max_rows_per_batch: 2_000_000,
            max_columns: 50,
            max_cell_chars: 2_000,
            chunk_rows: 5_000,
        }
    }
}

impl IngestLimits {
    /// Most columns of a file: the variables, the number, the time zone, and the reasons of an
    /// error file.
    pub(crate) fn max_file_columns(&self) -> usize {
        self.max_columns.saturating_add(2 + REASON_COLUMN_COUNT)
    }

    /// Size of a record whose cells are all at their longest, in the widest characters, with quotes
    /// and delimiters.
    pub(crate) fn max_record_bytes(&self) -> usize {
        self.max_cell_chars
            .saturating_mul(4)
            .saturating_add(3)
            .saturating_mul(self.max_file_columns())
    }
}
