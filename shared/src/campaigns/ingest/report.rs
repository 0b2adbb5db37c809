//! Reports of a batch's ingests for its owner.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream;
use futures::stream::{Stream, StreamExt as _};
use serde::Serialize;
use sqlx::PgPool;

use super::columns::{ColumnMap, REASON_COLUMNS};
use super::header::PHONE_COLUMN;
use super::rows::RejectedRow;
use super::{IngestCounts, IngestFailure, IngestState, RowReject};
use crate::access::{Scope, row_level_security};
use crate::platform::error::{Error, Result};
use crate::platform::ids::{BatchId, IngestId, OrgId, UserId};
use crate::platform::page::{Page, PageSlice};
use crate::platform::spreadsheet;
use crate::platform::spreadsheet::{neutralize, write_error};

/// Rejects per slice of the error file, and about how many bytes of their cells.
const PAGE_ROWS: i64 = 1_000;
const PAGE_BYTES: i64 = 1_000_000;

/// One upload and its result.
#[derive(Clone, Debug, Serialize)]
pub struct Ingest {
    pub id: IngestId,
    pub batch_id: BatchId,
    pub file_name: String,
    pub file_bytes: i64,
    /// Bytes of the committed chunks; the whole file in the end.
    pub bytes_read: i64,
    pub state: IngestState,
    #[serde(flatten)]
    pub counts: IngestCounts,
    pub warnings: Vec<String>,
    pub failure: Option<IngestFailure>,
    /// True when the uploader gets an email at its end.
    pub notify: bool,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
}

/// An ingest's row.
struct IngestRow {
    id: IngestId,
    batch_id: BatchId,
    file_name: String,
    file_bytes: i64,
    bytes_read: i64,
    state: IngestState,
    total_rows: i64,
    inserted: i64,
    duplicates: i64,
    rejected: i64,
    warnings: Vec<String>,
    failure_code: Option<String>,
    failure_message: Option<String>,
    notify: bool,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

impl From<IngestRow> for Ingest {
    fn from(row: IngestRow) -> Self {
        Self {
            id: row.id,
            batch_id: row.batch_id,
            file_name: row.file_name,
            file_bytes: row.file_bytes,
            bytes_read: row.bytes_read,
            state: row.state,
            counts: IngestCounts {
                total_rows: row.total_rows,
                inserted: row.inserted,
                duplicates: row.duplicates,
                rejected: row.rejected,
            },
            warnings: row.warnings,
            failure: row.failure_code.map(|code| IngestFailure {
                code: code.into(),
                message: row.failure_message.unwrap_or_default(),
            }),
            notify: row.notify,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        }
    }
}

/// Finds an ingest of a batch within the scope.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn find(
    pool: &PgPool,
    scope: &Scope,
    batch: BatchId,
    ingest: IngestId,
) -> Result<Ingest> {
    let mut found = load_ingests(pool, scope, batch, Some(ingest), Page::WHOLE).await?;
    found.rows.pop().ok_or(Error::NotFound("Ingest"))
}

/// Lists the newest ingests of a batch; none when the batch is outside the scope.
pub async fn list(
    pool: &PgPool,
    scope: &Scope,
    batch: BatchId,
    page: Page,
) -> Result<PageSlice<Ingest>> {
    load_ingests(pool, scope, batch, None, page).await
}

async fn load_ingests(
    pool: &PgPool,
    scope: &Scope,
    batch: BatchId,
    ingest: Option<IngestId>,
    page: Page,
) -> Result<PageSlice<Ingest>> {
    let mut db = row_level_security::begin(pool, scope).await?;

    let rows = sqlx::query_as!(
        IngestRow,
        r#"select i.id as "id: IngestId", i.batch_id as "batch_id: BatchId", i.file_name, i.file_bytes,
                  coalesce((i.checkpoint -> 'place' ->> 'offset')::bigint, 0) as "bytes_read!",
                  i.state as "state: IngestState", i.total_rows, i.inserted, i.duplicates, i.rejected,
                  i.warnings, i.failure_code, i.failure_message, i.notify, i.created_at,
                  i.started_at, i.finished_at
         from ingests i
         join call_batches b on b.id = i.batch_id
         where i.batch_id = $1
           and ($2::uuid is null or i.id = $2)
           and ($3::uuid is null or b.org_id = $3)
           and ($4::uuid is null or b.user_id = $4)
         order by i.created_at desc, i.id desc
         limit $5
         offset $6"#,
        batch as BatchId,
        ingest as Option<IngestId>,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        page.limit(),
        page.offset(),
    )
    .fetch_all(&mut *db)
    .await?;

    Ok(page.slice(rows.into_iter().map(Ingest::from).collect()))
}

/// Lists the first rejects of an ingest by line; none when the ingest is outside the scope.
pub async fn first_rejects(
    pool: &PgPool,
    scope: &Scope,
    ingest: IngestId,
    limit: i64,
) -> Result<Vec<RowReject>> {
    let rejected = rejects_after(pool, scope, ingest, (0, limit), CellLimit::Omitted).await?;
    Ok(rejected.into_iter().map(|row| row.reject).collect())
}

/// Limit on the cells that a query loads: those of one row are up to 400 KB.
#[derive(Clone, Copy)]
enum CellLimit {
    Omitted,
    /// At least one row's cells, then at most this many bytes.
    MaxBytes(i64),
}

async fn rejects_after(
    pool: &PgPool,
    scope: &Scope,
    ingest: IngestId,
    (line, limit): (i64, i64),
    cells: CellLimit,
) -> Result<Vec<RejectedRow>> {
    let most_bytes = match cells {
        CellLimit::Omitted => None,
        CellLimit::MaxBytes(bytes) => Some(bytes),
    };
    let mut db = row_level_security::begin(pool, scope).await?;

    let rows = sqlx::query!(
        r#"with behind as materialized (
             select r.line, coalesce(octet_length(r.cells::text), 0) as bytes
             from ingest_rejects r
             where r.ingest_id = $1
               and r.line > $4
             order by r.line
             limit $5
         ), measured as (
             select line, sum(bytes) over (order by line) - bytes as bytes_before
             from behind
         )
         select r.line, r.column_name, case when p.private then '' else r.value end as "value!",
                r.code, r.message,
                array(select jsonb_array_elements_text(
                    case when $6::bigint is not null and not p.private then r.cells end)) as "cells!"
         from ingests i
         join call_batches b on b.id = i.batch_id
         join agents a on a.id = b.agent_id
         join organizations o on o.id = b.org_id
         join measured m on $6::bigint is null or m.bytes_before < $6
         join ingest_rejects r on r.ingest_id = i.id and r.line = m.line
         cross join lateral (select a.hipaa_compliance or o.hipaa_compliance as private) p
         where i.id = $1
           and ($2::uuid is null or b.org_id = $2)
           and ($3::uuid is null or b.user_id = $3)
         order by r.line"#,
        ingest as IngestId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        line,
        limit,
        most_bytes,
    )
    .fetch_all(&mut *db)
    .await?;

    let rejected = rows.into_iter().map(|row| RejectedRow {
        reject: RowReject {
            line: row.line,
            column: row.column_name,
            value: row.value,
            code: row.code.into(),
            message: row.message,
        },
        cells: row.cells,
    });
    Ok(rejected.collect())
}

/// Lists the names of an error file's first columns; none before the header was read.
async fn error_file_names(pool: &PgPool, scope: &Scope, ingest: IngestId) -> Result<Vec<String>> {
    let mut db = row_level_security::begin(pool, scope).await?;
    let columns = sqlx::query_scalar!(
        "select checkpoint -> 'columns'
         from ingests
         where id = $1",
        ingest as IngestId,
    )
    .fetch_optional(&mut *db)
    .await?
    .flatten();
    let Some(columns) = columns else {
        return Ok(Vec::new());
    };
    let columns: ColumnMap = serde_json::from_value(columns)?;
    let names = columns
        .error_file_columns()
        .map(|(_, name)| name.to_owned());
    Ok(names.collect())
}

/// Streams the error file: every rejected row under the columns that the batch uses, then its line
/// in the file, the rejected column and value, and the reason. Once corrected, it can be uploaded
/// as it is. Spreadsheets show it as text: a cell that would be a formula begins with an
/// apostrophe.
///
/// # Errors
/// [`Error::NotFound`] when the ingest is outside the scope.
pub async fn rejects_csv(
    pool: &PgPool,
    scope: &Scope,
    batch: BatchId,
    ingest: IngestId,
) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + 'static> {
    find(pool, scope, batch, ingest).await?;
    let names = error_file_names(pool, scope, ingest).await?;
    let width = names.len();
    let (pool, scope) = (pool.clone(), *scope);
    let pages = stream::try_unfold(0, move |line| {
        let pool = pool.clone();
        async move {
            let (from, cells) = ((line, PAGE_ROWS), CellLimit::MaxBytes(PAGE_BYTES));
            let page = rejects_after(&pool, &scope, ingest, from, cells).await?;
            let Some(last) = page.last().map(|last| last.reject.line) else {
                return Ok(None);
            };
            Ok(Some((page_csv(&page, width)?, last)))
        }
    });
    let head = head_csv(&names)?;
    Ok(Box::pin(stream::iter([Ok(head)]).chain(pages)))
}

fn head_csv(names: &[String]) -> Result<Bytes> {
    let mut csv = spreadsheet::writer();
    let reasons = REASON_COLUMNS.map(str::to_owned);
    csv.write_record(names.iter().chain(&reasons).map(|name| neutralize(name)))
        .map_err(write_error)?;
    spreadsheet::finish(csv)
}

fn page_csv(page: &[RejectedRow], width: usize) -> Result<Bytes> {
    let mut csv = spreadsheet::writer();
    for RejectedRow { reject, cells } in page {
        let cells = cells.iter().map(|cell| neutralize(cell));
        let reasons = [
            reject.line.to_string(),
            neutralize(&reject.column),
            neutralize(&reject.value),
            reject.code.to_string(),
            neutralize(&reject.message),
        ];
        // Rows of a private batch, and old ones, have no cells.
        let cells = cells.chain(std::iter::repeat(String::new())).take(width);
        csv.write_record(cells.chain(reasons))
            .map_err(write_error)?;
    }
    spreadsheet::finish(csv)
}

/// Builds a template file to fill in: the header line only.
pub fn csv_template(variable_names: &[String]) -> Result<String> {
    let mut csv = spreadsheet::writer();
    csv.write_record(
        std::iter::once(PHONE_COLUMN).chain(variable_names.iter().map(String::as_str)),
    )
    .map_err(write_error)?;
    let bytes = spreadsheet::finish(csv)?;
    String::from_utf8(bytes.into()).map_err(|error| Error::Unexpected(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_a_header_line_that_the_ingest_reads() {
        let names = ["name".to_owned(), "due, date".to_owned()];
        assert_eq!(
            csv_template(&names).unwrap(),
            "to_phonenumber,name,\"due, date\"\r\n"
        );
    }
}
