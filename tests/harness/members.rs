//! Members of the tenant's organisation, and requests with their credentials.

use jsonwebtoken::{EncodingKey, Header, encode};
use peal_shared::access::Role;
use peal_shared::platform::money::Usd;
use peal_shared::wallets::operator_credit;
use peal_shared::{api_keys, users};
use reqwest::Method;
use serde_json::{Value, json};

use super::actors;
use super::app::{App, JWT_SECRET, Tenant};
use super::client::{ApiResponse, send_request};

/// Credit of a member.
const MEMBER_CREDIT: Usd = Usd::dollars(1000);

/// The tenant's administrator with a session, who sees the whole organisation.
pub async fn with_session(app: &App, tenant: &Tenant) -> Tenant {
    let user =
        sqlx::query_scalar("select id from users where org_id = $1 order by created_at limit 1")
            .bind(tenant.org)
            .fetch_one(&app.context.pool)
            .await
            .expect("a user");
    Tenant {
        session: Some(actors::jwt_for_user(user)),
        ..tenant.clone()
    }
}

/// The same user with their API key only.
pub fn with_key(tenant: &Tenant) -> Tenant {
    Tenant {
        session: None,
        ..tenant.clone()
    }
}

/// Creates a member of the tenant's organisation with an API key and credit; administrators also
/// get a session.
pub async fn create_member(app: &App, email: &str, role: Role) -> Tenant {
    let mut db = app.context.pool.begin().await.expect("transaction");
    let org = app.tenant.org;
    let user = users::ensure_user_unscoped(&mut db, org, email, role)
        .await
        .expect("user");
    let keys = &app.context.config.keys;
    let api_key = api_keys::create_unscoped(&mut db, keys, org, user, "tests")
        .await
        .expect("key");
    let now = app.context.clock.now();
    operator_credit::grant_unscoped(&mut db, user, MEMBER_CREDIT, now)
        .await
        .expect("credit");
    db.commit().await.expect("commit");
    Tenant {
        api_key,
        session: (role != Role::User).then(|| actors::jwt_for_user(user)),
        ..app.tenant.clone()
    }
}

/// A session token for the user with this address.
pub async fn jwt_for_email(app: &App, email: &str) -> String {
    let user: String = sqlx::query_scalar("select id::text from users where email = $1")
        .bind(email)
        .fetch_one(&app.context.pool)
        .await
        .expect("a user");
    let now = app.context.clock.now().timestamp();
    let claims =
        json!({"sub": user, "iss": "peal", "aud": "authenticated", "iat": now, "exp": now + 600});
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    encode(&Header::default(), &claims, &key).expect("a token")
}

/// Sends a request with a tenant's credential, and with a body unless it is null.
pub async fn send_as(
    app: &App,
    who: &Tenant,
    method: Method,
    path: &str,
    body: Value,
) -> ApiResponse {
    let mut request = app.request_as(who, method, path);
    if !body.is_null() {
        request = request.json(&body);
    }
    send_request(request).await
}

/// Actions in the audit log about a subject, oldest first.
pub async fn audited_actions(app: &App, subject: &str) -> Vec<String> {
    sqlx::query_scalar("select action from audit_log where subject_id = $1 order by id")
        .bind(subject)
        .fetch_all(&app.context.pool)
        .await
        .expect("the log")
}
