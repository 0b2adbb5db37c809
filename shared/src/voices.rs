//! Catalogue of the carriers' own voices, as `<Say voice="...">` names them, and the check of an
//! agent's voice against it.
//!
//! An agent whose `tts_model_name` is listed, or absent, speaks with a carrier's voice: it must
//! be listed and speak the agent's language, since a carrier fails the call's document for a
//! wrong pair. Voices of other providers cannot be checked; they are accepted as they are and never
//! reach a carrier.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::Scope;
use crate::catalog::providers;
use crate::catalog::providers::ProviderKind;
use crate::platform::error::{Error, FieldError, OnConstraint as _, Result};
use crate::platform::ids::{ProviderId, VoiceId};
use crate::platform::page::{Page, PageSlice};

/// Number of names that are suggested for an unknown one.
const MAX_SUGGESTIONS: usize = 3;

/// Voice of the catalogue.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Voice {
    pub id: VoiceId,
    pub provider_id: ProviderId,
    /// The vendor's code, which `tts_config.voice_name` takes.
    #[schema(example = "Polly.Joanna")]
    pub voice_id: String,
    /// Display name.
    #[schema(example = "Joanna")]
    pub voice_name: String,
    pub supported_languages: Vec<String>,
    /// `female`, `male` or `neutral`.
    pub gender: Option<String>,
    pub preview_url: Option<String>,
    /// Owner; always null: the platform's.
    pub user_id: Option<uuid::Uuid>,
    /// Always `catalog`.
    pub source: String,
    pub is_public: bool,
}

/// A voice to add to the catalogue.
#[derive(Clone, Debug)]
pub struct NewVoice {
    pub voice_id: String,
    pub voice_name: String,
    pub supported_languages: Vec<String>,
    pub gender: Option<&'static str>,
    pub preview_url: Option<String>,
    pub is_public: bool,
}

/// Filter of voices.
#[derive(Clone, Debug, Default)]
pub struct VoiceFilter {
    pub id: Option<VoiceId>,
    /// The vendor's code.
    pub code: Option<String>,
    pub provider: Option<ProviderId>,
    /// `en` finds `en-US` as well.
    pub language: Option<String>,
}

/// Lists the voices that the caller may use, by provider and code. The platform also sees those
/// that are not public.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    filter: &VoiceFilter,
    page: Page,
) -> Result<PageSlice<Voice>> {
    let voices = sqlx::query_as!(
        Voice,
        r#"select v.id as "id: VoiceId", v.provider_id as "provider_id: ProviderId", v.voice_id, v.voice_name,
                  v.supported_languages, v.gender, v.preview_url, null::uuid as user_id,
                  'catalog' as "source!", v.is_public
           from tts_voices v
           where (v.is_public or $1::uuid is null)
             and ($2::uuid is null or v.id = $2)
             and ($3::text is null or v.voice_id = $3)
             and ($4::uuid is null or v.provider_id = $4)
             and ($5::text is null
                  or exists (select from unnest(v.supported_languages) as l (tag)
                             where lower(l.tag) = lower($5) or starts_with(lower(l.tag), lower($5) || '-')))
           order by v.provider_id, v.voice_id
           limit $6
           offset $7"#,
        scope.org() as Option<crate::platform::ids::OrgId>,
        filter.id as Option<VoiceId>,
        filter.code,
        filter.provider as Option<ProviderId>,
        filter.language,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;

    Ok(page.slice(voices))
}

/// Finds a voice by its id, else by the vendor's code.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn resolve(db: &mut PgConnection, scope: &Scope, name: &str) -> Result<Voice> {
    let by_id = VoiceFilter {
        id: name.parse().ok(),
        ..VoiceFilter::default()
    };
    let by_code = VoiceFilter {
        // PostgreSQL text cannot hold NUL.
        code: name.split('\0').next().map(str::to_owned),
        ..VoiceFilter::default()
    };

    let mut found = match by_id.id {
        Some(_) => list(db, scope, &by_id, Page::WHOLE).await?.rows,
        None => Vec::new(),
    };
    if found.is_empty() {
        found = list(db, scope, &by_code, Page::WHOLE).await?.rows;
    }
    found.into_iter().next().ok_or(Error::NotFound("Voice"))
}

/// Adds a voice of a provider to the catalogue, for all tenants.
///
/// # Errors
/// [`Error::Conflict`] when the provider already has a voice of that code.
pub async fn add(
    db: &mut PgConnection,
    scope: &Scope,
    provider: ProviderId,
    new: &NewVoice,
) -> Result<Voice> {
    let id = VoiceId::new();
    sqlx::query!(
        "insert into tts_voices (id, provider_id, voice_id, voice_name, supported_languages, gender, preview_url,
                                 is_public)
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
        id as VoiceId,
        provider as ProviderId,
        new.voice_id,
        new.voice_name,
        &new.supported_languages,
        new.gender,
        new.preview_url,
        new.is_public,
    )
    .execute(&mut *db)
    .await
    .on_constraint("voice_is_listed", || {
        Error::conflict("voice_listed", "the provider already has a voice of that voice_id")
    })?;

    let filter = VoiceFilter {
        id: Some(id),
        ..VoiceFilter::default()
    };
    let added = list(db, scope, &filter, Page::WHOLE).await?;
    added
        .rows
        .into_iter()
        .next()
        .ok_or(Error::NotFound("Voice"))
}

/// True when an agent of this configuration speaks with a carrier's own voice.
pub async fn is_carrier_voice(
    db: &mut PgConnection,
    scope: &Scope,
    config: &TtsConfig,
) -> Result<bool> {
    Ok(carrier_provider(db, scope, config).await?.is_some())
}

/// Returns `None` when another service speaks, otherwise the named provider, if there is one.
async fn carrier_provider(
    db: &mut PgConnection,
    scope: &Scope,
    config: &TtsConfig,
) -> Result<Option<Option<ProviderId>>> {
    let Some(name) = &config.tts_model_name else {
        return Ok(Some(None));
    };
    match providers::resolve(db, scope, ProviderKind::Tts, name).await {
        Ok(provider) => Ok(Some(Some(provider.id))),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Refuses an unknown voice of a carrier, or one that does not speak the agent's language.
///
/// # Errors
/// [`Error::Invalid`] with similar names, or with the languages of the voice.
pub async fn check(db: &mut PgConnection, scope: &Scope, config: &TtsConfig) -> Result<()> {
    let Some(name) = &config.voice_name else {
        return Ok(());
    };
    let Some(provider) = carrier_provider(db, scope, config).await? else {
        return Ok(());
    };

    let filter = VoiceFilter {
        provider,
        ..VoiceFilter::default()
    };

    let voices = list(db, scope, &filter, Page::EVERYTHING).await?.rows;

    let refuse = |field: &str, kind: &'static str, msg: String| {
        let path = ["tts_config", field];
        Err(Error::Invalid(vec![FieldError::new(
            "body", path, kind, msg,
        )]))
    };

    // 1. Find the voice.
    let Some(voice) = voices.iter().find(|voice| voice.voice_id == *name) else {
        let similar = most_similar(name, voices.iter().map(|voice| voice.voice_id.as_str()));
        let msg = format!(
            "unknown voice; similar ones: {} (GET /api/v1/tts-voices lists all)",
            similar.join(", ")
        );
        return refuse("voice_name", "unknown_voice", msg);
    };

    // 2. Compare its languages.
    let speaks = |tag: &String| tag.eq_ignore_ascii_case(&config.language);
    if !voice.supported_languages.iter().any(speaks) {
        let msg = format!(
            "{} does not speak this language; it speaks {}",
            voice.voice_id,
            voice.supported_languages.join(", ")
        );
        return refuse("language", "voice_language", msg);
    }

    Ok(())
}

/// Names most similar to `name`, the most similar first.
fn most_similar<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = name.to_lowercase();
    let similarity = |known: &str| {
        let known = known.to_lowercase();
        let whole = strsim::normalized_damerau_levenshtein(&wanted, &known);
        // People leave out the vendor in front of the name.
        let own = known.split_once('.').map_or("", |(_, own)| own);
        whole.max(strsim::normalized_damerau_levenshtein(&wanted, own))
    };

    let mut ranked: Vec<(f64, &str)> = known.map(|known| (similarity(known), known)).collect();
    ranked.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(other.1)));
    let ranked = ranked.into_iter().map(|(_, known)| known);
    ranked.take(MAX_SUGGESTIONS).collect()
}

/// Voice of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TtsConfig {
    /// A code or an id of `GET /api/v1/providers/tts`; the carrier's own voices when absent.
    /// Alias: `tts_provider_id`.
    #[serde(alias = "tts_provider_id")]
    #[schema(max_length = 200)]
    pub tts_model_name: Option<String>,
    /// Language tag of the speech.
    #[schema(
        default = "en-US",
        pattern = "^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$",
        example = "en-US"
    )]
    pub language: String,
    /// The provider's name of the voice; its default voice for the language when absent.
    #[schema(max_length = 200, example = "Polly.Joanna")]
    pub voice_name: Option<String>,
    /// Further parameters of the provider. A null removes a parameter.
    #[schema(value_type = Object)]
    pub voice_parameters: Map<String, Value>,
}

impl Default for TtsConfig {
    fn default() -> Self {
        Self {
            tts_model_name: None,
            language: "en-US".to_owned(),
            voice_name: None,
            voice_parameters: Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_answered_with_names_like_it() {
        let known = [
            "Polly.Joanna",
            "Polly.Joanna-Neural",
            "Polly.Joey",
            "Google.hi-IN-Wavenet-A",
            "alice",
        ];
        for (name, first) in [
            ("polly.joanna", "Polly.Joanna"),
            ("Joanna", "Polly.Joanna"),
            ("Polly.Johanna", "Polly.Joanna"),
            ("Polly.Joanna-neural", "Polly.Joanna-Neural"),
            ("hi-IN-Wavenet-B", "Google.hi-IN-Wavenet-A"),
            ("Alice", "alice"),
        ] {
            let near = most_similar(name, known.into_iter());
            assert_eq!(near.len(), MAX_SUGGESTIONS);
            assert_eq!(near[0], first, "{name}");
        }
    }
}
