//! Catalogue of providers for agents: models, text to speech, speech to text, voice activity
//! detection. A configuration names a provider by its id or its code. Names that are not listed
//! are passed on to the service that runs the conversation.

use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::Scope;
use crate::platform::error::{Error, Result};
use crate::platform::ids::ProviderId;

/// Purpose of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum ProviderKind {
    Model,
    Tts,
    Stt,
    Vad,
}

/// Model or voice provider.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Provider {
    pub id: ProviderId,
    /// Name in configurations, besides the id.
    #[schema(example = "polly")]
    pub code: String,
    pub provider_name: String,
    pub model_name: String,
    /// Used when a configuration names none.
    pub is_default: bool,
    #[serde(skip)]
    pub kind: ProviderKind,
}

/// Lists the providers, the default of each kind first. They are the same for all tenants.
pub async fn list(
    db: &mut PgConnection,
    _scope: &Scope,
    kind: Option<ProviderKind>,
) -> Result<Vec<Provider>> {
    let providers = sqlx::query_as!(
        Provider,
        r#"select id as "id: ProviderId", code, provider_name, model_name, is_default,
                  kind as "kind: ProviderKind"
           from providers
           where $1::text is null or kind = $1
           order by kind, is_default desc, code"#,
        kind as Option<ProviderKind>,
    )
    .fetch_all(db)
    .await?;
    Ok(providers)
}

/// Finds the provider of a kind by its id, else by its code.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn resolve(
    db: &mut PgConnection,
    _scope: &Scope,
    kind: ProviderKind,
    name: &str,
) -> Result<Provider> {
    // PostgreSQL text cannot hold NUL.
    let name = name.split('\0').next().unwrap_or_default();
    sqlx::query_as!(
        Provider,
        r#"select id as "id: ProviderId", code, provider_name, model_name, is_default,
                  kind as "kind: ProviderKind"
           from providers
           where kind = $1
             and (id = $2 or code = $3)
           order by (id = $2) desc nulls last
           limit 1"#,
        kind as ProviderKind,
        name.parse().ok() as Option<ProviderId>,
        name,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Provider"))
}
