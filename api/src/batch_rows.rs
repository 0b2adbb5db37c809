//! `/api/v1/batch-call/{batch_id}/data`: the people of a batch, one by one.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use peal_shared::Error;
use peal_shared::access::Scope;
use peal_shared::campaigns::batches;
use peal_shared::campaigns::ingest::{
    self, Limits, Record, Reject, Target, insert_records, update_record,
};
use peal_shared::campaigns::rows::{self, Filter, RowStatus};
use peal_shared::context::Context;
use peal_shared::ids::{BatchId, RowId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::{Connection as _, PgConnection};

use crate::auth::Caller;
use crate::envelope::{Answer, done, said};
use crate::error::Result;
use crate::extract::{Fields, Ids, ValidJson, ValidQuery};
use crate::state::Api;

/// Most rows of one answer.
const MAX_ROWS: i64 = 1000;
/// Most items of one request.
const MAX_ITEMS: usize = 1000;
const TRUNCATED: HeaderName = HeaderName::from_static("x-truncated");

pub fn router() -> Router<Api> {
    Router::new()
        .route("/{batch_id}/data", get(list))
        .route("/{batch_id}/data/upsert", post(upsert))
        .route("/{batch_id}/data/{item_id}", delete(remove))
}

/// All rows, up to a thousand; the header `X-Truncated: true` says that there are more, which
/// `after` (the last `row_no` that was seen) brings.
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(batch): Ids<BatchId>,
    ValidQuery(query): ValidQuery<Which>,
) -> Result<Response> {
    let most = query.limit.unwrap_or(MAX_ROWS).clamp(1, MAX_ROWS);
    let mut db = context.pool.acquire().await?;
    let filter = Filter {
        status: query.status,
        after: query.after.unwrap_or(0),
        most: most + 1,
    };
    let mut rows = rows::list(&mut db, &caller.scope(), batch, filter).await?;
    let shown = usize::try_from(most).unwrap_or(usize::MAX);
    let truncated = rows.len() > shown;
    rows.truncate(shown);
    let message = format!("{} rows", rows.len());
    let mut response = done(message, rows).into_response();
    if truncated {
        let headers = response.headers_mut();
        headers.insert(TRUNCATED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Changes items with an id and adds those without. Every item stands for itself: what is
/// wrong with one is told by its place, and the others are applied.
async fn upsert(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(batch): Ids<BatchId>,
    ValidJson(body): ValidJson<Items>,
) -> Answer<Upserted> {
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
    let mut db = context.pool.begin().await?;
    batches::lock_unstarted(&mut db, &scope, batch).await?;
    let target = ingest::target(&mut db, &scope, batch, caller.user).await?;
    let mut result = Upserted::default();
    let mut fresh = Vec::new();
    let mut places = Vec::new();
    for (index, item) in body.items.into_iter().enumerate() {
        let record = Record {
            to_phonenumber: item.to_phonenumber,
            variables: item.variable_values,
        };
        match item.id {
            Some(row) => match change(&mut db, &scope, &target, &limits, row, &record).await? {
                Ok(()) => result.updated += 1,
                Err(why) => result.errors.push(why.at(index)),
            },
            None => {
                places.push(index);
                fresh.push(record);
            }
        }
    }
    if !fresh.is_empty() {
        let added = insert_records(&mut db, &target, &limits, &fresh).await?;
        result.inserted = added.counts.inserted;
        result.duplicates = added.counts.duplicates;
        result.inserted_ids = added.rows;
        result.warnings = added.warnings;
        for reject in added.rejects {
            let place = usize::try_from(reject.line).ok().and_then(|line| {
                let place = line.checked_sub(1)?;
                places.get(place).copied()
            });
            result
                .errors
                .push(Failed::from(reject).at(place.unwrap_or_default()));
        }
    }
    db.commit().await?;
    result.failed = result.errors.len();
    result.errors.sort_by_key(|error| error.index);
    let message = format!(
        "{} added, {} changed, {} there already, {} refused",
        result.inserted, result.updated, result.duplicates, result.failed
    );
    Ok(done(message, result))
}

async fn remove(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids((batch, row)): Ids<(BatchId, RowId)>,
) -> Answer<()> {
    let mut db = context.pool.begin().await?;
    rows::delete(&mut db, &caller.scope(), batch, row).await?;
    db.commit().await?;
    Ok(said("row deleted"))
}

/// Changes one row; a conflict undoes this change alone.
async fn change(
    db: &mut PgConnection,
    scope: &Scope,
    target: &Target,
    limits: &Limits,
    row: RowId,
    record: &Record,
) -> Result<std::result::Result<(), Failed>> {
    let mut step = db.begin().await?;
    match update_record(&mut step, scope, target, limits, row, record).await {
        Ok(Ok(())) => {
            step.commit().await?;
            Ok(Ok(()))
        }
        Ok(Err(reject)) => Ok(Err(reject.into())),
        Err(error @ Error::NotFound(_)) => Ok(Err(Failed::new("id", "not_found", &error))),
        Err(error @ Error::Conflict { code, .. }) => {
            Ok(Err(Failed::new("to_phonenumber", code, &error)))
        }
        Err(error) => Err(error.into()),
    }
}

#[derive(Deserialize)]
struct Which {
    status: Option<RowStatus>,
    after: Option<i64>,
    limit: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Items {
    items: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    id: Option<RowId>,
    to_phonenumber: String,
    #[serde(default)]
    variable_values: Map<String, Value>,
}

#[derive(Default, Serialize)]
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

#[derive(Serialize)]
struct Failed {
    /// The item's place in the request, from 0.
    index: usize,
    column: String,
    code: String,
    message: String,
}

impl Failed {
    fn new(column: &str, code: &str, error: &Error) -> Self {
        Self {
            index: 0,
            column: column.to_owned(),
            code: code.to_owned(),
            message: error.to_string(),
        }
    }

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
