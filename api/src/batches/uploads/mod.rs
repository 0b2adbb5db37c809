//! `/api/v1/batch-call/upload/{batch_id}` and related routes: uploads of rows.
//!
//! A file streams to the store, never into memory, and is rejected at its first bytes when it
//! cannot be a list of rows. A stored file becomes an ingest. A small ingest runs before the
//! response; its job remains as a safety net in case the process dies. A large one gets 202 and
//! is run by its job. An interrupted upload leaves nothing.

pub mod body;
pub mod form;
pub mod report;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::multipart::{Multipart, MultipartRejection};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::TimeDelta;
use peal_shared::access::Principal;
use peal_shared::audit::AuditEntry;
use peal_shared::campaigns::ingest::{
    IngestCsv, IngestState, IngestTarget, RowInput, StoredUpload,
};
use peal_shared::campaigns::{batches, ingest};
use peal_shared::context::Context;
use peal_shared::idempotency::{
    IdempotencyRecord, KeyHold, StoredResponse, find_unscoped, store_response_unscoped,
};
use peal_shared::platform::failpoint;
use peal_shared::platform::ids::{BatchId, IngestId};
use peal_shared::platform::queue::enqueue;
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::Instrument as _;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::batches::uploads::body::{BodyMeter, UploadSlots, meter_body};
use crate::batches::uploads::report::UploadReport;
use crate::http::envelope::{Envelope, EnvelopeResult, EnvelopeStatusResult, ok};
use crate::http::error::{Problem, Result};
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::idempotency::{StreamedKey, UnclaimedKey};
use crate::http::openapi::{
    BadRequestResponse, CommonErrors, ConflictResponse, NotFoundResponse, ProblemDocument,
};
use crate::http::paging::{ListParams, ListResponse};
use crate::state::AppState;

/// Largest file that is ingested before the response.
const INLINE_LIMIT_BYTES: u64 = 1_000_000;
/// Delay of the job of an ingest that runs before the response.
const SAFETY_NET_DELAY: TimeDelta = TimeDelta::minutes(2);
/// Maximum of rejected rows in a response.
const MAX_ERRORS: i64 = 100;
const MAX_RECORDS: usize = 20_000;
const PHONE_FIELD: &str = "to_phonenumber";

/// Streamed uploads, bounded in size by the upload limit and in time by the minimum rate.
pub fn upload_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(upload))
        .layer(from_fn(meter_body))
        .layer(DefaultBodyLimit::disable())
}

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(upload_json))
        .routes(routes!(template))
        .routes(routes!(template_of))
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(errors))
}

/// The form of an upload.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read by the macro alone")]
struct UploadForm {
    /// A CSV file with a column `to_phonenumber`; the other columns are variables.
    #[schema(value_type = String, content_media_type = "text/csv")]
    file: Vec<u8>,
}

/// Upload a CSV file of rows
///
/// A small file is read before the response, with 200; a large one is read by a worker
/// afterwards, with 202. Invalid rows are returned with line, column and reason; valid ones are
/// added.
#[utoipa::path(
    post,
    path = "/upload/{batch_id}",
    tag = "Uploads",
    params(("batch_id" = BatchId, Path)),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, body = Envelope<UploadReport>),
        (status = 202, body = Envelope<UploadReport>, description = "The file is being read"),
        BadRequestResponse,
        NotFoundResponse,
        (status = 408, body = ProblemDocument, content_type = "application/problem+json", description = "The upload is too slow"),
        ConflictResponse,
        (status = 413, body = ProblemDocument, content_type = "application/problem+json", description = "The file is too large"),
        (status = 415, body = ProblemDocument, content_type = "application/problem+json", description = "Not a form"),
        CommonErrors,
    )
)]
async fn upload(
    State(api): State<AppState>,
    State(slots): State<UploadSlots>,
    mut caller: Caller,
    PathIds(batch): PathIds<BatchId>,
    StreamedKey(key): StreamedKey,
    Extension(meter): Extension<Arc<BodyMeter>>,
    form: std::result::Result<Multipart, MultipartRejection>,
) -> EnvelopeStatusResult<UploadReport> {
    // 1. Replay the response of a repeated key, or find the batch.
    let mut db = caller.begin_read(&api.context).await?;
    if let Some(unclaimed) = &key
        && let Some(earlier) = find_unscoped(&mut db, &caller.principal, &unclaimed.key).await?
    {
        drop(db);
        return replay(form, &slots, &meter, unclaimed, earlier).await;
    }

    let target = ingest::ingest_target(&mut db, &caller.scope(), batch, caller.user).await?;
    drop(db);

    let (mut form, slot) = (form.map_err(not_a_form)?, slots.try_acquire()?);

    // 2. Receive in a separate task: a client may disconnect at any time, even while the store
    // completes the file, and the work must be finished or undone.
    let task = async move {
        let hold = match &key {
            Some(UnclaimedKey { key, .. }) => {
                Some(KeyHold::acquire_unscoped(&api.context.pool, &caller.principal, key).await?)
            }
            None => None,
        };

        let work = Box::pin(async move {
            let received = form::receive(&api.context, &target, &mut form, &meter).await?;
            drop((form, slot));
            caller.origin.claim = key.map(|unclaimed| unclaimed.claim_with(&received.sha256));
            run_ingest(api, caller, target, received).await
        });

        match hold {
            Some(hold) => hold.run(work).await,
            None => work.await,
        }
    };

    let taken = tokio::spawn(task.in_current_span());
    taken.await.map_err(anyhow::Error::from)?
}

/// Replays the stored response of an upload under the same key. The file must be the same; the
/// batch may have changed.
async fn replay(
    form: std::result::Result<Multipart, MultipartRejection>,
    slots: &UploadSlots,
    meter: &BodyMeter,
    unclaimed: &UnclaimedKey,
    earlier: IdempotencyRecord,
) -> EnvelopeStatusResult<UploadReport> {
    let (mut form, _slot) = (form.map_err(not_a_form)?, slots.try_acquire()?);
    let sha256 = form::digest(&mut form, meter).await?;
    let stored = earlier.replay(&unclaimed.claim_with(&sha256))?;
    Err(Problem::replayed(stored))
}

fn not_a_form(_rejection: MultipartRejection) -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "send the file as multipart/form-data, in the field file",
    )
}

/// Add rows without a file
///
/// Adds the records of a JSON body, by the rules of a file.
#[utoipa::path(
    post,
    path = "/upload-json/{batch_id}",
    tag = "Uploads",
    params(("batch_id" = BatchId, Path)),
    request_body = UploadRecords,
    responses(
        (status = 200, body = Envelope<UploadReport>),
        BadRequestResponse,
        NotFoundResponse,
        ConflictResponse,
        CommonErrors,
    )
)]
async fn upload_json(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(batch): PathIds<BatchId>,
    ValidJson(body): ValidJson<UploadRecords>,
) -> EnvelopeStatusResult<UploadReport> {
    let mut fields = FieldErrors::default();
    fields.check(
        (1..=MAX_RECORDS).contains(&body.records.len()),
        "records",
        "length",
        format!("must have 1 to {MAX_RECORDS} records; send more as a CSV file"),
    );
    fields.finish()?;

    let records: Vec<RowInput> = body.records.into_iter().map(parse_record).collect();

    let mut db = caller.begin_write(&context).await?;
    let target = ingest::ingest_target(&mut db, &caller.scope(), batch, caller.user).await?;
    let limits = &context.config.uploads;
    let added = ingest::insert_records(&mut db, &target, limits, &records).await?;
    let most = usize::try_from(MAX_ERRORS).unwrap_or(usize::MAX);

    let report = UploadReport {
        ingest_id: None,
        ingest_job_id: None,
        file_name: None,
        file_bytes: None,
        bytes_read: None,
        status: IngestState::Completed,
        total_rows: added.counts.total_rows,
        inserted: added.counts.inserted,
        updated: 0,
        failed: added.counts.rejected,
        duplicates: added.counts.duplicates,
        warnings: added.warnings,
        errors: added.rejects.into_iter().take(most).collect(),
        error_report_url: None,
        failure: None,
        created_at: None,
        finished_at: None,
    };

    let note = AuditEntry::new("batch.add_records", target.org, batch.0);
    let Json(stored) = ok(report.summary(), report.without_values());
    let shown = ok(report.summary(), report);
    db.commit_redacted(note, StatusCode::OK, &stored, shown)
        .await
}

/// Get a CSV template
#[utoipa::path(
    get,
    path = "/template/{batch_id}",
    tag = "Uploads",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = String, content_type = "text/csv", example = "to_phonenumber,name\n"),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn template(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(batch): PathIds<BatchId>,
) -> Result<Response> {
    template_csv(&context, &caller, batch).await
}

/// Get a CSV template (alias)
#[utoipa::path(
    get,
    path = "/{batch_id}/template",
    tag = "Uploads",
    params(("batch_id" = BatchId, Path)),
    responses(
        (status = 200, body = String, content_type = "text/csv", example = "to_phonenumber,name\n"),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn template_of(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(batch): PathIds<BatchId>,
) -> Result<Response> {
    template_csv(&context, &caller, batch).await
}

async fn template_csv(context: &Context, caller: &Caller, batch: BatchId) -> Result<Response> {
    let mut db = caller.begin_read(context).await?;
    let batch = batches::find(&mut db, &caller.scope(), batch).await?;
    let csv = ingest::csv_template(&batch.variable_names)?;
    Ok(download("template.csv", Body::from(csv)))
}

/// List the uploads of a batch, newest first
#[utoipa::path(
    get,
    path = "/{batch_id}/ingests",
    tag = "Uploads",
    params(("batch_id" = BatchId, Path), ListParams),
    responses(
        (status = 200, body = Envelope<Vec<UploadReport>>, headers(("X-Truncated" = bool, description = "True when more rows follow"))),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(batch): PathIds<BatchId>,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<Envelope<Vec<UploadReport>>>> {
    let page = part.parse_page()?;
    let mut db = caller.begin_read(&context).await?;
    batches::find(&mut db, &caller.scope(), batch).await?;
    drop(db);
    let ingests = ingest::list(&context.pool, &caller.scope(), batch, page).await?;
    Ok(ListResponse::from_slice(ingests, |ingests| {
        let reports: Vec<UploadReport> = ingests
            .into_iter()
            .map(|ingest| UploadReport::from_ingest(ingest, Vec::new()))
            .collect();
        let Json(listed) = ok(format!("{} uploads", reports.len()), reports);
        listed
    }))
}

/// Show an upload and its result
#[utoipa::path(
    get,
    path = "/{batch_id}/ingests/{ingest_id}",
    tag = "Uploads",
    params(("batch_id" = BatchId, Path), ("ingest_id" = IngestId, Path)),
    responses(
        (status = 200, body = Envelope<UploadReport>),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds((batch, id)): PathIds<(BatchId, IngestId)>,
) -> EnvelopeResult<UploadReport> {
    let report = find_report(&context, &caller, batch, id).await?;
    Ok(ok(report.summary(), report))
}

/// Get the rejected rows as a CSV file
///
/// Each row has the columns that the batch uses, then its line in the uploaded file, the invalid
/// column and value, and the reason. Correct the rows and upload this file: the columns with the
/// reasons are ignored.
#[utoipa::path(
    get,
    path = "/{batch_id}/ingests/{ingest_id}/errors",
    tag = "Uploads",
    params(("batch_id" = BatchId, Path), ("ingest_id" = IngestId, Path)),
    responses(
        (status = 200, body = String, content_type = "text/csv", example = "to_phonenumber,name,line,column,value,code,message\r\n12,Ada,17,to_phonenumber,12,too_short,the number is too short\r\n"),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn errors(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds((batch, id)): PathIds<(BatchId, IngestId)>,
) -> Result<Response> {
    let csv = ingest::rejects_csv(&context.pool, &caller.scope(), batch, id).await?;
    Ok(download("errors.csv", Body::from_stream(csv)))
}

/// Queues the ingest of a stored file, and runs it when it is small.
async fn run_ingest(
    api: AppState,
    caller: Caller,
    target: IngestTarget,
    upload: StoredUpload,
) -> EnvelopeStatusResult<UploadReport> {
    failpoint::hit("upload.stored");
    let context = &api.context;
    let inline = upload.bytes <= INLINE_LIMIT_BYTES;

    // 1. Commit the ingest, its job and a first response for the key.
    if let Err(problem) = queue_ingest(context, &caller, &target, &upload, inline).await {
        // After an internal failure the commit may have succeeded, and the ingest needs its
        // file. A file without an ingest is purged later.
        if problem.is_client_error() {
            ingest::discard_upload(&context.pool, &context.store, &upload).await;
        }
        return Err(problem);
    }

    // 2. Run a small ingest at once.
    if inline {
        let (pool, store, limits) = (&context.pool, &context.store, &context.config.uploads);
        let run = ingest::run_unscoped(pool, store, limits, upload.ingest, &api.shutdown);
        // The job takes over an ingest that cannot run here.
        if let Err(error) = run.await {
            tracing::warn!(ingest.id = %upload.ingest, error = format!("{error:#}"), "ingest failed inline; its job will retry");
        }
    }

    // 3. Store the final response in place of the first.
    let report = find_report(context, &caller, target.batch, upload.ingest).await?;
    store_response(context, &caller, &current_response(report.without_values())).await;
    current_response(report)
}

/// Response to an upload in its current state.
fn current_response(report: UploadReport) -> EnvelopeStatusResult<UploadReport> {
    match report.status {
        IngestState::Queued | IngestState::Running => accepted(report),
        IngestState::Failed => Err(report.to_error().into()),
        IngestState::Completed => Ok((StatusCode::OK, ok(report.summary(), report))),
    }
}

fn accepted(report: UploadReport) -> EnvelopeStatusResult<UploadReport> {
    let message = "the file is being read; poll the ingest for its progress";
    Ok((StatusCode::ACCEPTED, ok(message, report)))
}

/// Stores the response under the upload's key, replacing the one that [`queue_ingest`] stored.
async fn store_response(
    context: &Context,
    caller: &Caller,
    answer: &EnvelopeStatusResult<UploadReport>,
) {
    let Some(claim) = &caller.origin.claim else {
        return;
    };

    let stored = match answer {
        Ok((status, Json(body))) => serde_json::to_value(body).map(|body| StoredResponse {
            status: status.as_u16(),
            body,
        }),
        Err(problem) => Ok(problem.to_stored()),
    };

    let result = async {
        let mut db = context.pool.acquire().await?;
        store_response_unscoped(&mut db, &caller.principal, claim, &stored?).await
    };
    if let Err(error) = result.await {
        tracing::warn!(
            error = format!("{error:#}"),
            "the response of an upload was not stored under its idempotency key"
        );
    }
}

async fn queue_ingest(
    context: &Context,
    caller: &Caller,
    target: &IngestTarget,
    upload: &StoredUpload,
    inline: bool,
) -> Result<()> {
    let job = IngestCsv {
        org_id: target.org,
        ingest_id: upload.ingest,
    };
    let run_at = inline.then(|| context.clock.now() + SAFETY_NET_DELAY);

    let mut db = caller.begin_write(context).await?;
    ingest::create(&mut db, target, upload, !inline).await?;
    let job = enqueue(&mut db, &job, run_at).await?;

    let note = AuditEntry::new("batch.upload", target.org, upload.ingest.0);
    let (status, report) = accepted(UploadReport::queued(upload))?;
    let _answer = db.commit(note, status, report).await?;

    context.wakeups.notify_job(&job);
    Ok(())
}

/// Parses one record, with its number as text of any JSON type. A missing or invalid number
/// becomes a text that is no number, so that the record fails and not the request.
fn parse_record(mut fields: Map<String, Value>) -> RowInput {
    let to_phonenumber = match fields.remove(PHONE_FIELD) {
        Some(Value::String(text)) => text,
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    };
    RowInput {
        to_phonenumber,
        variables: fields,
    }
}

async fn find_report(
    context: &Context,
    caller: &Principal,
    batch: BatchId,
    id: IngestId,
) -> Result<UploadReport> {
    let scope = caller.scope();
    let ingest = ingest::find(&context.pool, &scope, batch, id).await?;
    let errors = ingest::first_rejects(&context.pool, &scope, id, MAX_ERRORS).await?;
    Ok(UploadReport::from_ingest(ingest, errors))
}

fn download(name: &str, csv: Body) -> Response {
    let disposition = format!("attachment; filename=\"{name}\"");
    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
        (CONTENT_DISPOSITION, disposition),
    ];
    (headers, csv).into_response()
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Records, example = json!({"records": [{"to_phonenumber": "+12125550123", "name": "Ada"}]}))]
struct UploadRecords {
    /// Each has `to_phonenumber`; its other fields are variables.
    #[schema(value_type = Vec<Object>, min_items = 1, max_items = 20_000)]
    records: Vec<Map<String, Value>>,
}
