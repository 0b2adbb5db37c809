//! What agents can be made with, as the platform lists it: models, voices' providers,
//! transcribers, voice activity detection. A configuration names one by its id or its code;
//! names that are not listed are the business of whoever speaks to that provider.

use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::Scope;
use crate::error::{Error, Result};
use crate::ids::ProviderId;

/// What a provider is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum ProviderKind {
    Model,
    Tts,
    Stt,
    Vad,
}

/// A provider.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Provider {
    pub id: ProviderId,
    /// What configurations name it by, besides its id.
    #[schema(example = "polly")]
    pub code: String,
    pub provider_name: String,
    pub model_name: String,
    /// Used when a configuration names none.
    pub is_default: bool,
    #[serde(skip)]
    pub kind: ProviderKind,
}

/// The providers, the default of each kind first. They are the same for everybody.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
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

/// The provider of a kind that goes by a name: its id first, else its code.
///
/// # Errors
/// [`Error::NotFound`] when none does.
pub async fn resolve(
    db: &mut PgConnection,
    _scope: &Scope,
    kind: ProviderKind,
    name: &str,
) -> Result<Provider> {
    // The database takes no NUL.
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
