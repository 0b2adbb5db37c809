//! `/api/v1/auth`: login with an e-mail address and a password, logout, change of password.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use peal_shared::access::Role;
use peal_shared::audit::{AuditEntry, DeniedCaller};
use peal_shared::auth::passwords::weakness;
use peal_shared::auth::{passwords, sessions};
use peal_shared::context::Context;
use peal_shared::platform::ids::{OrgId, UserId};
use peal_shared::{Error, users};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::tokens::TokenCodec;
use crate::auth::{Caller, RequestOrigin};
use crate::http::error::{Problem, Result};
use crate::http::extract::{FieldErrors, ValidJson};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::limits::auth_limits::AuthRateLimits;
use crate::state::AppState;

/// Longest accepted address and password.
const MAX_CREDENTIAL_CHARS: usize = 512;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(logout))
        .routes(routes!(change_password))
}

/// Unauthenticated routes.
pub fn anonymous_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(login))
}

/// Sign in
///
/// Returns a session token for `Authorization: Bearer`. An unknown address and a wrong password
/// get the same response.
#[utoipa::path(
    post,
    path = "/api/v1/auth/login",
    tag = "Sign in",
    security(()),
    request_body(content = LoginRequest, example = json!({"email": "ada@example.com", "password": "correct horse battery"})),
    responses(
        (status = 200, body = SignedIn),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json", description = "The address or the password is wrong"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json", description = "The input is invalid"),
        (status = 429, body = ProblemDocument, content_type = "application/problem+json", description = "Too many attempts; `Retry-After` says when to retry"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Too busy; `Retry-After` says when to retry"),
    )
)]
async fn login(
    State(context): State<Arc<Context>>,
    State(limits): State<AuthRateLimits>,
    State(tokens): State<TokenCodec>,
    mut origin: RequestOrigin,
    ValidJson(body): ValidJson<LoginRequest>,
) -> Result<(StatusCode, Json<SignedIn>)> {
    let mut fields = FieldErrors::default();
    fields.check_text(&body.email, "email", 3, MAX_CREDENTIAL_CHARS);
    let chars = body.password.expose_secret().chars().count();
    let fits = (1..=MAX_CREDENTIAL_CHARS).contains(&chars);
    fields.check(fits, "password", "length", "must have 1 to 512 characters");
    fields.finish()?;

    // 1. Limit the attempts, then find the account.
    limits.check_login(&origin, &body.email)?;
    let mut db = context.pool.acquire().await?;
    let known = passwords::find_by_email_unscoped(&mut db, body.email.trim()).await?;
    // Hashing is slow; the connection is released first.
    drop(db);

    let (identity, hash) = known.unzip();
    if let Some((org, user)) = identity {
        origin
            .caller_slot
            .set(DeniedCaller::Expired(org, user, None));
    }

    // 2. Verify the password; an unknown address costs the same.
    let matches = limits.hasher.verify(body.password, hash).await?;
    let Some((_org, user)) = identity.filter(|_| matches) else {
        return Err(wrong_credentials());
    };

    // 3. Open a session for the user.
    let mut db = context.pool.acquire().await?;
    let principal = users::principal_unscoped(&mut db, user).await?;
    drop(db);
    let principal = principal.ok_or_else(wrong_credentials)?;

    // A response with a token is never stored, so an Idempotency-Key cannot replay it.
    origin.claim = None;
    let caller = Caller {
        principal,
        session: None,
        until: None,
        origin,
    };

    let mut db = caller.begin_write(&context).await?;
    let (now, ttl) = (context.clock.now(), context.config.sign_in.session_ttl);
    let session = sessions::open_unscoped(&mut db, &caller.principal, now, ttl).await?;

    let answer = SignedIn {
        access_token: tokens.issue(&session)?,
        token_type: "bearer",
        expires_in: ttl.as_secs(),
        expires_at: session.expires_at,
        user: SignedInUser {
            id: caller.user,
            email: caller.email.clone(),
            role: caller.role,
            organization_id: caller.org,
        },
    };

    let note = AuditEntry::new("session.open", caller.org, session.id.0);
    db.commit(note, StatusCode::OK, Json(answer)).await
}

fn wrong_credentials() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "wrong_credentials",
        "the e-mail address or the password is wrong",
    )
}

/// Sign out
///
/// Ends the session of the token on all replicas at once.
#[utoipa::path(
    post,
    path = "/api/v1/auth/logout",
    tag = "Sign in",
    security(("session" = [])),
    responses(
        (status = 200, body = AuthMessage),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json", description = "The token comes from another issuer"),
        CommonErrors,
    )
)]
async fn logout(
    State(context): State<Arc<Context>>,
    caller: Caller,
) -> Result<(StatusCode, Json<AuthMessage>)> {
    caller.require_session()?;
    let Some(session) = caller.session else {
        return Err(
            external_session_error("this session was opened elsewhere; sign out there").into(),
        );
    };
    let mut db = caller.begin_write(&context).await?;
    sessions::end_unscoped(&mut db, caller.user, session).await?;
    let note = AuditEntry::new("session.end", caller.org, session.0);
    db.commit(note, StatusCode::OK, Json(AuthMessage::new("signed out")))
        .await
}

/// Change the caller's password
///
/// Every other session of the user ends.
#[utoipa::path(
    post,
    path = "/api/v1/auth/password",
    tag = "Sign in",
    security(("session" = [])),
    request_body = ChangePassword,
    responses(
        (status = 200, body = AuthMessage),
        (status = 400, body = ProblemDocument, content_type = "application/problem+json", description = "The current password is wrong, or another issuer keeps it"),
        CommonErrors,
    )
)]
async fn change_password(
    State(context): State<Arc<Context>>,
    State(limits): State<AuthRateLimits>,
    caller: Caller,
    ValidJson(body): ValidJson<ChangePassword>,
) -> Result<(StatusCode, Json<AuthMessage>)> {
    caller.require_session()?;
    let email = caller.email.clone().unwrap_or_default();
    check_password(&body.new_password, "new_password", &email)?;

    limits.check_login(&caller.origin, &email)?;
    let mut db = caller.begin_read(&context).await?;
    let hash = passwords::hash_of_user_unscoped(&mut db, caller.user).await?;
    drop(db);

    if hash.is_none() {
        return Err(
            external_session_error("you sign in elsewhere; change your password there").into(),
        );
    }
    if !limits.hasher.verify(body.current_password, hash).await? {
        let message = "the current password is wrong";
        return Err(Error::rejected("wrong_password", message).into());
    }

    let hash = limits.hasher.hash(body.new_password).await?;
    let mut db = caller.begin_write(&context).await?;
    passwords::set_unscoped(&mut db, caller.org, caller.user, &hash).await?;
    sessions::end_all_unscoped(&mut db, caller.user, caller.session).await?;

    let note = AuditEntry::new("password.change", caller.org, caller.user.0);
    let message = "the password is changed; your other sessions have ended";
    db.commit(note, StatusCode::OK, Json(AuthMessage::new(message)))
        .await
}

fn external_session_error(message: &'static str) -> Error {
    Error::rejected("signed_in_elsewhere", message)
}

/// Rejects a weak password, naming its field.
pub fn check_password(password: &SecretString, field: &str, email: &str) -> Result<()> {
    let mut fields = FieldErrors::default();
    if let Some(weakness) = weakness(password.expose_secret(), email) {
        fields.check(false, field, "weak_password", weakness);
    }
    fields.finish()
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Login)]
struct LoginRequest {
    email: String,
    #[schema(value_type = String, format = Password)]
    password: SecretString,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"current_password": "correct horse battery", "new_password": "correct horse battery staple"}))]
struct ChangePassword {
    #[schema(value_type = String, format = Password)]
    current_password: SecretString,
    /// 12 to 128 characters.
    #[schema(value_type = String, format = Password)]
    new_password: SecretString,
}

#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "access_token": "eyJhbGciOiJIUzI1NiIsImtpZCI6InBlYWwifQ.e30.c2lnbmF0dXJl", "token_type": "bearer", "expires_in": 43200,
    "expires_at": "2026-06-09T20:00:00Z", "user": {"id": "0198c0de-0000-7000-8000-000000000002",
    "email": "ada@example.com", "role": "org_admin", "organization_id": "0198c0de-0000-7000-8000-000000000001"}
}))]
struct SignedIn {
    access_token: String,
    token_type: &'static str,
    /// Seconds until the session ends.
    expires_in: u64,
    expires_at: DateTime<Utc>,
    user: SignedInUser,
}

#[derive(Serialize, ToSchema)]
struct SignedInUser {
    id: UserId,
    email: Option<String>,
    role: Role,
    organization_id: OrgId,
}

/// Success message.
#[derive(Serialize, ToSchema)]
#[schema(as = Assurance, example = json!({"message": "signed out"}))]
pub struct AuthMessage {
    message: &'static str,
}

impl AuthMessage {
    pub fn new(message: &'static str) -> Self {
        Self { message }
    }
}
