//! `/api/v1/batch-call/{batch_id}/data`: the rows of a batch.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::audit::AuditEntry;
use peal_shared::campaigns::ingest::{
    InsertedRows, RowInput, RowReject, insert_records, update_records,
};
use peal_shared::campaigns::rows::{BatchRow, RowFilter, RowStatus};
use peal_shared::campaigns::{batches, ingest, rows};
use peal_shared::context::Context;
use peal_shared::platform::ids::{BatchId, RowId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::envelope::{Envelope, EnvelopeStatusResult, MessageBody, ok, ok_message};
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{BadRequestResponse, CommonErrors, ConflictResponse, NotFoundResponse};
use crate::http::paging::ListResponse;
use crate::state::AppState;

/// Most rows of one response.
const MAX_ROWS: i64 = 1000;
/// Most bytes of variables in one response; a single larger row is still returned.
const MAX_VARIABLE_BYTES: i64 = 8 * 1024 * 1024;
/// Most items of one request.
const MAX_ITEMS: usize = 1000;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(upsert))
        .routes(routes!(remove))
}

/// List the rows of a batch, in the order they were added
///
/// All rows, up to a thousand and some megabytes. The header `X-Truncated: true` means that more
/// follow: request them with `after`, the last `row_no` of this response.
#[utoipa::path(
    get,
    path = "/{batch_id}/data",
    tag = "Batch rows",
    params(("batch_id" = BatchId, Path), RowListParams),
    responses(
        (
            status = 200, body = Envelope<Vec<BatchRow>>,
            headers(("X-Truncated" = bool, description = "True when more rows follow"))
        ),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(batch): PathIds<BatchId>,
    ValidQuery(query): ValidQuery<RowListParams>,
) -> Result<ListResponse<Envelope<Vec<BatchRow>>>> {
    let max_rows = query.limit.unwrap_or(MAX_ROWS).clamp(1, MAX_ROWS);

    let mut db = caller.begin_read(&context).await?;
    let filter = RowFilter {
        status: query.status,
        after_row_no: query.after.unwrap_or(0),
        max_rows,
        max_bytes: MAX_VARIABLE_BYTES,
    };
    let (rows, truncated) = rows::list(&mut db, &caller.scope(), batch, filter).await?;

    let message = format!("{} rows", rows.len());
    let Json(body) = ok(message, rows);
    Ok(ListResponse::new(body, truncated))
}

/// Add and change rows before the start
///
/// Updates items with an id and adds those without. Items are independent: an invalid one is
/// reported by its index, and the others are applied.
#[utoipa::path(
    post,
    path = "/{batch_id}/data/upsert",
    tag = "Batch rows",
    params(("batch_id" = BatchId, Path)),
    request_body = UpsertRows,
    responses(
        (status = 200, body = Envelope<UpsertReport>),
        BadRequestResponse,
        NotFoundResponse,
        ConflictResponse,
        CommonErrors,
    )
)]
async fn upsert(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(batch): PathIds<BatchId>,
    ValidJson(body): ValidJson<UpsertRows>,
) -> EnvelopeStatusResult<UpsertReport> {
    let mut fields = FieldErrors::default();
    fields.check(
        (1..=MAX_ITEMS).contains(&body.items.len()),
        "items",
        "length",
        format!("must have 1 to {MAX_ITEMS} items"),
    );
    fields.finish()?;

    // 1. Lock the unstarted batch, which must not start meanwhile.
    let scope = caller.scope();
    let limits = context.config.uploads;
    let mut db = caller.begin_write(&context).await?;
    batches::lock_unstarted(&mut db, &scope, batch).await?;
    let target = ingest::ingest_target(&mut db, &scope, batch, caller.user).await?;

    // 2. Separate updates from inserts, with their indexes in the request.
    let mut result = UpsertReport::default();
    let (mut changes, mut changed_places) = (Vec::new(), Vec::new());
    let (mut added, mut added_places) = (Vec::new(), Vec::new());
    for (index, item) in body.items.into_iter().enumerate() {
        let record = RowInput {
            to_phonenumber: item.to_phonenumber,
            variables: item.variable_values,
        };
        match item.id {
            Some(row) => {
                changed_places.push(index);
                changes.push((row, record));
            }
            None => {
                added_places.push(index);
                added.push(record);
            }
        }
    }

    // 3. Apply both.
    if !changes.is_empty() {
        let changed = update_records(&mut db, &target, &limits, &changes).await?;
        for (index, change) in changed_places.into_iter().zip(changed) {
            match change {
                Ok(()) => result.updated += 1,
                Err(reject) => result
                    .errors
                    .push(FailedItem::from(reject).with_index(index)),
            }
        }
    }

    if !added.is_empty() {
        let inserted = insert_records(&mut db, &target, &limits, &added).await?;
        result.record_inserts(inserted, &added_places);
    }

    // 4. Report by index, and commit.
    result.failed = result.errors.len();
    result.errors.sort_by_key(|error| error.index);
    let message = format!(
        "{} added, {} updated, {} duplicates, {} failed",
        result.inserted, result.updated, result.duplicates, result.failed
    );

    let note = AuditEntry::new("batch.upsert_rows", target.org, batch.0);
    db.commit(note, StatusCode::OK, ok(message, result)).await
}

/// Remove a row before the start
#[utoipa::path(
    delete,
    path = "/{batch_id}/data/{item_id}",
    tag = "Batch rows",
    params(("batch_id" = BatchId, Path), ("item_id" = RowId, Path)),
    responses(
        (status = 200, body = MessageBody),
        NotFoundResponse,
        ConflictResponse,
        CommonErrors,
    )
)]
async fn remove(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds((batch, row)): PathIds<(BatchId, RowId)>,
) -> Result<(StatusCode, Json<MessageBody>)> {
    let mut db = caller.begin_write(&context).await?;
    let org = rows::delete(&mut db, &caller.scope(), batch, row).await?;

    let note = AuditEntry::new("batch.delete_row", org, row.0);
    db.commit(note, StatusCode::OK, ok_message("row deleted"))
        .await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RowListParams {
    status: Option<RowStatus>,
    /// Rows after this `row_no`.
    after: Option<i64>,
    /// Most rows, up to a thousand.
    limit: Option<i64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "items": [{"to_phonenumber": "+12125550123", "variable_values": {"name": "Ada"}}]
}))]
struct UpsertRows {
    #[schema(min_items = 1, max_items = 1000)]
    items: Vec<UpsertRow>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UpsertRow {
    /// Id of the row to update; without one a row is added.
    id: Option<RowId>,
    to_phonenumber: String,
    #[serde(default)]
    #[schema(value_type = Object)]
    variable_values: Map<String, Value>,
}

#[derive(Default, Serialize, ToSchema)]
#[schema(as = Upserted, example = json!({
    "inserted": 1, "updated": 0, "duplicates": 0, "failed": 0, "errors": [], "warnings": [],
    "inserted_ids": ["0197d7a5-3c1e-7a10-8f00-00000000000f"]
}))]
struct UpsertReport {
    inserted: i64,
    updated: i64,
    /// Numbers that the batch already has.
    duplicates: i64,
    failed: usize,
    errors: Vec<FailedItem>,
    warnings: Vec<String>,
    inserted_ids: Vec<RowId>,
}

impl UpsertReport {
    /// Records the inserted and rejected items; `places` are their indexes in the request.
    fn record_inserts(&mut self, added: InsertedRows, places: &[usize]) {
        self.inserted = added.counts.inserted;
        self.duplicates = added.counts.duplicates;
        self.inserted_ids = added.rows;
        self.warnings = added.warnings;
        for reject in added.rejects {
            let place = usize::try_from(reject.line).ok().and_then(|line| {
                let place = line.checked_sub(1)?;
                places.get(place).copied()
            });
            self.errors
                .push(FailedItem::from(reject).with_index(place.unwrap_or_default()));
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = FailedItem)]
struct FailedItem {
    /// Index of the item in the request, from 0.
    index: usize,
    column: String,
    code: String,
    message: String,
}

impl FailedItem {
    fn with_index(self, index: usize) -> Self {
        Self { index, ..self }
    }
}

impl From<RowReject> for FailedItem {
    fn from(reject: RowReject) -> Self {
        Self {
            index: 0,
            column: reject.column,
            code: reject.code.into_owned(),
            message: reject.message,
        }
    }
}
