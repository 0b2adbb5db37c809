//! `/api/v1/batch-call`: batches from their creation to their end.

use std::str::FromStr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use peal_shared::Error;
use peal_shared::access::{Role, Scope};
use peal_shared::audit::Note;
use peal_shared::campaigns::batches::{self, Owners, Page};
use peal_shared::campaigns::lifecycle::{self, Readiness};
use peal_shared::campaigns::progress::{self, StatusCounts};
use peal_shared::campaigns::{Batch, BatchStatus};
use peal_shared::context::Context;
use peal_shared::error::FieldError;
use peal_shared::fault;
use peal_shared::ids::{BatchId, JobId, OrgId, UserId};
use peal_shared::users;
use serde::{Deserialize, Serialize};

use crate::auth::Caller;
use crate::envelope::{Answer, AnswerWith, Items, done, said};
use crate::error::{Problem, Result};
use crate::extract::{Fields, Ids, ValidJson, ValidQuery};
use crate::new_batch::{CreateBatch, check_variables};
use crate::state::Api;

const MAX_PAGE_SIZE: i64 = 100;

pub fn router() -> Router<Api> {
    Router::new()
        .route("/create", post(create))
        .route("/me", get(mine))
        .route("/browse", get(browse))
        .route("/user/{user_id}", get(of_user))
        .route("/{batch_id}", get(show).delete(delete))
        .route("/{batch_id}/status", get(status))
        .route("/{batch_id}/readiness", get(readiness))
        .route("/{batch_id}/variables", patch(set_variables))
        .route("/start/{batch_id}", post(start))
        .route("/pause/{batch_id}", post(pause))
        .route("/resume/{batch_id}", post(resume))
        .route("/stop/{batch_id}", post(stop))
}

async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<CreateBatch>,
) -> AnswerWith<Batch> {
    let new = body.validated(&caller)?;
    let mut db = caller.change(&context).await?;
    if new.user != caller.user && !users::is_seen(&mut db, &caller.scope(), new.user).await? {
        return Err(Error::NotFound("User").into());
    }
    let batch = batches::create(&mut db, &caller.scope(), &new).await?;
    let note = note("batch.create", &batch).after(&batch)?;
    db.commit(note, StatusCode::CREATED, done("batch created", batch))
        .await
}

async fn mine(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<Paging>,
) -> Answer<Items<Batch>> {
    let scope = caller.scope_of(caller.user)?;
    list(
        &context,
        &caller,
        &scope,
        &Owners::default(),
        page(query.page, query.page_size)?,
    )
    .await
}

async fn browse(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<Browse>,
) -> Answer<Items<Batch>> {
    let scope = match query.scope {
        Some(Sight::Mine) => caller.scope_of(caller.user)?,
        Some(Sight::All) | None => caller.scope(),
    };
    let page = page(query.page, query.page_size)?;
    list(&context, &caller, &scope, &query.owners()?, page).await
}

async fn of_user(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(user): Ids<UserId>,
    ValidQuery(query): ValidQuery<Paging>,
) -> Answer<Items<Batch>> {
    let scope = caller.scope_of(user)?;
    let mut db = caller.read(&context).await?;
    if !users::is_seen(&mut db, &scope, user).await? {
        return Err(Error::NotFound("User").into());
    }
    drop(db);
    list(
        &context,
        &caller,
        &scope,
        &Owners::default(),
        page(query.page, query.page_size)?,
    )
    .await
}

async fn list(
    context: &Context,
    caller: &Caller,
    scope: &Scope,
    owners: &Owners,
    page: Page,
) -> Answer<Items<Batch>> {
    let mut db = caller.read(context).await?;
    let (items, total) = batches::list(&mut db, scope, owners, page).await?;
    let page = Items {
        items,
        total,
        page: page.number,
        page_size: page.size,
    };
    Ok(done(format!("{total} batches"), page))
}

async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> Answer<Batch> {
    let mut db = caller.read(&context).await?;
    let batch = batches::find(&mut db, &caller.scope(), id).await?;
    Ok(done("batch found", batch))
}

async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> AnswerWith<()> {
    let mut db = caller.change(&context).await?;
    let batch = batches::delete(&mut db, &caller.scope(), id).await?;
    let note = note("batch.delete", &batch).before(&batch)?;
    db.commit(note, StatusCode::OK, said("batch deleted")).await
}

async fn status(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> Result<Json<StatusAnswer>> {
    let mut db = caller.read(&context).await?;
    let (batch, status_counts) = progress::counts(&mut db, &caller.scope(), id).await?;
    let data = BatchWithCounts {
        batch,
        status_counts,
    };
    Ok(Json(StatusAnswer {
        success: true,
        data,
    }))
}

async fn readiness(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> Result<Json<Readiness>> {
    let mut db = caller.read(&context).await?;
    Ok(Json(
        lifecycle::readiness(&mut db, &caller.scope(), id).await?,
    ))
}

async fn set_variables(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
    ValidJson(body): ValidJson<Variables>,
) -> AnswerWith<Batch> {
    let mut fields = Fields::default();
    check_variables(&mut fields, &body.variable_names);
    fields.finish()?;
    let mut db = caller.change(&context).await?;
    let before = batches::lock_unstarted(&mut db, &caller.scope(), id).await?;
    let batch = batches::set_variables(&mut db, &caller.scope(), id, &body.variable_names).await?;
    let note = note("batch.set_variables", &batch)
        .before(&before)?
        .after(&batch)?;
    db.commit(note, StatusCode::OK, done("variables replaced", batch))
        .await
}

async fn start(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> Result<(StatusCode, Json<Accepted>)> {
    let mut db = caller.change(&context).await?;
    let started = lifecycle::start(&mut db, &caller.scope(), id).await?;
    let accepted = Accepted {
        success: true,
        message: "the batch starts dialling".to_owned(),
        status: started.batch.status,
        member_count: started.member_count,
        data: AcceptedJob {
            batch_id: id,
            job_id: started.job.id,
        },
    };
    let note = note("batch.start", &started.batch).after(&started.batch)?;
    let answer = db.commit(note, StatusCode::OK, Json(accepted)).await?;
    fault::point("start.committed");
    context.bells.ring_job(&started.job);
    Ok(answer)
}

async fn pause(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> AnswerWith<Batch> {
    let mut db = caller.change(&context).await?;
    let batch = lifecycle::pause(&mut db, &caller.scope(), id).await?;
    let note = note("batch.pause", &batch).after(&batch)?;
    let told = done("the batch is paused; calls on their way go on", batch);
    db.commit(note, StatusCode::OK, told).await
}

async fn resume(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> AnswerWith<Batch> {
    let mut db = caller.change(&context).await?;
    let (batch, job) = lifecycle::resume(&mut db, &caller.scope(), id).await?;
    let note = note("batch.resume", &batch).after(&batch)?;
    let answer = db
        .commit(note, StatusCode::OK, done("the batch goes on", batch))
        .await?;
    context.bells.ring_job(&job);
    Ok(answer)
}

async fn stop(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> AnswerWith<Batch> {
    let mut db = caller.change(&context).await?;
    let (batch, job) = lifecycle::stop(&mut db, &caller.scope(), id).await?;
    let note = note("batch.stop", &batch).after(&batch)?;
    let told = done(
        "the batch is stopped; answered calls go on, ringing ones are canceled",
        batch,
    );
    let answer = db.commit(note, StatusCode::OK, told).await?;
    if let Some(job) = job {
        context.bells.ring_job(&job);
    }
    Ok(answer)
}

/// A change of a batch, for the audit log.
fn note(action: &'static str, batch: &Batch) -> Note {
    Note::new(action, batch.org_id, batch.id.0)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variables {
    variable_names: Vec<String>,
}

#[derive(Deserialize)]
struct Paging {
    page: Option<i64>,
    page_size: Option<i64>,
}

/// The page that a query asks for.
fn page(number: Option<i64>, size: Option<i64>) -> Result<Page> {
    let page = Page {
        number: number.unwrap_or(1),
        size: size.unwrap_or(20),
    };
    if page.number < 1 {
        return Err(query_field("page", "must be 1 or more"));
    }
    if !(1..=MAX_PAGE_SIZE).contains(&page.size) {
        return Err(query_field("page_size", "must be between 1 and 100"));
    }
    Ok(page)
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sight {
    Mine,
    All,
}

/// Pages as in [`Paging`], which cannot be flattened into a query. Lists are separated by commas. They narrow what the caller's role allows.
#[derive(Deserialize)]
struct Browse {
    page: Option<i64>,
    page_size: Option<i64>,
    scope: Option<Sight>,
    organization_ids: Option<String>,
    owner_user_ids: Option<String>,
    platform_roles: Option<String>,
}

impl Browse {
    fn owners(&self) -> Result<Owners> {
        let role = |text: &str| match text {
            "user" => Ok(Role::User),
            "org_admin" => Ok(Role::OrgAdmin),
            "super_admin" => Ok(Role::SuperAdmin),
            _ => Err(()),
        };
        Ok(Owners {
            orgs: comma_list(self.organization_ids.as_deref(), OrgId::from_str).ok_or_else(
                || query_field("organization_ids", "must be ids, separated by commas"),
            )?,
            users: comma_list(self.owner_user_ids.as_deref(), UserId::from_str)
                .ok_or_else(|| query_field("owner_user_ids", "must be ids, separated by commas"))?,
            roles: comma_list(self.platform_roles.as_deref(), role).ok_or_else(|| {
                query_field("platform_roles", "must be of user, org_admin, super_admin")
            })?,
        })
    }
}

/// The items of a list, or None in it when there is no list; None when an item is wrong.
fn comma_list<T, E>(
    text: Option<&str>,
    read: impl Fn(&str) -> std::result::Result<T, E>,
) -> Option<Option<Vec<T>>> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Some(None);
    };
    text.split(',')
        .map(|item| read(item.trim()).ok())
        .collect::<Option<Vec<T>>>()
        .map(Some)
}

fn query_field(name: &str, msg: &str) -> Problem {
    Problem::invalid(vec![FieldError::new("query", [name], "value_error", msg)])
}

#[derive(Serialize)]
struct StatusAnswer {
    success: bool,
    data: BatchWithCounts,
}

#[derive(Serialize)]
struct BatchWithCounts {
    batch: Batch,
    status_counts: StatusCounts,
}

#[derive(Serialize)]
struct Accepted {
    success: bool,
    message: String,
    status: BatchStatus,
    member_count: i64,
    data: AcceptedJob,
}

#[derive(Serialize)]
struct AcceptedJob {
    batch_id: BatchId,
    job_id: JobId,
}
