//! `/api/v1/api-keys`: keys of this API, and secrets of providers, distinguished by
//! `provider_name`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use peal_shared::access::Scope;
use peal_shared::access::permissions::KeyScope;
use peal_shared::api_keys::{ApiKey, NewApiKey, OWN_PROVIDER, credentials};
use peal_shared::audit::AuditEntry;
use peal_shared::context::Context;
use peal_shared::platform::ids::{ApiKeyId, OrgId, UserId};
use peal_shared::platform::page::{Page, PageSlice};
use peal_shared::{Error, api_keys, users};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListParams, ListResponse, parse_page_or_whole};
use crate::limits::auth_limits::AuthRateLimits;
use crate::state::AppState;

const MAX_SCOPES: usize = 50;
const METHODS: [&str; 8] = [
    "*", "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE",
];

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(fetch))
        .routes(routes!(fetch_of))
        .routes(routes!(exists))
        .routes(routes!(rename, revoke))
}

/// Create an API key
///
/// The response contains the key, once. A secret that the caller supplies must be new and
/// random; with another `provider_name` it is that provider's secret, which is stored sealed and
/// does not authenticate here. Requires a session: a key cannot create keys.
#[utoipa::path(
    post,
    path = "/api/v1/api-keys",
    tag = "API keys",
    security(("session" = [])),
    request_body(content = CreateKey, example = json!({"name": "CRM", "scopes": [
        {"allowed_path_prefix": "/api/v1/batch-call", "allowed_method": "*"}
    ]})),
    responses(
        (status = 200, body = KeyCreation),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such user"),
        CommonErrors,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    State(rate_limits): State<AuthRateLimits>,
    caller: Caller,
    ValidJson(body): ValidJson<CreateKey>,
) -> Result<(StatusCode, Json<KeyCreation>)> {
    caller.require_session()?;

    let user = body.user_id.unwrap_or(caller.user);
    let scope = caller.scope_of(user)?;
    let (provider, new) = body.validate(context.clock.now())?;

    rate_limits.check_key_creation(caller.user)?;

    let keys = &context.config.keys;
    let mut db = caller.begin_write(&context).await?;
    let org = org_of(&mut db, &scope, user).await?;
    users::check_rank(&mut db, &scope, &caller, user).await?;

    let supplied = body.api_key.as_ref();
    let (id, text) = match (provider == OWN_PROVIDER, supplied) {
        (true, supplied) => {
            let supplied = supplied.map(ExposeSecret::expose_secret);
            let (id, text) =
                api_keys::create_from_unscoped(&mut db, keys, (org, user), supplied, &new).await?;
            // The caller already has a supplied secret.
            (id, supplied.is_none().then_some(text))
        }
        (false, Some(secret)) => {
            let owner = (org, user);
            let id =
                credentials::create_unscoped(&mut db, keys, owner, &provider, secret, &new.name)
                    .await?;
            (id, None)
        }
        (false, None) => return Err(Error::field("api_key", "missing", "is missing").into()),
    };

    let api_key = api_keys::find(&mut db, &scope, id).await?;
    let note = AuditEntry::new("api_key.create", org, id.0).after(&api_key)?;

    let response = |text| KeyCreation {
        message: "key created; it is shown only once",
        api_key: CreatedKey {
            api_key: text,
            key: api_key.clone(),
        },
    };

    db.commit_redacted(note, StatusCode::OK, &response(None), Json(response(text)))
        .await
}

/// List the caller's keys, or a user's
#[utoipa::path(
    get,
    path = "/api/v1/api-keys/fetch",
    tag = "API keys",
    params(ListKeysParams),
    responses(
        (status = 200, body = Vec<ApiKey>, headers(("X-Truncated" = bool, description = "True when more rows follow"))),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such user"),
        CommonErrors,
    )
)]
async fn fetch(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<ListKeysParams>,
) -> Result<ListResponse<Vec<ApiKey>>> {
    let user = query.user_id.unwrap_or(caller.user);
    let page = parse_page_or_whole(query.page, query.page_size)?;
    Ok(keys_of_user(&context, &caller, user, page).await?.into())
}

/// List a user's keys
#[utoipa::path(
    get,
    path = "/api/v1/api-keys/fetch/{user_id}",
    tag = "API keys",
    params(("user_id" = UserId, Path), ListParams),
    responses(
        (status = 200, body = Vec<ApiKey>, headers(("X-Truncated" = bool, description = "True when more rows follow"))),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such user"),
        CommonErrors,
    )
)]
async fn fetch_of(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(user): PathIds<UserId>,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<Vec<ApiKey>>> {
    let keys = keys_of_user(&context, &caller, user, part.parse_page()?).await?;
    Ok(keys.into())
}

async fn keys_of_user(
    context: &Context,
    caller: &Caller,
    user: UserId,
    page: Page,
) -> Result<PageSlice<ApiKey>> {
    let scope = caller.scope_of(user)?;

    let mut db = caller.begin_read(context).await?;
    org_of(&mut db, &scope, user).await?;
    Ok(api_keys::list(&mut db, &scope, user, page).await?)
}

/// Check if a user has a valid key
#[utoipa::path(
    post,
    path = "/api/v1/api-keys/exists",
    tag = "API keys",
    request_body = KeyExistsQuery,
    responses(
        (status = 200, body = bool, content_type = "application/json", example = json!(true)),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such user"),
        CommonErrors,
    )
)]
async fn exists(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<KeyExistsQuery>,
) -> Result<Json<bool>> {
    let keys = keys_of_user(&context, &caller, body.user_id, Page::EVERYTHING).await?;
    let provider = body.provider_name.as_deref().unwrap_or(OWN_PROVIDER);
    Ok(Json(
        keys.rows.iter().any(|key| key.provider_name == provider),
    ))
}

/// Rename a key
///
/// An empty name removes it.
#[utoipa::path(
    patch,
    path = "/api/v1/api-keys/{key_id}",
    tag = "API keys",
    security(("session" = [])),
    params(("key_id" = ApiKeyId, Path), KeyOwnerParams),
    request_body(content = RenameKey, example = json!({"name": "CRM"})),
    responses(
        (status = 200, body = KeyChange),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such key"),
        CommonErrors,
    )
)]
async fn rename(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<ApiKeyId>,
    ValidQuery(query): ValidQuery<KeyOwnerParams>,
    ValidJson(body): ValidJson<RenameKey>,
) -> Result<(StatusCode, Json<KeyChange>)> {
    caller.require_session()?;

    let mut fields = FieldErrors::default();
    fields.check_text(&body.name, "name", 0, 200);
    fields.finish()?;

    let scope = query.scope(&caller)?;
    let mut db = caller.begin_write(&context).await?;
    let (before, after) = api_keys::rename(&mut db, &scope, &caller, id, body.name.trim()).await?;

    let note = AuditEntry::new("api_key.update", after.organization_id, id.0)
        .before(&before)?
        .after(&after)?;

    let answer = KeyChange {
        message: "key renamed",
        api_key: after,
    };
    db.commit(note, StatusCode::OK, Json(answer)).await
}

/// Revoke a key
///
/// All replicas reject it within a second.
#[utoipa::path(
    delete,
    path = "/api/v1/api-keys/{key_id}",
    tag = "API keys",
    security(("session" = [])),
    params(("key_id" = ApiKeyId, Path), KeyOwnerParams),
    responses(
        (status = 200, body = KeyChange),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "There is no such key"),
        CommonErrors,
    )
)]
async fn revoke(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(id): PathIds<ApiKeyId>,
    ValidQuery(query): ValidQuery<KeyOwnerParams>,
) -> Result<(StatusCode, Json<KeyChange>)> {
    caller.require_session()?;

    let scope = query.scope(&caller)?;
    let mut db = caller.begin_write(&context).await?;
    let api_key = api_keys::revoke(&mut db, &scope, &caller, id).await?;

    let note = AuditEntry::new("api_key.delete", api_key.organization_id, id.0).before(&api_key)?;

    let answer = KeyChange {
        message: "key revoked",
        api_key,
    };
    db.commit(note, StatusCode::OK, Json(answer)).await
}

/// Organisation of a user in the scope.
async fn org_of(db: &mut PgConnection, scope: &Scope, user: UserId) -> Result<OrgId> {
    let org = users::org_of(db, scope, user).await?;
    Ok(org.ok_or(Error::NotFound("User"))?)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateKey {
    /// Secret to use; generated by default.
    #[schema(value_type = Option<String>, format = Password)]
    api_key: Option<SecretString>,
    /// Owner of the key, by default the caller.
    user_id: Option<UserId>,
    /// `milli_chat_ai`, the default, for a key of this API; otherwise the provider that the
    /// secret belongs to, such as `openai`.
    provider_name: Option<String>,
    name: Option<String>,
    expires_at: Option<DateTime<Utc>>,
    /// Requests that the key may send; by default all that its user may.
    #[serde(default)]
    scopes: Vec<KeyScope>,
}

impl CreateKey {
    fn validate(&self, now: DateTime<Utc>) -> Result<(String, NewApiKey)> {
        let mut fields = FieldErrors::default();
        let name = self.name.as_deref().unwrap_or_default().trim();
        fields.check_text(name, "name", 0, 200);

        let provider = self.provider_name.as_deref().unwrap_or(OWN_PROVIDER);
        let is_word = (1..=60).contains(&provider.len())
            && provider.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && provider
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b));
        let message = "must have 1 to 60 lowercase letters, digits, dots, dashes and underscores";
        fields.check(is_word, "provider_name", "characters", message);

        let in_future = self.expires_at.is_none_or(|at| at > now);
        fields.check(
            in_future,
            "expires_at",
            "value_error",
            "must be in the future",
        );

        let message = "must be 50 at most";
        fields.check(self.scopes.len() <= MAX_SCOPES, "scopes", "length", message);
        for (at, scope) in self.scopes.iter().enumerate() {
            let path = &scope.allowed_path_prefix;
            let message = "must be a path such as /api/v1/batch-call";
            let is_path = path.starts_with('/') && path.len() <= 500 && path.is_ascii();
            fields.check(
                is_path,
                &format!("scopes.{at}.allowed_path_prefix"),
                "value_error",
                message,
            );

            let message = format!("must be one of {}", METHODS.join(", "));
            let is_method = METHODS.contains(&scope.allowed_method.as_str());
            fields.check(
                is_method,
                &format!("scopes.{at}.allowed_method"),
                "enum",
                message,
            );
        }

        if provider != OWN_PROVIDER {
            let message = "is only for keys of this API";
            fields.check(self.scopes.is_empty(), "scopes", "value_error", message);
            let never_expires = self.expires_at.is_none();
            fields.check(never_expires, "expires_at", "value_error", message);

            let chars = self
                .api_key
                .as_ref()
                .map(|key| key.expose_secret().chars().count());
            let message = "must have 1 to 4096 characters";
            let fits = chars.is_none_or(|chars| (1..=4096).contains(&chars));
            fields.check(fits, "api_key", "length", message);
        }

        fields.finish()?;

        let new = NewApiKey {
            name: name.to_owned(),
            expires_at: self.expires_at,
            scopes: self.scopes.clone(),
        };
        Ok((provider.to_owned(), new))
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListKeysParams {
    /// Owner of the keys, by default the caller.
    user_id: Option<UserId>,
    /// From 1. Without this and `page_size`, the newest 1000 are listed.
    #[param(minimum = 1)]
    page: Option<i64>,
    /// 20 by default.
    #[param(minimum = 1, maximum = 100)]
    page_size: Option<i64>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct KeyOwnerParams {
    /// Owner of the keys, by default the caller.
    user_id: Option<UserId>,
}

impl KeyOwnerParams {
    fn scope(&self, caller: &Caller) -> Result<Scope> {
        Ok(match self.user_id {
            Some(user) => caller.scope_of(user)?,
            None => caller.scope(),
        })
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(
    as = Exists,
    example = json!({"user_id": "0198c0de-0000-7000-8000-000000000002", "provider_name": "milli_chat_ai"})
)]
struct KeyExistsQuery {
    user_id: UserId,
    /// `milli_chat_ai` by default.
    provider_name: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Rename)]
struct RenameKey {
    name: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Created, example = json!({"message": "key created; it is shown only once", "api_key": {
    "api_key": "peal_live_Zk3vQ9xT1mB7rL5wY0cH8nJ2pD6sF4gAZk3vQ9xT1mB7rF4gA",
    "id": "0198c0de-0000-7000-8000-000000000005", "user_id": "0198c0de-0000-7000-8000-000000000002",
    "organization_id": "0198c0de-0000-7000-8000-000000000001", "name": "CRM", "provider_name": "milli_chat_ai",
    "key_prefix": "peal_live_Zk3v", "last4": "F4gA", "created_at": "2026-06-01T08:00:00Z", "expires_at": null,
    "last_used_at": "2026-06-09T08:00:00Z",
    "scopes": [{"allowed_path_prefix": "/api/v1/batch-call", "allowed_method": "*"}]
}}))]
struct KeyCreation {
    message: &'static str,
    api_key: CreatedKey,
}

#[derive(Serialize, ToSchema)]
struct CreatedKey {
    /// The key itself, when it was generated here.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
    #[serde(flatten)]
    key: ApiKey,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Changed, example = json!({"message": "key renamed", "api_key": {
    "id": "0198c0de-0000-7000-8000-000000000005", "user_id": "0198c0de-0000-7000-8000-000000000002",
    "organization_id": "0198c0de-0000-7000-8000-000000000001", "name": "CRM", "provider_name": "milli_chat_ai",
    "key_prefix": "peal_live_Zk3v", "last4": "F4gA", "created_at": "2026-06-01T08:00:00Z", "expires_at": null,
    "last_used_at": "2026-06-09T08:00:00Z",
    "scopes": [{"allowed_path_prefix": "/api/v1/batch-call", "allowed_method": "*"}]
}}))]
struct KeyChange {
    message: &'static str,
    api_key: ApiKey,
}
