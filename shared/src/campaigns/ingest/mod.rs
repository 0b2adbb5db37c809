//! Ingests: rows added to a batch from a CSV file of any size, or from the records of a request.
//!
//! A file is first *received*: its first bytes are checked, so that a workbook, a compressed file
//! or one without the phone column is refused at once, and it is streamed into the store
//! ([`receive`]). Then it is an `ingests` row ([`create`]) that a job *runs* ([`run_unscoped`]):
//!
//! ```text
//!            first chunk                  end of the file
//!  queued ───────────────▶ running ─────────────────────────▶ completed
//!     │                       │  file cannot be split, batch started, too many rows,
//!     │                       │  or its job is dead
//!     └───────────────────────┴────────────────────────────▶ failed
//! ```
//!
//! Either end removes the file from the store.
//!
//! The file is read in chunks, and each chunk is one transaction: its rows, its rejects, the
//! counts and the checkpoint, which is the place in the file where the next chunk begins. A run
//! that crashes anywhere resumes at the last checkpoint and ends with the same counts; two
//! concurrent runs of one ingest cannot count a row twice, because a chunk is only committed if
//! the checkpoint is still the one it was read from. `total = inserted + duplicates + rejected` is
//! a constraint of the table.
//!
//! A row that cannot be called, or has no value for a variable that the agent uses, is *rejected*
//! with its line, column and reason, and never fails the file; the cells that the batch uses are
//! stored too, so that the error file can be corrected and uploaded. A number that the batch has
//! already is a *duplicate*: a number is called once per batch, so the same file a second time
//! adds nothing. Runs and [`insert_records`] insert rows by the same code, and only while the
//! batch has not started. Variables that the batch or its agent gets after its rows are not
//! checked here but by the start ([`super::readiness`]).
//!
//! Memory is bounded for any file: one slice of it, one record, one chunk.
//!
//! The queue, the response to the uploader and the authorization of uploads are not here.

mod announce;
mod columns;
mod files;
mod give_up;
mod header;
mod reader;
mod receive;
mod records;
mod report;
mod rows;
mod run;
mod write;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

pub use announce::email_result_unscoped;
pub use files::{discard_upload, purge_files_unscoped};
pub use give_up::{give_up_jobless_unscoped, give_up_unscoped};
pub use receive::{StoredUpload, create, receive};
pub use records::{InsertedRows, RowInput, insert_records, update_records};
pub use report::{Ingest, csv_template, find, first_rejects, list, rejects_csv};
pub use rows::RowReject;
pub use run::run_unscoped;

use super::batches;
use super::batches::BatchStatus;
use crate::access::Scope;
use crate::agents;
use crate::config::uploads::IngestLimits;
use crate::platform::e164::Country;
use crate::platform::error::Result;
use crate::platform::ids::{BatchId, IngestId, OrgId, UserId};
use crate::platform::queue::{JobPayload, Queue};

/// The batch that rows are added to, found within the caller's scope.
#[derive(Clone, Debug)]
pub struct IngestTarget {
    pub org: OrgId,
    pub batch: BatchId,
    /// The user who adds the rows.
    pub user: UserId,
    pub variable_names: Vec<String>,
    /// The variables that the agent's texts use: a row without a value for one of them is
    /// rejected, since its call would have a gap in the sentence.
    pub required_variables: Vec<String>,
    /// Country of numbers without a country code.
    pub default_country: Option<Country>,
    /// True when the values of rows are hidden, those of rejected rows included.
    pub is_private: bool,
}

/// Finds the batch to add rows to, within the caller's scope.
///
/// # Errors
/// [`crate::Error::NotFound`], or [`crate::Error::Conflict`] once it has been started, which is
/// checked again when rows are inserted.
pub async fn ingest_target(
    db: &mut PgConnection,
    scope: &Scope,
    batch: BatchId,
    user: UserId,
) -> Result<IngestTarget> {
    let batch = batches::find(db, scope, batch).await?;
    if batch.status != BatchStatus::NotStarted {
        return Err(batches::batch_started_error());
    }

    let facts = sqlx::query!(
        r#"select coalesce(b.default_country, o.default_country) as "default_country: Country",
                  a.first_response_message, a.system_prompt,
                  a.hipaa_compliance or o.hipaa_compliance as "is_private!"
           from call_batches b
           join organizations o on o.id = b.org_id
           join agents a on a.id = b.agent_id
           where b.id = $1"#,
        batch.id as BatchId,
    )
    .fetch_one(db)
    .await?;

    Ok(IngestTarget {
        org: batch.org_id,
        batch: batch.id,
        user,
        required_variables: required_variables(
            [&facts.first_response_message, &facts.system_prompt],
            &batch.variable_names,
        ),
        variable_names: batch.variable_names,
        default_country: facts.default_country,
        is_private: facts.is_private,
    })
}

/// Selects the variables that the agent's texts use. A variable that the batch does not have is
/// not among them: it blocks the launch, not a row.
pub(super) fn required_variables(texts: [&str; 2], variables: &[String]) -> Vec<String> {
    variables
        .iter()
        .filter(|variable| {
            texts
                .into_iter()
                .flat_map(agents::placeholders)
                .any(|name| name == *variable)
        })
        .cloned()
        .collect()
}

/// Job: ingest an uploaded file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IngestCsv {
    pub org_id: OrgId,
    pub ingest_id: IngestId,
}

impl JobPayload for IngestCsv {
    const KIND: &'static str = "ingest_csv";
    const QUEUE: Queue = Queue::Ingest;
    const MAX_ATTEMPTS: i32 = 25;

    fn dedupe_key(&self) -> Option<String> {
        Some(self.ingest_id.to_string())
    }

    fn org(&self) -> Option<OrgId> {
        Some(self.org_id)
    }
}

/// State of an ingest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, utoipa::ToSchema)]
#[schema(as = IngestStatus)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum IngestState {
    Queued,
    Running,
    Completed,
    Failed,
}

/// Numbers of rows by result; the total is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IngestCounts {
    pub total_rows: i64,
    pub inserted: i64,
    pub duplicates: i64,
    pub rejected: i64,
}

/// The reason why an ingest ended early. Rows of the chunks before stay in the batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = IngestFailure)]
pub struct IngestFailure {
    /// A stable, snake_case kind.
    pub code: Cow<'static, str>,
    /// The problem, and how to solve it.
    pub message: String,
}

impl IngestFailure {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
        }
    }
}

/// Result of an ingest that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IngestResult {
    pub counts: IngestCounts,
    pub warnings: Vec<String>,
    /// Set when the ingest failed.
    pub failure: Option<IngestFailure>,
}

#[cfg(test)]
mod tests;
