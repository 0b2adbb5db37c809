//! Runs an ingest: reads the stored file chunk by chunk, from the last checkpoint on.

use bytes::Bytes;
use futures::stream::{Stream, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::columns::ColumnMap;
use super::give_up::fail_ingest;
use super::header::{FileHeader, HEAD_BYTES};
use super::reader::{CsvParser, FilePosition, RecordStream};
use super::rows::{ParsedRow, RejectedRow, RowRules};
use super::write::ZoneIds;
use super::{
    IngestCounts, IngestFailure, IngestLimits, IngestResult, IngestState, files, header, write,
};
use crate::platform::e164::Country;
use crate::platform::error::{Error, Result};
use crate::platform::failpoint;
use crate::platform::ids::{BatchId, IngestId, OrgId};
use crate::platform::store::FileStore;

/// Bytes of variables and rejected rows at which a chunk ends early.
const MAX_CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Records after which a run yields its thread to other tasks.
const RECORDS_BETWEEN_YIELDS: usize = 250;

/// Parameters to resume a run after the last committed chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct IngestCheckpoint {
    place: FilePosition,
    delimiter: u8,
    columns: ColumnMap,
}

/// An ingest, as loaded from the database.
struct LoadedIngest {
    id: IngestId,
    org: OrgId,
    batch: BatchId,
    file_key: String,
    state: IngestState,
    checkpoint: Option<IngestCheckpoint>,
    finished: IngestResult,
    variables: Vec<String>,
    /// As in [`super::Target`].
    required_variables: Vec<String>,
    default_country: Option<Country>,
    is_private: bool,
}

/// Result of a chunk's transaction.
enum CommitResult {
    Committed,
    /// Another run has moved the checkpoint, or has ended the ingest.
    Overtaken,
    Refused(IngestFailure),
}

/// Runs an ingest to its end, or until `stop`. A job has no principal, so this takes no scope: the
/// upload was authorised.
///
/// # Errors
/// [`Error::NotFound`] when the ingest was deleted with its batch. Everything else is retryable,
/// including [`Error::Busy`] after `stop`: the next run resumes. An unreadable file, or a batch
/// that has started, is not an error but a failure in [`Finished`].
pub async fn run_unscoped(
    pool: &PgPool,
    store: &FileStore,
    limits: &IngestLimits,
    ingest: IngestId,
    stop: &CancellationToken,
) -> Result<IngestResult> {
    let mut file_key: Option<String> = None;
    loop {
        let job = match (load_ingest(pool, ingest).await, file_key) {
            // The batch was deleted with the ingest after the last chunk.
            (Err(Error::NotFound(noun)), Some(file_key)) => {
                files::remove_file(pool, store, ingest, &file_key).await?;
                return Err(Error::NotFound(noun));
            }
            (job, _) => job?,
        };

        if matches!(job.state, IngestState::Completed | IngestState::Failed) {
            files::remove_file(pool, store, ingest, &job.file_key).await?;
            return Ok(job.finished);
        }

        if let Err(failure) = Box::pin(ingest_file(pool, store, limits, &job, stop)).await? {
            fail_ingest(&mut *pool.acquire().await?, ingest, &failure).await?;
        }
        file_key = Some(job.file_key);
    }
}

/// Ingests the file until it ends, fails, or another run has overtaken this one.
async fn ingest_file(
    pool: &PgPool,
    store: &FileStore,
    limits: &IngestLimits,
    job: &LoadedIngest,
    stop: &CancellationToken,
) -> Result<Result<(), IngestFailure>> {
    // 1. Open the file at the checkpoint.
    let checkpoint = match &job.checkpoint {
        Some(checkpoint) => checkpoint.clone(),
        None => match begin_ingest(pool, store, limits, job).await? {
            Ok(checkpoint) => checkpoint,
            Err(failure) => return Ok(Err(failure)),
        },
    };
    let parser = CsvParser::new(
        checkpoint.delimiter,
        checkpoint.place,
        limits.max_file_columns(),
        limits,
    );
    let file = store.read(&job.file_key, checkpoint.place.offset);
    let mut records = RecordStream::new(file, parser);
    let mut zone_ids = ZoneIds::new();
    let rules = RowRules {
        limits,
        required_variables: &job.required_variables,
        default_country: job.default_country,
    };

    // 2. Read and commit chunk after chunk.
    let mut from = checkpoint;
    loop {
        if stop.is_cancelled() {
            return Err(Error::Busy(
                "the ingest was stopped; its next run resumes after the last chunk".into(),
            ));
        }

        let chunk = match RowChunk::read(&mut records, &from.columns, rules).await {
            Ok(chunk) => chunk,
            Err(Error::NotFound(_)) => return Ok(Err(file_missing())),
            Err(error) => return Err(error),
        };

        write::resolve_zones(&mut *pool.acquire().await?, &chunk.rows, &mut zone_ids).await?;
        let to = IngestCheckpoint {
            place: records.parser.place(),
            ..from.clone()
        };

        let (write, end) = ChunkWrite::new(job, chunk, &zone_ids, (&from, &to))?;
        match write.commit_in_task(pool, limits).await? {
            CommitResult::Committed => from = to,
            CommitResult::Overtaken => return Ok(Ok(())),
            CommitResult::Refused(failure) => return Ok(Err(failure)),
        }
        match end {
            ChunkEnd::Full => {}
            ChunkEnd::EndOfFile => return Ok(Ok(())),
            ChunkEnd::Fault(failure) => return Ok(Err(failure)),
        }
    }
}

async fn load_ingest(pool: &PgPool, ingest: IngestId) -> Result<LoadedIngest> {
    let row = sqlx::query!(
        r#"select i.org_id as "org_id: OrgId", i.batch_id as "batch_id: BatchId", i.file_key,
                  i.state as "state: IngestState", i.checkpoint, i.total_rows, i.inserted,
                  i.duplicates, i.rejected, i.warnings, i.failure_code, i.failure_message,
                  b.variable_names, a.first_response_message, a.system_prompt,
                  a.hipaa_compliance or o.hipaa_compliance as "is_private!",
                  coalesce(b.default_country, o.default_country) as "default_country: Country"
         from ingests i
         join call_batches b on b.id = i.batch_id
         join agents a on a.id = b.agent_id
         join organizations o on o.id = i.org_id
         where i.id = $1"#,
        ingest as IngestId,
    )
    .fetch_optional(pool)
    .await?
    .ok_or(Error::NotFound("Ingest"))?;

    let failure = row.failure_code.map(|code| IngestFailure {
        code: code.into(),
        message: row.failure_message.unwrap_or_default(),
    });

    Ok(LoadedIngest {
        id: ingest,
        org: row.org_id,
        batch: row.batch_id,
        file_key: row.file_key,
        state: row.state,
        checkpoint: row.checkpoint.map(serde_json::from_value).transpose()?,
        finished: IngestResult {
            counts: IngestCounts {
                total_rows: row.total_rows,
                inserted: row.inserted,
                duplicates: row.duplicates,
                rejected: row.rejected,
            },
            warnings: row.warnings,
            failure,
        },
        required_variables: super::required_variables(
            [&row.first_response_message, &row.system_prompt],
            &row.variable_names,
        ),
        variables: row.variable_names,
        default_country: row.default_country,
        is_private: row.is_private,
    })
}

/// Reads the header and writes the first checkpoint, unless another run was faster.
async fn begin_ingest(
    pool: &PgPool,
    store: &FileStore,
    limits: &IngestLimits,
    job: &LoadedIngest,
) -> Result<Result<IngestCheckpoint, IngestFailure>> {
    // 1. Read the header.
    let head = match read_head(store, &job.file_key).await {
        Ok(head) => head,
        Err(Error::NotFound(_)) => return Ok(Err(file_missing())),
        Err(error) => return Err(error),
    };
    let FileHeader {
        delimiter,
        place,
        columns,
        warnings,
    } = match header::read_header(&head, &job.variables, limits) {
        Ok(opening) => opening,
        Err(failure) => return Ok(Err(failure)),
    };

    // 2. Write the first checkpoint, unless another run has written one; then this run is
    // overtaken at its first commit.
    let checkpoint = IngestCheckpoint {
        place,
        delimiter,
        columns,
    };
    sqlx::query!(
        "update ingests
         set state = 'running',
             started_at = coalesce(started_at, now()),
             checkpoint = $2,
             warnings = $3
         where id = $1
           and state in ('queued', 'running')
           and checkpoint is null",
        job.id as IngestId,
        serde_json::to_value(&checkpoint)?,
        &warnings,
    )
    .execute(pool)
    .await?;
    Ok(Ok(checkpoint))
}

async fn read_head(store: &FileStore, key: &str) -> Result<Vec<u8>> {
    let mut file = store.read(key, 0);
    let mut head = Vec::new();
    while head.len() < HEAD_BYTES {
        match file.try_next().await? {
            Some(bytes) => head.extend_from_slice(&bytes),
            None => break,
        }
    }
    head.truncate(HEAD_BYTES);
    Ok(head)
}

fn file_missing() -> IngestFailure {
    IngestFailure::new(
        "file_missing",
        "the uploaded file is no longer in the store; upload it again: rows that were added already count as duplicates",
    )
}

/// Rows of one transaction.
struct RowChunk {
    rows: Vec<ParsedRow>,
    rejects: Vec<RejectedRow>,
    end: ChunkEnd,
}

/// The reason why a chunk ends.
enum ChunkEnd {
    Full,
    EndOfFile,
    Fault(IngestFailure),
}

impl RowChunk {
    async fn read<S>(
        records: &mut RecordStream<S>,
        columns: &ColumnMap,
        rules: RowRules<'_>,
    ) -> Result<Self>
    where
        S: Stream<Item = Result<Bytes>> + Unpin,
    {
        let mut chunk = Self {
            rows: Vec::new(),
            rejects: Vec::new(),
            end: ChunkEnd::Full,
        };
        let mut bytes = 0;
        let mut read = 0_usize;

        while chunk.rows.len() + chunk.rejects.len() < rules.limits.chunk_rows
            && bytes < MAX_CHUNK_BYTES
        {
            match records.advance().await? {
                Ok(true) => {}
                Ok(false) => {
                    chunk.end = ChunkEnd::EndOfFile;
                    break;
                }
                Err(fault) => {
                    chunk.end = ChunkEnd::Fault(fault.into());
                    break;
                }
            }

            let record = records.parser.record();
            match rules.parse_record(columns, record) {
                Ok(Some(row)) => {
                    bytes += row.variables.len();
                    chunk.rows.push(row);
                }
                Ok(None) => {}
                Err(reject) => {
                    let rejected = RejectedRow::new(reject, columns, record, rules.limits);
                    bytes += rejected.approximate_bytes();
                    chunk.rejects.push(rejected);
                }
            }

            read += 1;
            if read.is_multiple_of(RECORDS_BETWEEN_YIELDS) {
                tokio::task::yield_now().await;
            }
        }

        Ok(chunk)
    }
}

/// A chunk, ready to be committed, with the checkpoint it was read from.
struct ChunkWrite {
    ingest: IngestId,
    org: OrgId,
    batch: BatchId,
    rows: i64,
    copy_data: Vec<u8>,
    rejects: Vec<RejectedRow>,
    is_last: bool,
    from: IngestCheckpoint,
    to: Value,
}

impl ChunkWrite {
    fn new(
        job: &LoadedIngest,
        chunk: RowChunk,
        zone_ids: &ZoneIds,
        (from, to): (&IngestCheckpoint, &IngestCheckpoint),
    ) -> Result<(Self, ChunkEnd)> {
        let write = Self {
            ingest: job.id,
            org: job.org,
            batch: job.batch,
            rows: i64::try_from(chunk.rows.len()).unwrap_or(i64::MAX),
            copy_data: write::copy_data(&chunk.rows, zone_ids),
            rejects: chunk
                .rejects
                .into_iter()
                .map(|rejected| rejected.redact_if_private(job.is_private))
                .collect(),
            is_last: matches!(chunk.end, ChunkEnd::EndOfFile),
            from: from.clone(),
            to: serde_json::to_value(to)?,
        };
        Ok((write, chunk.end))
    }

    /// Commits in a task of its own, so that a dropped run does not interrupt a COPY; see
    /// [`write`].
    async fn commit_in_task(self, pool: &PgPool, limits: &IngestLimits) -> Result<CommitResult> {
        let (pool, limits) = (pool.clone(), *limits);
        let task = async move { self.commit(&pool, &limits).await };
        tokio::spawn(task.in_current_span())
            .await
            .map_err(|panic| Error::Unexpected(panic.into()))?
    }

    /// Inserts the chunk into the batch and moves the checkpoint, or does neither.
    async fn commit(self, pool: &PgPool, limits: &IngestLimits) -> Result<CommitResult> {
        let mut tx = pool.begin().await?;

        // 1. Lock the batch, then the ingest.
        let next_row_no = match write::lock_batch(&mut tx, self.org, self.batch).await {
            Ok(next_row_no) => next_row_no,
            Err(Error::Conflict { code, detail }) => {
                return Ok(CommitResult::Refused(IngestFailure::new(code, detail)));
            }
            Err(error) => return Err(error),
        };
        let ingest = sqlx::query!(
            r#"select state as "state: IngestState", checkpoint
             from ingests
             where id = $1
             for no key update"#,
            self.ingest as IngestId,
        )
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(Error::NotFound("Ingest"))?;

        // 2. Stop unless the checkpoint is still the one this chunk was read from. Values are
        // compared, since other versions may serialise them differently.
        let checkpoint = ingest.checkpoint.map(serde_json::from_value).transpose()?;
        if ingest.state != IngestState::Running || checkpoint != Some(self.from.clone()) {
            return Ok(CommitResult::Overtaken);
        }

        // 3. Insert rows and rejects.
        let mut inserted = 0;
        if self.rows > 0 {
            write::stage_by_copy(&mut tx, &self.copy_data).await?;
            let to = (self.org, self.batch);
            match write::insert_staged(&mut tx, to, next_row_no, self.rows, limits).await? {
                Ok(rows) => inserted = rows,
                Err(failure) => return Ok(CommitResult::Refused(failure)),
            }
        }
        write::insert_rejects(&mut tx, self.ingest, &self.rejects).await?;

        // 4. Move the counts and the checkpoint, and commit.
        self.advance_ingest(&mut tx, inserted).await?;
        failpoint::hit("ingest.uncommitted");
        tx.commit().await?;
        failpoint::hit("ingest.committed");
        Ok(CommitResult::Committed)
    }

    async fn advance_ingest(&self, db: &mut PgConnection, inserted: i64) -> Result<()> {
        sqlx::query!(
            "update ingests
             set total_rows = total_rows + $2 + $4,
                 inserted = inserted + $3,
                 duplicates = duplicates + $2 - $3,
                 rejected = rejected + $4,
                 checkpoint = $5,
                 state = case when $6 then 'completed' else state end,
                 finished_at = case when $6 then now() end
             where id = $1",
            self.ingest as IngestId,
            self.rows,
            inserted,
            i64::try_from(self.rejects.len()).unwrap_or(i64::MAX),
            self.to,
            self.is_last,
        )
        .execute(db)
        .await?;
        Ok(())
    }
}
