//! `/api/v1/batch-call`: batches, their life cycle and state.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::Error;
use peal_shared::access::Scope;
use peal_shared::audit::Note;
use peal_shared::campaigns::batches;
use peal_shared::campaigns::progress::{self, StatusCounts};
use peal_shared::campaigns::readiness::{self, Readiness};
use peal_shared::campaigns::{Batch, BatchStatus, lifecycle};
use peal_shared::context::Context;
use peal_shared::fault;
use peal_shared::ids::{BatchId, JobId, UserId};
use peal_shared::page::{Owners, Page};
use peal_shared::users;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::envelope::{Answer, AnswerWith, Envelope, Items, Said, done, said};
use crate::error::Result;
use crate::extract::{Fields, Ids, ValidJson, ValidQuery};
use crate::new_batch::{CreateBatch, check_variables};
use crate::openapi::{Conflicting, Missing, Refusals, Rejected, Unpaid};
use crate::page::{Browse, Paging, Sight, page};
use crate::state::Api;

pub fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(mine))
        .routes(routes!(browse))
        .routes(routes!(of_user))
        .routes(routes!(show, delete))
        .routes(routes!(status))
        .routes(routes!(readiness))
        .routes(routes!(set_variables))
        .routes(routes!(start))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(stop))
}

/// Create a batch
#[utoipa::path(
    post,
    path = "/create",
    tag = "Batches",
    request_body = CreateBatch,
    responses(
        (status = 201, body = Envelope<Batch>),
        Rejected,
        Missing,
        Refusals,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<CreateBatch>,
) -> AnswerWith<Batch> {
    let new = body.validated(&caller)?;

    let mut db = caller.change(&context).await?;
    if new.user != caller.user {
        let org = users::org_of(&mut db, &caller.scope(), new.user).await?;
        org.ok_or(Error::NotFound("User"))?;
    }

    let batch = batches::create(&mut db, &caller.scope(), &new).await?;
    let note = note("batch.create", &batch).after(&batch)?;
    db.commit(note, StatusCode::CREATED, done("batch created", batch))
        .await
}

/// List the caller's batches, newest first
#[utoipa::path(
    get,
    path = "/me",
    tag = "Batches",
    params(Paging),
    responses(
        (status = 200, body = Envelope<Items<Batch>>),
        Refusals,
    )
)]
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

/// List all visible batches, newest first
///
/// Users see their own batches, an org_admin those of the organization, a super_admin all.
#[utoipa::path(
    get,
    path = "/browse",
    tag = "Batches",
    params(Browse),
    responses(
        (status = 200, body = Envelope<Items<Batch>>),
        Refusals,
    )
)]
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

/// List the batches of a user, newest first
#[utoipa::path(
    get,
    path = "/user/{user_id}",
    tag = "Batches",
    params(("user_id" = UserId, Path), Paging),
    responses(
        (status = 200, body = Envelope<Items<Batch>>),
        Missing,
        Refusals,
    )
)]
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

/// Show a batch
#[utoipa::path(
    get,
    path = "/{batch_id}",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = Envelope<Batch>),
        Missing,
        Refusals,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> Answer<Batch> {
    let mut db = caller.read(&context).await?;
    let batch = batches::find(&mut db, &caller.scope(), id).await?;
    Ok(done("batch found", batch))
}

/// Delete a batch with its rows
///
/// Its calls stay in the log. A running batch cannot be deleted.
#[utoipa::path(
    delete,
    path = "/{batch_id}",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = Said, example = json!({"success": true, "message": "batch deleted"})),
        Missing,
        Conflicting,
        Refusals,
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> Result<(StatusCode, Json<Said>)> {
    let mut db = caller.change(&context).await?;
    let batch = batches::delete(&mut db, &caller.scope(), id).await?;
    let note = note("batch.delete", &batch).before(&batch)?;
    db.commit(note, StatusCode::OK, said("batch deleted")).await
}

/// Show a batch with the counts of its rows
#[utoipa::path(
    get,
    path = "/{batch_id}/status",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = StatusAnswer),
        Missing,
        Refusals,
    )
)]
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

/// Check if a batch can start, and list the blockers
#[utoipa::path(
    get,
    path = "/{batch_id}/readiness",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = Readiness, example = json!({
            "can_start": false, "member_count": 0, "has_agent_or_workflow": true, "has_caller_phone": true,
            "status": "not_started",
            "blockers": [{"code": "no_rows", "message": "the batch has no rows: upload a CSV first"}]
        })),
        Missing,
        Refusals,
    )
)]
async fn readiness(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> Result<Json<Readiness>> {
    let mut db = caller.read(&context).await?;
    Ok(Json(
        readiness::readiness(&mut db, &caller.scope(), id, context.basis()).await?,
    ))
}

/// Replace the variable names of a batch before its start
#[utoipa::path(
    patch,
    path = "/{batch_id}/variables",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    request_body = Variables,
    responses(
        (status = 200, body = Envelope<Batch>),
        Missing,
        Conflicting,
        Refusals,
    )
)]
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

/// Start dialling
///
/// Returns at once. A batch that cannot start is rejected with all reasons.
#[utoipa::path(
    post,
    path = "/start/{batch_id}",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = Accepted, example = json!({
            "success": true, "message": "batch started", "status": "in_progress", "member_count": 1000,
            "data": {
                "batch_id": "0197d7a5-3c1e-7a10-8f00-0c5d1f2e3a4b",
                "job_id": "0197d7a5-3c1e-7a10-8f00-00000000000d"
            }
        })),
        Rejected,
        Unpaid,
        Missing,
        Conflicting,
        Refusals,
    )
)]
async fn start(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> Result<(StatusCode, Json<Accepted>)> {
    let mut db = caller.change(&context).await?;
    let started = lifecycle::start(&mut db, &caller.scope(), id, context.basis()).await?;

    let accepted = Accepted {
        success: true,
        message: "batch started".to_owned(),
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

/// Pause a batch; calls in progress continue
#[utoipa::path(
    post,
    path = "/pause/{batch_id}",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = Envelope<Batch>),
        Missing,
        Conflicting,
        Refusals,
    )
)]
async fn pause(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> AnswerWith<Batch> {
    let mut db = caller.change(&context).await?;
    let batch = lifecycle::pause(&mut db, &caller.scope(), id).await?;

    let note = note("batch.pause", &batch).after(&batch)?;
    let body = done("batch paused; calls in progress continue", batch);
    db.commit(note, StatusCode::OK, body).await
}

/// Resume a paused batch
#[utoipa::path(
    post,
    path = "/resume/{batch_id}",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = Envelope<Batch>),
        Rejected,
        Unpaid,
        Missing,
        Conflicting,
        Refusals,
    )
)]
async fn resume(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> AnswerWith<Batch> {
    let mut db = caller.change(&context).await?;
    let (batch, job) = lifecycle::resume(&mut db, &caller.scope(), id, context.basis()).await?;

    let note = note("batch.resume", &batch).after(&batch)?;
    let answer = db
        .commit(note, StatusCode::OK, done("batch resumed", batch))
        .await?;

    context.bells.ring_job(&job);
    Ok(answer)
}

/// Stop a batch for good
///
/// Answered calls continue, ringing ones are canceled.
#[utoipa::path(
    post,
    path = "/stop/{batch_id}",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = Envelope<Batch>),
        Missing,
        Conflicting,
        Refusals,
    )
)]
async fn stop(
    State(context): State<Arc<Context>>,
    caller: Caller,
    Ids(id): Ids<BatchId>,
) -> AnswerWith<Batch> {
    let mut db = caller.change(&context).await?;
    let (batch, job) = lifecycle::stop(&mut db, &caller.scope(), id).await?;

    let note = note("batch.stop", &batch).after(&batch)?;

    let body = done(
        "batch stopped; answered calls continue, ringing ones are canceled",
        batch,
    );
    let answer = db.commit(note, StatusCode::OK, body).await?;

    if let Some(job) = job {
        context.bells.ring_job(&job);
    }
    Ok(answer)
}

/// Audit entry of a change of a batch.
fn note(action: &'static str, batch: &Batch) -> Note {
    Note::new(action, batch.org_id, batch.id.0)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Variables, example = json!({"variable_names": ["name", "city"]}))]
struct Variables {
    variable_names: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct StatusAnswer {
    success: bool,
    data: BatchWithCounts,
}

#[derive(Serialize, ToSchema)]
struct BatchWithCounts {
    batch: Batch,
    status_counts: StatusCounts,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Accepted)]
struct Accepted {
    success: bool,
    message: String,
    status: BatchStatus,
    member_count: i64,
    data: AcceptedJob,
}

#[derive(Serialize, ToSchema)]
struct AcceptedJob {
    batch_id: BatchId,
    job_id: JobId,
}
