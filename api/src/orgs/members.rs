//! Users visible to the caller (`/api/v1/me/users`), and members, roles and invitations of an
//! organisation (`/api/v1/organizations/{id}`).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::Error;
use peal_shared::access::Role;
use peal_shared::access::owner_filter::OwnerFilter;
use peal_shared::audit::AuditEntry;
use peal_shared::auth::external_identity::is_email;
use peal_shared::context::Context;
use peal_shared::orgs::invites::Invite;
use peal_shared::orgs::members::Member;
use peal_shared::orgs::{find_own, invites, members};
use peal_shared::platform::ids::{InviteId, OrgId, UserId};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::login::check_password;
use crate::auth::{Caller, RequestOrigin};
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListParams, ListResponse, PageParams, PagedOwnedListParams, parse_page};
use crate::limits::auth_limits::AuthRateLimits;
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(visible_users))
        .routes(routes!(list_members))
        .routes(routes!(set_role))
        .routes(routes!(remove_member))
        .routes(routes!(invite, list_invites))
        .routes(routes!(revoke_invite))
}

/// Unauthenticated routes.
pub fn anonymous_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(accept_invite))
}

/// List the users that the caller may see
///
/// For org_admins the members of the organization, for super_admins all users, for others an
/// empty list. The lists in the query are separated by commas.
#[utoipa::path(
    get,
    path = "/api/v1/me/users",
    tag = "Me",
    params(
        ("page" = Option<i64>, Query), ("page_size" = Option<i64>, Query),
        ("organization_ids" = Option<String>, Query), ("owner_user_ids" = Option<String>, Query),
        ("platform_roles" = Option<String>, Query), ("scope" = Option<String>, Query, description = "mine or all"),
    ),
    responses((status = 200, body = MemberPage), CommonErrors)
)]
async fn visible_users(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<PagedOwnedListParams>,
) -> Result<Json<MemberPage>> {
    let (page, owners) = (
        parse_page(query.page, query.page_size)?,
        query.parse_owners()?,
    );
    if caller.role == Role::User {
        return Ok(Json(MemberPage {
            users: Vec::new(),
            total: 0,
            page: page.number,
            page_size: page.size,
            message: Some("only administrators see other users"),
        }));
    }
    let scope = match query.is_own_only() {
        true => caller.scope_of(caller.user)?,
        false => caller.scope(),
    };
    let mut db = caller.begin_read(&context).await?;
    let (users, total) = members::list(&mut db, &scope, &owners, page).await?;
    Ok(Json(MemberPage {
        users,
        total,
        page: page.number,
        page_size: page.size,
        message: None,
    }))
}

/// List an organization's members
#[utoipa::path(
    get,
    path = "/api/v1/organizations/{id}/users",
    tag = "Organizations",
    security(("session" = [])),
    params(("id" = OrgId, Path), PageParams),
    responses(
        (status = 200, body = MemberPage),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such organization"),
        CommonErrors,
    )
)]
async fn list_members(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<OrgId>,
    ValidQuery(query): ValidQuery<PageParams>,
) -> Result<Json<MemberPage>> {
    caller.require(Role::OrgAdmin)?;
    let page = parse_page(query.page, query.page_size)?;
    let scope = caller.scope();
    let mut db = caller.begin_read(&context).await?;
    find_own(&mut db, &scope, id).await?;
    let owners = OwnerFilter {
        orgs: Some(vec![id]),
        ..OwnerFilter::default()
    };
    let (users, total) = members::list(&mut db, &scope, &owners, page).await?;
    Ok(Json(MemberPage {
        users,
        total,
        page: page.number,
        page_size: page.size,
        message: None,
    }))
}

/// Change a member's role
///
/// Applies from the member's next request. An administrator cannot change their own role or
/// grant a role above their own.
#[utoipa::path(
    patch,
    path = "/api/v1/organizations/{id}/users/{user_id}/org-role",
    tag = "Organizations",
    security(("session" = [])),
    params(("id" = OrgId, Path), ("user_id" = UserId, Path)),
    request_body(content = NewRole, example = json!({"role": "org_admin"})),
    responses(
        (status = 200, body = Member),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such member"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The organization would have no administrator"),
        CommonErrors,
    )
)]
async fn set_role(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds((org, user)): PathIds<(OrgId, UserId)>,
    ValidJson(body): ValidJson<NewRole>,
) -> Result<(StatusCode, Json<Member>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;
    let mut db = caller.begin_write(&context).await?;
    let (before, after) =
        members::set_role(&mut db, &caller.scope(), &caller, org, user, body.role).await?;
    let note = AuditEntry::new("user.set_role", org, user.0)
        .before(&before)?
        .after(&after)?;
    db.commit(note, StatusCode::OK, Json(after)).await
}

/// Remove a member
///
/// Their sessions and API keys end at once. Their resources stay.
#[utoipa::path(
    delete,
    path = "/api/v1/organizations/{id}/users/{user_id}",
    tag = "Organizations",
    security(("session" = [])),
    params(("id" = OrgId, Path), ("user_id" = UserId, Path)),
    responses(
        (status = 200, body = RemovalMessage),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such member"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The member has running or waiting batches or calls, or the organization would have no administrator"),
        CommonErrors,
    )
)]
async fn remove_member(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds((org, user)): PathIds<(OrgId, UserId)>,
) -> Result<(StatusCode, Json<RemovalMessage>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;
    let mut db = caller.begin_write(&context).await?;
    let member = members::remove(&mut db, &caller.scope(), &caller, org, user).await?;
    let note = AuditEntry::new("user.remove", org, user.0).before(&member)?;
    let answer = RemovalMessage {
        message: "the user is removed",
    };
    db.commit(note, StatusCode::OK, Json(answer)).await
}

/// Invite a user
///
/// The user gets an e-mail with a link that is valid for a week. Inviting again replaces the link.
#[utoipa::path(
    post,
    path = "/api/v1/organizations/{id}/invites",
    tag = "Organizations",
    security(("session" = [])),
    params(("id" = OrgId, Path)),
    request_body(content = NewInvite, example = json!({"email": "ada@example.com", "role": "user"})),
    responses(
        (status = 201, body = Invite),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such organization"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The address belongs to a member"),
        CommonErrors,
    )
)]
async fn invite(
    State(context): State<Arc<Context>>,
    State(limits): State<AuthRateLimits>,
    caller: Caller,
    PathIds(org): PathIds<OrgId>,
    ValidJson(body): ValidJson<NewInvite>,
) -> Result<(StatusCode, Json<Invite>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;

    let email = body.email.trim();
    let mut fields = FieldErrors::default();
    let message = "must be an e-mail address such as name@example.com";
    fields.check(is_email(email), "email", "email", message);
    let message = "must be user or org_admin; only the operator creates a super_admin";
    fields.check(body.role != Role::SuperAdmin, "role", "enum", message);
    fields.finish()?;

    // 1. Take a token of the rate limit before anything is sent.
    limits.check_invite(caller.org)?;

    let text = |id: InviteId, name: &str| invite_mail_text(&context, id, name);

    // 2. Store the invitation and its mail job in one transaction.
    let mut db = caller.begin_write(&context).await?;
    let (invite, job) = invites::create(
        &mut db,
        &caller.scope(),
        &caller,
        org,
        email,
        body.role,
        text,
    )
    .await?;

    let note = AuditEntry::new("invite.create", org, invite.id.0).after(&invite)?;
    let answer = db.commit(note, StatusCode::CREATED, Json(invite)).await?;

    // 3. Wake a worker after the commit.
    if let Some(job) = job {
        context.wakeups.notify_job(&job);
    }
    Ok(answer)
}

fn invite_mail_text(context: &Context, id: InviteId, organization: &str) -> String {
    let token = context.config.keys.invite_token(id);
    let base = context.config.public_url.as_str().trim_end_matches('/');
    format!(
        "You are invited to {organization} on Peal.\n\n\
         Choose a password here:\n\n{base}/accept-invite?token={token}\n\n\
         Programs: POST {base}/api/v1/organizations/invites/accept with the token and a password.\n\
         If you sign in with another provider, sign in there with this e-mail address.\n\n\
         The invitation is valid for a week. If you did not expect it, do nothing.\n"
    )
}

/// List an organization's open invitations
///
/// The newest first.
#[utoipa::path(
    get,
    path = "/api/v1/organizations/{id}/invites",
    tag = "Organizations",
    security(("session" = [])),
    params(("id" = OrgId, Path), ListParams),
    responses(
        (status = 200, body = InviteList, headers(("X-Truncated" = bool, description = "True when more rows follow"))),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such organization"),
        CommonErrors,
    )
)]
async fn list_invites(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(org): PathIds<OrgId>,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<InviteList>> {
    caller.require(Role::OrgAdmin)?;
    let page = part.parse_page()?;
    let mut db = caller.begin_read(&context).await?;
    let invites = invites::list(&mut db, &caller.scope(), org, page).await?;
    Ok(ListResponse::from_slice(invites, |invites| InviteList {
        invites,
    }))
}

/// Revoke an invitation
#[utoipa::path(
    delete,
    path = "/api/v1/organizations/{id}/invites/{invite_id}",
    tag = "Organizations",
    security(("session" = [])),
    params(("id" = OrgId, Path), ("invite_id" = InviteId, Path)),
    responses(
        (status = 200, body = RemovalMessage),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such open invitation"),
        CommonErrors,
    )
)]
async fn revoke_invite(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds((org, id)): PathIds<(OrgId, InviteId)>,
) -> Result<(StatusCode, Json<RemovalMessage>)> {
    caller.require_session()?;
    caller.require(Role::OrgAdmin)?;
    let mut db = caller.begin_write(&context).await?;
    let invite = invites::revoke(&mut db, &caller.scope(), org, id).await?;
    let note = AuditEntry::new("invite.delete", org, id.0).before(&invite)?;
    let answer = RemovalMessage {
        message: "invitation revoked",
    };
    db.commit(note, StatusCode::OK, Json(answer)).await
}

/// Accept an invitation
///
/// Makes the invited user a member with their own password. A user of another provider signs
/// in there instead.
#[utoipa::path(
    post,
    path = "/api/v1/organizations/invites/accept",
    tag = "Organizations",
    security(()),
    request_body = AcceptInvite,
    responses(
        (status = 201, body = JoinedMember),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "The token is not valid"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The address is already in use"),
        (status = 410, body = ProblemDocument, content_type = "application/problem+json", description = "The invitation was used, revoked, or has expired"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json", description = "The input is invalid"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json", description = "Too many attempts; `Retry-After` says when to retry"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Too busy; `Retry-After` says when to retry"),
    )
)]
async fn accept_invite(
    State(context): State<Arc<Context>>,
    State(limits): State<AuthRateLimits>,
    mut origin: RequestOrigin,
    ValidJson(body): ValidJson<AcceptInvite>,
) -> Result<(StatusCode, Json<JoinedMember>)> {
    let keys = &context.config.keys;

    if let Some(name) = &body.full_name {
        let mut fields = FieldErrors::default();
        fields.check_text(name, "full_name", 1, 200);
        fields.finish()?;
    }

    // 1. Bound the attempts, then find the invitation.
    limits.check_secret(&origin)?;
    let id = keys
        .verify_invite_token(&body.token)
        .ok_or(Error::NotFound("Invite"))?;
    let mut db = context.pool.begin().await?;
    let invite = invites::find_open_unscoped(&mut db, id).await?;
    drop(db);

    // 2. Hash the password without a connection.
    check_password(&body.password, "password", &invite.email)?;
    let hash = limits.hasher.hash(body.password).await?;

    // The token works once, so an Idempotency-Key adds nothing.
    origin.claim = None;

    let name = body.full_name.as_deref().map(str::trim);
    let caller = Caller {
        principal: invites::invited_principal(&invite),
        session: None,
        until: None,
        origin,
    };

    // 3. Accept the invitation as its new member.
    let mut db = caller.begin_write(&context).await?;
    invites::accept_unscoped(&mut db, &caller, id, name, &hash).await?;

    let note = AuditEntry::new("invite.accept", invite.organization_id, id.0);
    let answer = JoinedMember {
        user_id: caller.user,
        organization_id: invite.organization_id,
        email: invite.email,
        role: invite.role,
    };
    db.commit(note, StatusCode::CREATED, Json(answer)).await
}

#[derive(Serialize, ToSchema)]
#[schema(as = Members, example = json!({"users": [{
    "id": "0198c0de-0000-7000-8000-000000000002", "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "email": "ada@example.com", "full_name": "Ada Lovelace", "role": "org_admin", "created_at": "2026-06-01T08:00:00Z"
}], "total": 1, "page": 1, "page_size": 20}))]
struct MemberPage {
    users: Vec<Member>,
    total: i64,
    page: i64,
    page_size: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewRole {
    role: Role,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewInvite {
    email: String,
    #[serde(default = "user")]
    role: Role,
}

fn user() -> Role {
    Role::User
}

#[derive(Serialize, ToSchema)]
#[schema(as = Invites, example = json!({"invites": [{
    "id": "0198c0de-0000-7000-8000-000000000004", "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "email": "grace@example.com", "role": "user", "invited_by": "0198c0de-0000-7000-8000-000000000002",
    "created_at": "2026-06-01T08:00:00Z", "expires_at": "2026-06-08T08:00:00Z"
}]}))]
struct InviteList {
    invites: Vec<Invite>,
}

/// Success message.
#[derive(Serialize, ToSchema)]
#[schema(as = Removed, example = json!({"message": "the user is removed"}))]
struct RemovalMessage {
    message: &'static str,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Accept, example = json!({"token": "from the mail", "password": "correct horse battery", "full_name": "Grace Hopper"}))]
struct AcceptInvite {
    /// The token from the e-mail.
    token: String,
    /// 12 to 128 characters.
    #[schema(value_type = String, format = Password)]
    password: SecretString,
    full_name: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Joined, example = json!({
    "user_id": "0198c0de-0000-7000-8000-00000000000b", "organization_id": "0198c0de-0000-7000-8000-000000000001",
    "email": "grace@example.com", "role": "user"
}))]
struct JoinedMember {
    user_id: UserId,
    organization_id: OrgId,
    email: String,
    role: Role,
}
