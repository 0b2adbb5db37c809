//! Report of an upload.

use chrono::{DateTime, Utc};
use peal_shared::Error;
use peal_shared::campaigns::ingest::{Ingest, IngestFailure, IngestState, RowReject, StoredUpload};
use peal_shared::platform::ids::IngestId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::batches::BATCH_CALL_PATH;

/// Result of an upload. The total is `inserted + duplicates + failed`.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = Report, example = json!({
    "ingest_id": "0197d7a5-3c1e-7a10-8f00-000000000010", "ingest_job_id": "0197d7a5-3c1e-7a10-8f00-000000000010",
    "file_name": "people.csv", "file_bytes": 24071, "bytes_read": 24071, "status": "completed",
    "total_rows": 1000, "inserted": 998, "updated": 0, "failed": 1, "duplicates": 1, "warnings": [],
    "errors": [{
        "row": 17, "column": "to_phonenumber", "value": "12", "code": "too_short",
        "message": "the number is too short"
    }],
    "error_report_url": "/api/v1/batch-call/0197d7a5-3c1e-7a10-8f00-0c5d1f2e3a4b/ingests/0197d7a5-3c1e-7a10-8f00-000000000010/errors",
    "failure": null, "created_at": "2026-03-01T09:00:00Z", "finished_at": "2026-03-01T09:00:01Z"
}))]
pub struct UploadReport {
    /// Null for records, which have no ingest.
    pub ingest_id: Option<IngestId>,
    /// Same as `ingest_id`, under the contract's name.
    pub ingest_job_id: Option<IngestId>,
    pub file_name: Option<String>,
    pub file_bytes: Option<i64>,
    /// Bytes of the file whose rows are added; all of them in the end.
    pub bytes_read: Option<i64>,
    pub status: IngestState,
    pub total_rows: i64,
    pub inserted: i64,
    pub updated: i64,
    pub failed: i64,
    pub duplicates: i64,
    pub warnings: Vec<String>,
    /// The first hundred; the error report has all. They have no values in a response that is
    /// replayed under its `Idempotency-Key`.
    pub errors: Vec<RowReject>,
    pub error_report_url: Option<String>,
    pub failure: Option<IngestFailure>,
    pub created_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

impl UploadReport {
    /// Report of an ingest.
    pub fn from_ingest(ingest: Ingest, errors: Vec<RowReject>) -> Self {
        Self {
            ingest_id: Some(ingest.id),
            ingest_job_id: Some(ingest.id),
            file_name: Some(ingest.file_name),
            file_bytes: Some(ingest.file_bytes),
            bytes_read: Some(ingest.bytes_read),
            status: ingest.state,
            total_rows: ingest.counts.total_rows,
            inserted: ingest.counts.inserted,
            updated: 0,
            failed: ingest.counts.rejected,
            duplicates: ingest.counts.duplicates,
            warnings: ingest.warnings,
            errors,
            error_report_url: (ingest.counts.rejected > 0).then(|| {
                format!(
                    "{BATCH_CALL_PATH}/{}/ingests/{}/errors",
                    ingest.batch_id, ingest.id
                )
            }),
            failure: ingest.failure,
            created_at: Some(ingest.created_at),
            finished_at: ingest.finished_at,
        }
    }

    /// Report of an upload before its ingest has begun.
    pub fn queued(upload: &StoredUpload) -> Self {
        Self {
            ingest_id: Some(upload.ingest),
            ingest_job_id: Some(upload.ingest),
            file_name: Some(upload.file_name.clone()),
            file_bytes: i64::try_from(upload.bytes).ok(),
            bytes_read: Some(0),
            status: IngestState::Queued,
            total_rows: 0,
            inserted: 0,
            updated: 0,
            failed: 0,
            duplicates: 0,
            warnings: upload.warnings.clone(),
            errors: Vec::new(),
            error_report_url: None,
            failure: None,
            created_at: None,
            finished_at: None,
        }
    }

    /// Copy without the rows' values, stored for days under an `Idempotency-Key`: the batch may
    /// become private meanwhile.
    pub fn without_values(&self) -> Self {
        let mut copy = self.clone();
        for error in &mut copy.errors {
            error.value.clear();
        }
        copy
    }

    /// One-line summary.
    pub fn summary(&self) -> String {
        format!(
            "{} rows: {} added, {} duplicates, {} rejected",
            self.total_rows, self.inserted, self.duplicates, self.failed
        )
    }

    /// Error of a failed ingest.
    pub fn to_error(&self) -> Error {
        let why = self
            .failure
            .as_ref()
            .map(|failure| failure.message.as_str());
        Error::rejected(
            "ingest_failed",
            format!(
                "{} ({} rows were added before it)",
                why.unwrap_or("the file could not be read"),
                self.inserted
            ),
        )
    }
}
