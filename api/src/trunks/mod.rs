//! `/api/v1/trunks`: accounts with carriers. Only administrators with a session change them; API
//! keys cannot. Secrets are write-only. Credentials are verified at the carrier before they are
//! saved.
//!
//! Only a `super_admin` sets the carrier's API address, because Peal sends requests to it.

pub mod bodies;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::access::Role;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::platform::ids::TrunkId;
use peal_shared::telephony::{AccountStatus, CarrierAccount};
use peal_shared::trunks::settings::{Trunk, TrunkUpdate};
use peal_shared::trunks::{NewTrunk, settings};
use peal_shared::{Error, trunks};
use rust_decimal::Decimal;
use url::Url;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, OptionalJson, PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListParams, ListResponse};
use crate::state::AppState;
use crate::trunks::bodies::{
    AddTrunk, PauseTrunk, TrunkCheck, TrunkDeleted, TrunkErrors, TrunkSecret, UpdateTrunk,
};

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, update, delete))
        .routes(routes!(check))
        .routes(routes!(rotate))
        .routes(routes!(pause))
        .routes(routes!(resume))
}

/// List trunks
///
/// Trunks of the caller's organisation, the newest first; a `super_admin` sees all, including the
/// platform's own.
#[utoipa::path(
    get,
    path = "/api/v1/trunks",
    tag = "Trunks",
    params(ListParams),
    responses((status = 200, body = Vec<Trunk>, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<Vec<Trunk>>> {
    let page = part.parse_page()?;
    let mut db = caller.begin_read(&context).await?;
    let trunks = settings::list(&mut db, &caller.scope(), None, page).await?;
    Ok(trunks.into())
}

/// Add a trunk
///
/// For org_admins. The account and its secret are verified at the carrier first.
#[utoipa::path(
    post,
    path = "/api/v1/trunks",
    tag = "Trunks",
    security(("session" = [])),
    request_body(content = AddTrunk, example = json!({
        "name": "Main", "account_id": "AC00000000000000000000000000000000", "password": "the auth token",
        "cps": 1, "max_concurrent": 50
    })),
    responses((status = 201, body = Trunk), TrunkErrors, CommonErrors)
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<AddTrunk>,
) -> Result<(StatusCode, Json<Trunk>)> {
    caller.require(Role::OrgAdmin)?;
    let needs_super_admin =
        body.platform || body.organization_id.is_some() || body.api_base_url.is_some();
    if needs_super_admin && caller.role != Role::SuperAdmin {
        return Err(Error::Forbidden(
            "Forbidden: platform, organization_id and api_base_url need the role super_admin"
                .into(),
        )
        .into());
    }

    let new = new_trunk(&caller, body)?;
    let created = caller.run_once(context, move |context, caller| async move {
        verify_account(&context, &new.account).await?;
        let mut db = caller.begin_write(&context).await?;
        let id = trunks::create_unscoped(&mut db, &context.config.keys, &new).await?;
        let trunk = settings::find(&mut db, &caller.scope(), id).await?;
        let note = audit_entry("trunk.create", &caller, &trunk).after(&trunk)?;
        db.commit(note, StatusCode::CREATED, Json(trunk)).await
    });
    created.await
}

/// Validates the body of a new trunk.
fn new_trunk(caller: &Caller, body: AddTrunk) -> Result<NewTrunk> {
    let mut fields = FieldErrors::default();
    let name = body.name.trim().to_owned();

    let cps = check_limits(
        &mut fields,
        &name,
        body.cps,
        body.max_concurrent,
        body.ring_timeout_secs,
    );

    fields.check_text(&body.account_id, "account_id", 1, 100);
    let is_id = body.account_id.bytes().all(|b| b.is_ascii_alphanumeric());
    fields.check(
        is_id,
        "account_id",
        "characters",
        "must be letters and digits",
    );

    let secret = TrunkSecret {
        username: body.username,
        password: body.password,
        signing_secret: body.signing_secret,
    };
    let credentials = secret.validated(&mut fields);

    let base = body.api_base_url.as_deref().map(Url::parse);
    let is_http = base.as_ref().is_none_or(|url| {
        url.as_ref()
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
    });
    fields.check(
        is_http,
        "api_base_url",
        "url",
        "must be an http or https address",
    );

    fields.finish()?;

    if body.platform && body.organization_id.is_some() {
        return Err(Error::rejected(
            "platform_or_organization",
            "a trunk of the platform has no organization: send one of platform and organization_id",
        )
        .into());
    }

    let org = match body.platform {
        true => None,
        false => Some(body.organization_id.unwrap_or(caller.org)),
    };

    let account = CarrierAccount {
        kind: body.kind,
        account_id: body.account_id,
        credentials,
        api_base_url: base.and_then(std::result::Result::ok),
    };

    Ok(NewTrunk {
        org,
        name,
        account,
        cps,
        max_concurrent: body.max_concurrent,
        ring_timeout_secs: body.ring_timeout_secs,
    })
}

/// Show a trunk
#[utoipa::path(
    get,
    path = "/api/v1/trunks/{trunk_id}",
    tag = "Trunks",
    params(("trunk_id" = TrunkId, Path)),
    responses(
        (status = 200, body = Trunk),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such trunk"),
        CommonErrors,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<TrunkId>,
) -> Result<Json<Trunk>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(settings::find(&mut db, &caller.scope(), id).await?))
}

/// Change a trunk's name and limits
///
/// For org_admins. Absent fields stay unchanged; limits apply from the next call.
#[utoipa::path(
    put,
    path = "/api/v1/trunks/{trunk_id}",
    tag = "Trunks",
    security(("session" = [])),
    params(("trunk_id" = TrunkId, Path)),
    request_body(content = UpdateTrunk, example = json!({"cps": 2.5, "max_concurrent": 100})),
    responses((status = 200, body = Trunk), TrunkErrors, CommonErrors)
)]
async fn update(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<TrunkId>,
    ValidJson(body): ValidJson<UpdateTrunk>,
) -> Result<(StatusCode, Json<Trunk>)> {
    caller.require(Role::OrgAdmin)?;

    let mut db = caller.begin_write(&context).await?;
    let before = settings::lock(&mut db, &caller.scope(), id).await?;

    let name = body
        .name
        .as_deref()
        .unwrap_or(&before.name)
        .trim()
        .to_owned();
    let max_concurrent = body.max_concurrent.unwrap_or(before.max_concurrent);
    let ring_timeout_secs = body.ring_timeout_secs.unwrap_or(before.ring_timeout_secs);

    let mut fields = FieldErrors::default();
    let cps = body.cps.unwrap_or(before.cps);
    let cps = check_limits(&mut fields, &name, cps, max_concurrent, ring_timeout_secs);
    fields.finish()?;

    let limits = TrunkUpdate {
        name,
        cps,
        max_concurrent,
        ring_timeout_secs,
    };

    let trunk = settings::update(&mut db, &caller.scope(), id, &limits).await?;

    let note = audit_entry("trunk.update", &caller, &trunk)
        .before(&before)?
        .after(&trunk)?;
    db.commit(note, StatusCode::OK, Json(trunk)).await
}

/// Check a trunk's account at its carrier
///
/// For org_admins. Changes only the audit log.
#[utoipa::path(
    post,
    path = "/api/v1/trunks/{trunk_id}/check",
    tag = "Trunks",
    security(("session" = [])),
    params(("trunk_id" = TrunkId, Path)),
    responses((status = 200, body = TrunkCheck), TrunkErrors, CommonErrors)
)]
async fn check(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<TrunkId>,
) -> Result<(StatusCode, Json<TrunkCheck>)> {
    caller.require(Role::OrgAdmin)?;
    let checked = caller.run_once(context, move |context, caller| async move {
        let (trunk, account) = find_with_account(&context, &caller, id).await?;
        let standing = context
            .carriers
            .adapter(account.kind)
            .check(&account)
            .await?;

        let checked = match standing {
            AccountStatus::Good => TrunkCheck {
                accepted: true,
                reason: None,
            },
            AccountStatus::Refused(why) => TrunkCheck {
                accepted: false,
                reason: Some(why),
            },
        };

        let db = caller.begin_write(&context).await?;
        let note = audit_entry("trunk.check", &caller, &trunk);
        db.commit(note, StatusCode::OK, Json(checked)).await
    });
    checked.await
}

/// Replace a trunk's secret
///
/// For org_admins. The new secret is verified at the carrier first. Callbacks signed with the
/// old one are accepted until two more rotations.
#[utoipa::path(
    post,
    path = "/api/v1/trunks/{trunk_id}/rotate",
    tag = "Trunks",
    security(("session" = [])),
    params(("trunk_id" = TrunkId, Path)),
    request_body(content = TrunkSecret, example = json!({"password": "the new auth token"})),
    responses((status = 200, body = Trunk), TrunkErrors, CommonErrors)
)]
async fn rotate(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<TrunkId>,
    ValidJson(body): ValidJson<TrunkSecret>,
) -> Result<(StatusCode, Json<Trunk>)> {
    caller.require(Role::OrgAdmin)?;
    let mut fields = FieldErrors::default();
    let credentials = body.validated(&mut fields);
    fields.finish()?;

    let rotated = caller.run_once(context, move |context, caller| async move {
        let account = CarrierAccount {
            credentials: credentials.clone(),
            ..find_with_account(&context, &caller, id).await?.1
        };

        verify_account(&context, &account).await?;

        let keys = &context.config.keys;
        let mut db = caller.begin_write(&context).await?;
        settings::lock(&mut db, &caller.scope(), id).await?;
        let trunk =
            settings::rotate_credentials(&mut db, &caller.scope(), keys, id, &credentials).await?;

        let note = audit_entry("trunk.rotate", &caller, &trunk);
        db.commit(note, StatusCode::OK, Json(trunk)).await
    });
    rotated.await
}

/// Pause a trunk
///
/// For org_admins. Nothing is dialled through it until it is resumed; current calls
/// continue.
#[utoipa::path(
    post,
    path = "/api/v1/trunks/{trunk_id}/pause",
    tag = "Trunks",
    security(("session" = [])),
    params(("trunk_id" = TrunkId, Path)),
    request_body(content = Option<PauseTrunk>, example = json!({"reason": "The carrier works on its lines"})),
    responses((status = 200, body = Trunk), TrunkErrors, CommonErrors)
)]
async fn pause(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<TrunkId>,
    OptionalJson(body): OptionalJson<PauseTrunk>,
) -> Result<(StatusCode, Json<Trunk>)> {
    caller.require(Role::OrgAdmin)?;
    let reason = body
        .reason
        .unwrap_or_else(|| "paused by its owner".to_owned());
    let mut fields = FieldErrors::default();
    fields.check_text(reason.trim(), "reason", 1, 500);
    fields.finish()?;
    set_paused(&context, &caller, id, Some(reason.trim())).await
}

/// Resume a trunk
///
/// For org_admins.
#[utoipa::path(
    post,
    path = "/api/v1/trunks/{trunk_id}/resume",
    tag = "Trunks",
    security(("session" = [])),
    params(("trunk_id" = TrunkId, Path)),
    responses((status = 200, body = Trunk), TrunkErrors, CommonErrors)
)]
async fn resume(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<TrunkId>,
) -> Result<(StatusCode, Json<Trunk>)> {
    caller.require(Role::OrgAdmin)?;
    set_paused(&context, &caller, id, None).await
}

async fn set_paused(
    context: &Context,
    caller: &Caller,
    id: TrunkId,
    reason: Option<&str>,
) -> Result<(StatusCode, Json<Trunk>)> {
    let action = match reason {
        Some(_) => "trunk.pause",
        None => "trunk.resume",
    };
    let mut db = caller.begin_write(context).await?;
    let before = settings::lock(&mut db, &caller.scope(), id).await?;
    let trunk = settings::set_paused(&mut db, &caller.scope(), id, reason).await?;
    let note = audit_entry(action, caller, &trunk)
        .before(&before)?
        .after(&trunk)?;
    db.commit(note, StatusCode::OK, Json(trunk)).await
}

/// Delete a trunk
///
/// For org_admins. Its secrets are erased; past calls keep its id.
#[utoipa::path(
    delete,
    path = "/api/v1/trunks/{trunk_id}",
    tag = "Trunks",
    security(("session" = [])),
    params(("trunk_id" = TrunkId, Path)),
    responses((status = 200, body = TrunkDeleted), TrunkErrors, CommonErrors)
)]
async fn delete(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<TrunkId>,
) -> Result<(StatusCode, Json<TrunkDeleted>)> {
    caller.require(Role::OrgAdmin)?;
    let mut db = caller.begin_write(&context).await?;
    let keys = &context.config.keys;
    let trunk = settings::delete(&mut db, &caller.scope(), keys, id).await?;
    let note = audit_entry("trunk.delete", &caller, &trunk).before(&trunk)?;
    let answer = TrunkDeleted {
        message: "trunk deleted",
    };
    db.commit(note, StatusCode::OK, Json(answer)).await
}

/// Finds a trunk visible to the caller, and its account.
async fn find_with_account(
    context: &Context,
    caller: &Caller,
    id: TrunkId,
) -> Result<(Trunk, CarrierAccount)> {
    let mut db = caller.begin_read(context).await?;
    let trunk = settings::find(&mut db, &caller.scope(), id).await?;
    drop(db);
    let account = trunks::account_unscoped(&context.pool, &context.config.keys, id).await?;
    Ok((trunk, account))
}

/// Rejects an account that its carrier does not accept.
async fn verify_account(context: &Context, account: &CarrierAccount) -> Result<()> {
    match context
        .carriers
        .adapter(account.kind)
        .check(account)
        .await?
    {
        AccountStatus::Good => Ok(()),
        AccountStatus::Refused(why) => Err(Error::rejected("carrier_refused", why).into()),
    }
}

/// Checks the limits, and returns the calls per second as stored.
fn check_limits(
    fields: &mut FieldErrors,
    name: &str,
    cps: f64,
    max_concurrent: i32,
    ring_timeout_secs: i32,
) -> Decimal {
    fields.check_text(name, "name", 1, 200);
    fields.check_fraction(cps, "cps", 0.001, 10_000.0);
    fields.check_range(max_concurrent, "max_concurrent", 1, 100_000);
    fields.check_range(ring_timeout_secs, "ring_timeout_secs", 15, 600);
    Decimal::try_from(cps).unwrap_or_default().round_dp(3)
}

/// Audit entry of a change of a trunk; of a platform trunk in the caller's organisation.
fn audit_entry(action: &'static str, caller: &Caller, trunk: &Trunk) -> AuditEntry {
    let org = trunk.organization_id.unwrap_or(caller.org);
    AuditEntry::new(action, org, trunk.id.0)
}
