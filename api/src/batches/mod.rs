//! `/api/v1/batch-call`: batches, their life cycle and state.

pub mod create;
pub mod event_hub;
pub mod events;
pub mod rows;
pub mod uploads;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::access::Scope;
use peal_shared::access::owner_filter::OwnerFilter;
use peal_shared::audit::AuditEntry;
use peal_shared::campaigns::progress::StatusCounts;
use peal_shared::campaigns::readiness::Readiness;
use peal_shared::campaigns::{Batch, BatchStatus, batches, lifecycle, progress, readiness};
use peal_shared::context::Context;
use peal_shared::platform::failpoint;
use peal_shared::platform::ids::{BatchId, JobId, UserId};
use peal_shared::platform::page::Page;
use peal_shared::{Error, users};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::batches::create::{CreateBatch, check_variables};
use crate::http::envelope::{
    Envelope, EnvelopeResult, EnvelopeStatusResult, Items, MessageBody, ok, ok_message,
};
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{
    BadRequestResponse, CommonErrors, ConflictResponse, NotFoundResponse, PaymentRequiredResponse,
};
use crate::http::paging::{PageParams, PagedOwnedListParams, Visibility, parse_page};
use crate::state::AppState;

/// Base path of batches, their rows and uploads.
pub const BATCH_CALL_PATH: &str = "/api/v1/batch-call";

pub fn router() -> OpenApiRouter<AppState> {
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
        BadRequestResponse,
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<CreateBatch>,
) -> EnvelopeStatusResult<Batch> {
    let new = body.validated(&caller)?;

    let mut db = caller.begin_write(&context).await?;
    if new.user != caller.user {
        let org = users::org_of(&mut db, &caller.scope(), new.user).await?;
        org.ok_or(Error::NotFound("User"))?;
    }

    let batch = batches::create(&mut db, &caller.scope(), &new).await?;
    let note = batch_audit_entry("batch.create", &batch).after(&batch)?;
    db.commit(note, StatusCode::CREATED, ok("batch created", batch))
        .await
}

/// List the caller's batches, newest first
#[utoipa::path(
    get,
    path = "/me",
    tag = "Batches",
    params(PageParams),
    responses(
        (status = 200, body = Envelope<Items<Batch>>),
        CommonErrors,
    )
)]
async fn mine(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<PageParams>,
) -> EnvelopeResult<Items<Batch>> {
    let scope = caller.scope_of(caller.user)?;
    list(
        &context,
        &caller,
        &scope,
        &OwnerFilter::default(),
        parse_page(query.page, query.page_size)?,
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
    params(PagedOwnedListParams),
    responses(
        (status = 200, body = Envelope<Items<Batch>>),
        CommonErrors,
    )
)]
async fn browse(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<PagedOwnedListParams>,
) -> EnvelopeResult<Items<Batch>> {
    let scope = match query.scope {
        Some(Visibility::Mine) => caller.scope_of(caller.user)?,
        Some(Visibility::All) | None => caller.scope(),
    };
    let page = parse_page(query.page, query.page_size)?;
    list(&context, &caller, &scope, &query.parse_owners()?, page).await
}

/// List the batches of a user, newest first
#[utoipa::path(
    get,
    path = "/user/{user_id}",
    tag = "Batches",
    params(("user_id" = UserId, Path), PageParams),
    responses(
        (status = 200, body = Envelope<Items<Batch>>),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn of_user(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(user): PathIds<UserId>,
    ValidQuery(query): ValidQuery<PageParams>,
) -> EnvelopeResult<Items<Batch>> {
    let scope = caller.scope_of(user)?;
    let mut db = caller.begin_read(&context).await?;
    if !users::is_in_scope(&mut db, &scope, user).await? {
        return Err(Error::NotFound("User").into());
    }
    drop(db);

    list(
        &context,
        &caller,
        &scope,
        &OwnerFilter::default(),
        parse_page(query.page, query.page_size)?,
    )
    .await
}

async fn list(
    context: &Context,
    caller: &Caller,
    scope: &Scope,
    owners: &OwnerFilter,
    page: Page,
) -> EnvelopeResult<Items<Batch>> {
    let mut db = caller.begin_read(context).await?;
    let (items, total) = batches::list(&mut db, scope, owners, page).await?;
    let page = Items {
        items,
        total,
        page: page.number,
        page_size: page.size,
    };
    Ok(ok(format!("{total} batches"), page))
}

/// Show a batch
#[utoipa::path(
    get,
    path = "/{batch_id}",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = Envelope<Batch>),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<BatchId>,
) -> EnvelopeResult<Batch> {
    let mut db = caller.begin_read(&context).await?;
    let batch = batches::find(&mut db, &caller.scope(), id).await?;
    Ok(ok("batch found", batch))
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
        (status = 200, body = MessageBody, example = json!({"success": true, "message": "batch deleted"})),
        NotFoundResponse,
        ConflictResponse,
        CommonErrors,
    )
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<BatchId>,
) -> Result<(StatusCode, Json<MessageBody>)> {
    let mut db = caller.begin_write(&context).await?;
    let batch = batches::delete(&mut db, &caller.scope(), id).await?;
    let note = batch_audit_entry("batch.delete", &batch).before(&batch)?;
    db.commit(note, StatusCode::OK, ok_message("batch deleted"))
        .await
}

/// Show a batch with the counts of its rows
#[utoipa::path(
    get,
    path = "/{batch_id}/status",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = StatusAnswer),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn status(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<BatchId>,
) -> Result<Json<StatusAnswer>> {
    let mut db = caller.begin_read(&context).await?;
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
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn readiness(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<BatchId>,
) -> Result<Json<Readiness>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(
        readiness::readiness(&mut db, &caller.scope(), id, context.estimate_basis()).await?,
    ))
}

/// Replace the variable names of a batch before its start
#[utoipa::path(
    patch,
    path = "/{batch_id}/variables",
    tag = "Batches",
    params(("batch_id" = BatchId, Path)),
    request_body = SetVariables,
    responses(
        (status = 200, body = Envelope<Batch>),
        NotFoundResponse,
        ConflictResponse,
        CommonErrors,
    )
)]
async fn set_variables(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<BatchId>,
    ValidJson(body): ValidJson<SetVariables>,
) -> EnvelopeStatusResult<Batch> {
    let mut fields = FieldErrors::default();
    check_variables(&mut fields, &body.variable_names);
    fields.finish()?;

    let mut db = caller.begin_write(&context).await?;
    let before = batches::lock_unstarted(&mut db, &caller.scope(), id).await?;

    let batch = batches::set_variables(&mut db, &caller.scope(), id, &body.variable_names).await?;

    let note = batch_audit_entry("batch.set_variables", &batch)
        .before(&before)?
        .after(&batch)?;
    db.commit(note, StatusCode::OK, ok("variables replaced", batch))
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
        (status = 200, body = StartAccepted, example = json!({
            "success": true, "message": "batch started", "status": "in_progress", "member_count": 1000,
            "data": {
                "batch_id": "0197d7a5-3c1e-7a10-8f00-0c5d1f2e3a4b",
                "job_id": "0197d7a5-3c1e-7a10-8f00-00000000000d"
            }
        })),
        BadRequestResponse,
        PaymentRequiredResponse,
        NotFoundResponse,
        ConflictResponse,
        CommonErrors,
    )
)]
async fn start(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<BatchId>,
) -> Result<(StatusCode, Json<StartAccepted>)> {
    let mut db = caller.begin_write(&context).await?;
    let started = lifecycle::start(&mut db, &caller.scope(), id, context.estimate_basis()).await?;

    let accepted = StartAccepted {
        success: true,
        message: "batch started".to_owned(),
        status: started.batch.status,
        member_count: started.member_count,
        data: AcceptedJob {
            batch_id: id,
            job_id: started.job.id,
        },
    };

    let note = batch_audit_entry("batch.start", &started.batch).after(&started.batch)?;
    let answer = db.commit(note, StatusCode::OK, Json(accepted)).await?;

    failpoint::hit("start.committed");
    context.wakeups.notify_job(&started.job);
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
        NotFoundResponse,
        ConflictResponse,
        CommonErrors,
    )
)]
async fn pause(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<BatchId>,
) -> EnvelopeStatusResult<Batch> {
    let mut db = caller.begin_write(&context).await?;
    let batch = lifecycle::pause(&mut db, &caller.scope(), id).await?;

    let note = batch_audit_entry("batch.pause", &batch).after(&batch)?;
    let body = ok("batch paused; calls in progress continue", batch);
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
        BadRequestResponse,
        PaymentRequiredResponse,
        NotFoundResponse,
        ConflictResponse,
        CommonErrors,
    )
)]
async fn resume(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<BatchId>,
) -> EnvelopeStatusResult<Batch> {
    let mut db = caller.begin_write(&context).await?;
    let (batch, job) =
        lifecycle::resume(&mut db, &caller.scope(), id, context.estimate_basis()).await?;

    let note = batch_audit_entry("batch.resume", &batch).after(&batch)?;
    let answer = db
        .commit(note, StatusCode::OK, ok("batch resumed", batch))
        .await?;

    context.wakeups.notify_job(&job);
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
        NotFoundResponse,
        ConflictResponse,
        CommonErrors,
    )
)]
async fn stop(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<BatchId>,
) -> EnvelopeStatusResult<Batch> {
    let mut db = caller.begin_write(&context).await?;
    let (batch, job) = lifecycle::stop(&mut db, &caller.scope(), id).await?;

    let note = batch_audit_entry("batch.stop", &batch).after(&batch)?;

    let body = ok(
        "batch stopped; answered calls continue, ringing ones are canceled",
        batch,
    );
    let answer = db.commit(note, StatusCode::OK, body).await?;

    if let Some(job) = job {
        context.wakeups.notify_job(&job);
    }
    Ok(answer)
}

/// Audit entry of a change of a batch.
fn batch_audit_entry(action: &'static str, batch: &Batch) -> AuditEntry {
    AuditEntry::new(action, batch.org_id, batch.id.0)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Variables, example = json!({"variable_names": ["name", "city"]}))]
struct SetVariables {
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
struct StartAccepted {
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
