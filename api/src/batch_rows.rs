//! `/api/v1/batch-call/{batch_id}/data`: the people of a batch, one by one.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::audit::Note;
use peal_shared::campaigns::batches;
use peal_shared::campaigns::ingest::{
    self, Inserted, Record, Reject, insert_records, update_records,
};
use peal_shared::campaigns::rows::{self, Filter, Row, RowStatus};
use peal_shared::context::Context;
use peal_shared::ids::{BatchId, RowId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::envelope::{AnswerWith, Envelope, Said, done, said};
use crate::error::Result;
use crate::extract::{Fields, Ids, ValidJson, ValidQuery};
use crate::openapi::{Conflicting, Missing, Refusals, Rejected};
use crate::page::Listed;
use crate::state::Api;

/// Most rows of one answer.
const MAX_ROWS: i64 = 1000;
/// Their variables may have so many bytes together, or one row's.
const MAX_BYTES: i64 = 8 * 1024 * 1024;
/// Most items of one request.
const MAX_ITEMS: usize = 1000;

pub fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(upsert))
        .routes(routes!(remove))
}

/// List the rows of a batch, in the order they were added
///
/// All rows, up to a thousand and some megabytes; the header `X-Truncated: true` says that there
/// are more, which `after` (the last `row_no` that was seen) brings.
#[utoipa::path(
    get,
    path = "/{batch_id}/data",
    tag = "Batch rows",
    params(("batch_id" = BatchId, Path), Which),
    responses(
        (
            status = 200, body = Envelope<Vec<Row>>,
            headers(("X-Truncated" = bool, description = "Whether there are more behind these"))
        ),
        Missing,
        Refusals,
    )
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(batch): Ids<BatchId>,
    ValidQuery(query): ValidQuery<Which>,
) -> Result<Listed<Envelope<Vec<Row>>>> {
    let most = query.limit.unwrap_or(MAX_ROWS).clamp(1, MAX_ROWS);
    let mut db = caller.read(&context).await?;
    let filter = Filter {
        status: query.status,
        after: query.after.unwrap_or(0),
        most,
        most_bytes: MAX_BYTES,
    };
    let (rows, truncated) = rows::list(&mut db, &caller.scope(), batch, filter).await?;
    let message = format!("{} rows", rows.len());
    let Json(body) = done(message, rows);
    Ok(Listed::new(body, truncated))
}

/// Add and change rows before the start
///
/// Changes items with an id and adds those without. Every item stands for itself: what is
/// wrong with one is told by its place, and the others are applied.
#[utoipa::path(
    post,
    path = "/{batch_id}/data/upsert",
    tag = "Batch rows",
    params(("batch_id" = BatchId, Path)),
    request_body = UpsertRows,
    responses(
        (status = 200, body = Envelope<Upserted>),
        Rejected,
        Missing,
        Conflicting,
        Refusals,
    )
)]
async fn upsert(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(batch): Ids<BatchId>,
    ValidJson(body): ValidJson<UpsertRows>,
) -> AnswerWith<Upserted> {
    let mut fields = Fields::default();
    fields.check(
        (1..=MAX_ITEMS).contains(&body.items.len()),
        "items",
        "length",
        format!("must have 1 to {MAX_ITEMS} items"),
    );
    fields.finish()?;
    let scope = caller.scope();
    let limits = context.config.uploads;
    let mut db = caller.change(&context).await?;
    batches::lock_unstarted(&mut db, &scope, batch).await?;
    let target = ingest::target(&mut db, &scope, batch, caller.user).await?;
    let mut result = Upserted::default();
    let (mut changes, mut changed_places) = (Vec::new(), Vec::new());
    let (mut fresh, mut places) = (Vec::new(), Vec::new());
    for (index, item) in body.items.into_iter().enumerate() {
        let record = Record {
            to_phonenumber: item.to_phonenumber,
            variables: item.variable_values,
        };
        match item.id {
            Some(row) => {
                changed_places.push(index);
                changes.push((row, record));
            }
            None => {
                places.push(index);
                fresh.push(record);
            }
        }
    }
    if !changes.is_empty() {
        let changed = update_records(&mut db, &target, &limits, &changes).await?;
        for (index, change) in changed_places.into_iter().zip(changed) {
            match change {
                Ok(()) => result.updated += 1,
                Err(reject) => result.errors.push(Failed::from(reject).at(index)),
            }
        }
    }
    if !fresh.is_empty() {
        let added = insert_records(&mut db, &target, &limits, &fresh).await?;
        result.note(added, &places);
    }
    result.failed = result.errors.len();
    result.errors.sort_by_key(|error| error.index);
    let message = format!(
        "{} added, {} changed, {} there already, {} refused",
        result.inserted, result.updated, result.duplicates, result.failed
    );
    let note = Note::new("batch.upsert_rows", target.org, batch.0);
    db.commit(note, StatusCode::OK, done(message, result)).await
}

/// Remove a row before the start
#[utoipa::path(
    delete,
    path = "/{batch_id}/data/{item_id}",
    tag = "Batch rows",
    params(("batch_id" = BatchId, Path), ("item_id" = RowId, Path)),
    responses(
        (status = 200, body = Said),
        Missing,
        Conflicting,
        Refusals,
    )
)]
async fn remove(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids((batch, row)): Ids<(BatchId, RowId)>,
) -> Result<(StatusCode, Json<Said>)> {
    let mut db = caller.change(&context).await?;
    let org = rows::delete(&mut db, &caller.scope(), batch, row).await?;
    let note = Note::new("batch.delete_row", org, row.0);
    db.commit(note, StatusCode::OK, said("row deleted")).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Which {
    status: Option<RowStatus>,
    /// Rows behind this `row_no`.
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
    /// Of the row to change; without one a row is added.
    id: Option<RowId>,
    to_phonenumber: String,
    #[serde(default)]
    #[schema(value_type = Object)]
    variable_values: Map<String, Value>,
}

#[derive(Default, Serialize, ToSchema)]
#[schema(example = json!({
    "inserted": 1, "updated": 0, "duplicates": 0, "failed": 0, "errors": [], "warnings": [],
    "inserted_ids": ["0197d7a5-3c1e-7a10-8f00-00000000000f"]
}))]
struct Upserted {
    inserted: i64,
    updated: i64,
    /// Numbers that the batch has already.
    duplicates: i64,
    failed: usize,
    errors: Vec<Failed>,
    warnings: Vec<String>,
    inserted_ids: Vec<RowId>,
}

impl Upserted {
    /// Notes what was added of the items at these places.
    fn note(&mut self, added: Inserted, places: &[usize]) {
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
                .push(Failed::from(reject).at(place.unwrap_or_default()));
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = FailedItem)]
struct Failed {
    /// The item's place in the request, from 0.
    index: usize,
    column: String,
    code: String,
    message: String,
}

impl Failed {
    fn at(self, index: usize) -> Self {
        Self { index, ..self }
    }
}

impl From<Reject> for Failed {
    fn from(reject: Reject) -> Self {
        Self {
            index: 0,
            column: reject.column,
            code: reject.code.into_owned(),
            message: reject.message,
        }
    }
}
