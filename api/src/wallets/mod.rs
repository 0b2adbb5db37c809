//! `/api/v1/wallets`: credit, caps and the ledger. Moving money needs a session: API keys can
//! only read.
//!
//! Credit consists of grants. The platform mints into any wallet; an organisation's
//! administrators transfer from its wallet to a member's. Every request that moves money carries
//! an idempotency key of the client's choice, so that sent twice it moves money once.

pub mod bodies;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::access::Role;
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::platform::ids::{GrantId, OrgId, WalletId};
use peal_shared::wallets::adjust::{BalanceAdjustment, adjust as adjust_balance};
use peal_shared::wallets::grants::NewGrant;
use peal_shared::wallets::queries::{Grant, Wallet, WalletOwner};
use peal_shared::wallets::{caps, grants, queries};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{PathIds, ValidJson, ValidQuery};
use crate::http::idempotency;
use crate::http::openapi::{BadRequestResponse, CommonErrors, ConflictResponse, NotFoundResponse};
use crate::http::paging::{ListResponse, PageParams, parse_page, query_error};
use crate::state::AppState;
use crate::wallets::bodies::{
    AdjustBalance, AdjustedBalance, EditGrant, GiveCredit, GrantedCredit,
    InsufficientFundsResponse, LedgerQuery, MemberWallets, SetCap, WalletDetail, WalletPage,
    WalletSet,
};

/// Default entries on a page of the ledger.
const DEFAULT_LEDGER_ENTRIES: i64 = 50;
const MAX_LEDGER_ENTRIES: i64 = 200;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(mine))
        .routes(routes!(of_users))
        .routes(routes!(of_orgs))
        .routes(routes!(of_members))
        .routes(routes!(show))
        .routes(routes!(give))
        .routes(routes!(edit_grant))
        .routes(routes!(set_cap))
        .routes(routes!(adjust))
}

/// Show the caller's wallet
#[utoipa::path(
    get,
    path = "/api/v1/wallets/me",
    tag = "Wallets",
    responses((status = 200, body = Wallet), CommonErrors)
)]
async fn mine(State(context): State<Arc<Context>>, caller: Caller) -> Result<Json<Wallet>> {
    let scope = caller.scope_of(caller.user)?;
    let mut db = caller.begin_read(&context).await?;
    let now = context.clock.now();
    Ok(Json(
        queries::of_user(&mut db, &scope, caller.user, now).await?,
    ))
}

/// List the wallets of all users
///
/// For super_admins.
#[utoipa::path(
    get,
    path = "/api/v1/wallets/users",
    tag = "Wallets",
    security(("session" = [])),
    params(PageParams),
    responses((status = 200, body = WalletPage), CommonErrors)
)]
async fn of_users(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<PageParams>,
) -> Result<Json<WalletPage>> {
    list(&context, &caller, WalletOwner::User, query).await
}

/// List the wallets of all organizations
///
/// For super_admins.
#[utoipa::path(
    get,
    path = "/api/v1/wallets/orgs",
    tag = "Wallets",
    security(("session" = [])),
    params(PageParams),
    responses((status = 200, body = WalletPage), CommonErrors)
)]
async fn of_orgs(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<PageParams>,
) -> Result<Json<WalletPage>> {
    list(&context, &caller, WalletOwner::Organization, query).await
}

async fn list(
    context: &Context,
    caller: &Caller,
    owner: WalletOwner,
    query: PageParams,
) -> Result<Json<WalletPage>> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    let page = parse_page(query.page, query.page_size)?;
    let mut db = caller.begin_read(context).await?;
    let now = context.clock.now();
    let (wallets, total) = queries::list(&mut db, &caller.scope(), owner, None, page, now).await?;
    Ok(Json(WalletPage {
        wallets,
        total,
        page: page.number,
        page_size: page.size,
    }))
}

/// List the wallets of an organization's members
///
/// For its org_admins, and super_admins. Includes the organization's own wallet.
#[utoipa::path(
    get,
    path = "/api/v1/wallets/orgs/{org_id}/members",
    tag = "Wallets",
    security(("session" = [])),
    params(("org_id" = OrgId, Path), PageParams),
    responses((status = 200, body = MemberWallets), NotFoundResponse, CommonErrors)
)]
async fn of_members(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(org): PathIds<OrgId>,
    ValidQuery(query): ValidQuery<PageParams>,
) -> Result<Json<MemberWallets>> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;
    let page = parse_page(query.page, query.page_size)?;
    let (scope, now) = (caller.scope(), context.clock.now());
    let mut db = caller.begin_read(&context).await?;
    let organization_wallet = queries::of_org(&mut db, &scope, org, now).await?;
    let (wallets, total) =
        queries::list(&mut db, &scope, WalletOwner::User, Some(org), page, now).await?;
    Ok(Json(MemberWallets {
        organization_wallet,
        wallets,
        total,
        page: page.number,
        page_size: page.size,
    }))
}

/// Show a wallet, its grants and a page of its ledger
///
/// The caller's own; an org_admin sees those of the organization, a super_admin all. Spendable
/// grants come first, in the order in which they are spent; at most 500 are shown. The ledger
/// starts with its newest entry; `next` is the `after` of the following page.
#[utoipa::path(
    get,
    path = "/api/v1/wallets/{wallet_id}",
    tag = "Wallets",
    params(("wallet_id" = WalletId, Path), LedgerQuery),
    responses(
        (status = 200, body = WalletDetail, headers(
            ("X-Truncated" = bool, description = "True when more grants follow"),
        )),
        NotFoundResponse,
        CommonErrors,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<WalletId>,
    ValidQuery(query): ValidQuery<LedgerQuery>,
) -> Result<ListResponse<WalletDetail>> {
    let limit = query.limit.unwrap_or(DEFAULT_LEDGER_ENTRIES);
    if !(1..=MAX_LEDGER_ENTRIES).contains(&limit) {
        return Err(query_error("limit", "must be between 1 and 200"));
    }
    let (scope, now) = (caller.scope(), context.clock.now());
    let mut db = caller.begin_read(&context).await?;
    let wallet = queries::find(&mut db, &scope, id, now).await?;
    let grants = queries::grants_of(&mut db, &scope, id, now).await?;
    let ledger = queries::ledger_page(&mut db, &scope, id, query.after, limit).await?;
    Ok(ListResponse::from_slice(grants, |grants| WalletDetail {
        wallet,
        upcoming_expiry: queries::upcoming_expiries(&grants),
        grants,
        ledger,
    }))
}

/// Give credit to a wallet
///
/// A super_admin mints it. An org_admin transfers it from the organization's wallet to a
/// member's; transferred credit expires no later than its source. Needs an `Idempotency-Key`, or
/// `idempotency_key` in the body. Batches paused for lack of credit resume automatically when
/// their `auto_resume` is set.
#[utoipa::path(
    post,
    path = "/api/v1/wallets/{wallet_id}/grants",
    tag = "Wallets",
    security(("session" = [])),
    params(("wallet_id" = WalletId, Path)),
    request_body(content = GiveCredit, example = json!({
        "amount_usd": "25.00", "note": "November", "idempotency_key": "0197d7a5-3c1e-7a10-8f00-00000000000f"
    })),
    responses((status = 201, body = GrantedCredit), BadRequestResponse, InsufficientFundsResponse, NotFoundResponse, ConflictResponse, CommonErrors)
)]
async fn give(
    State(context): State<Arc<Context>>,
    mut caller: Caller,
    PathIds(id): PathIds<WalletId>,
    ValidJson(body): ValidJson<GiveCredit>,
) -> Result<(StatusCode, Json<GrantedCredit>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;
    body.check()?;

    // 1. Require an idempotency key, for the claim and the ledger.
    let path = format!("/api/v1/wallets/{id}/grants");
    let key = body.idempotency_key.as_deref();
    let new = NewGrant {
        idem_key: idempotency::require_key(&mut caller, key, &path, &body)?,
        ..body.to_grant()
    };

    // 2. Mint or transfer.
    let (scope, by, now) = (caller.scope(), caller.user, context.clock.now());
    let mut db = caller.begin_write(&context).await?;
    let (message, granted) = match caller.role {
        Role::SuperAdmin => (
            "credit granted",
            grants::mint(&mut db, &scope, id, &new, by, now).await?,
        ),
        Role::OrgAdmin | Role::User => (
            "credit transferred",
            grants::transfer(&mut db, &scope, id, &new, by, now).await?,
        ),
    };

    let note = AuditEntry::new("wallet.grant", granted.wallet.organization_id, id.0)
        .after(&granted.grant)?;

    let answer = GrantedCredit {
        message,
        grant: granted.grant,
        wallet: granted.wallet,
        ledger_entry_id: granted.entry,
    };
    db.commit(note, StatusCode::CREATED, Json(answer)).await
}

/// Change when a grant expires, whether it is locked, and its priority
///
/// Absent fields stay unchanged. An org_admin changes transferred grants, but cannot extend
/// them; a super_admin changes any.
#[utoipa::path(
    patch,
    path = "/api/v1/wallets/grants/{grant_id}",
    tag = "Wallets",
    security(("session" = [])),
    params(("grant_id" = GrantId, Path)),
    request_body(content = EditGrant, example = json!({"locked": true})),
    responses((status = 200, body = Grant), NotFoundResponse, ConflictResponse, CommonErrors)
)]
async fn edit_grant(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<GrantId>,
    ValidJson(body): ValidJson<EditGrant>,
) -> Result<(StatusCode, Json<Grant>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;
    let change = body.validated()?;
    let (scope, now) = (caller.scope(), context.clock.now());
    let mut db = caller.begin_write(&context).await?;
    let (before, after) = grants::edit(&mut db, &scope, &caller, id, &change, now).await?;
    let note = AuditEntry::new("grant.update", after.org_id, id.0)
        .before(&before)?
        .after(&after)?;
    db.commit(note, StatusCode::OK, Json(after)).await
}

/// Set or clear a wallet's monthly cap
///
/// For org_admins of the organization, and super_admins. Limits what is spent and held in a
/// calendar month of the organization's time zone; null clears it, 0 stops all calls.
#[utoipa::path(
    post,
    path = "/api/v1/wallets/{wallet_id}/cap",
    tag = "Wallets",
    security(("session" = [])),
    params(("wallet_id" = WalletId, Path)),
    request_body(content = SetCap, example = json!({"monthly_cap_usd": "100.00"})),
    responses((status = 200, body = WalletSet), NotFoundResponse, CommonErrors)
)]
async fn set_cap(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<WalletId>,
    ValidJson(body): ValidJson<SetCap>,
) -> Result<(StatusCode, Json<WalletSet>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;
    let cap = body.validated()?;

    let (scope, now) = (caller.scope(), context.clock.now());
    let mut db = caller.begin_write(&context).await?;
    let (before, after) = caps::set(&mut db, &scope, id, cap, now).await?;

    let note = AuditEntry::new("wallet.set_cap", after.organization_id, id.0)
        .before(&before)?
        .after(&after)?;

    let answer = WalletSet {
        message: match cap {
            Some(_) => "cap set",
            None => "cap cleared",
        },
        wallet: after,
    };
    db.commit(note, StatusCode::OK, Json(answer)).await
}

/// Adjust a wallet's balance
///
/// For super_admins. Adds a ledger entry without a grant: added credit does not expire and is
/// spent last. Needs an `Idempotency-Key`, or `idempotency_key` in the body.
#[utoipa::path(
    post,
    path = "/api/v1/wallets/{wallet_id}/adjust",
    tag = "Wallets",
    security(("session" = [])),
    params(("wallet_id" = WalletId, Path)),
    request_body(content = AdjustBalance, example = json!({
        "delta_usd": "-1.50", "reason": "Charged twice by hand", "idempotency_key": "0197d7a5-3c1e-7a10-8f00-000000000010"
    })),
    responses((status = 200, body = AdjustedBalance), NotFoundResponse, ConflictResponse, CommonErrors)
)]
async fn adjust(
    State(context): State<Arc<Context>>,
    mut caller: Caller,
    PathIds(id): PathIds<WalletId>,
    ValidJson(body): ValidJson<AdjustBalance>,
) -> Result<(StatusCode, Json<AdjustedBalance>)> {
    caller.require_session()?;
    caller.require(Role::SuperAdmin)?;
    body.check()?;

    // 1. Require an idempotency key, for the claim and the ledger.
    let path = format!("/api/v1/wallets/{id}/adjust");
    let key = body.idempotency_key.as_deref();
    let adjustment = BalanceAdjustment {
        idem_key: idempotency::require_key(&mut caller, key, &path, &body)?,
        delta: body.delta_usd,
        reason: body.reason.trim().to_owned(),
        allow_negative: body.allow_negative,
    };

    // 2. Adjust.
    let (scope, by, now) = (caller.scope(), caller.user, context.clock.now());
    let mut db = caller.begin_write(&context).await?;
    let (before, after, entry) = adjust_balance(&mut db, &scope, id, &adjustment, by, now).await?;

    let note = AuditEntry::new("wallet.adjust", after.organization_id, id.0)
        .before(&before)?
        .after(&after)?;

    let answer = AdjustedBalance {
        message: "balance adjusted",
        wallet: after,
        ledger_entry_id: entry,
    };
    db.commit(note, StatusCode::OK, Json(answer)).await
}
