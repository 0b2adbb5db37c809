//! The voices that carriers speak with themselves, as `<Say voice="...">` names them, and
//! whether an agent's voice is one.
//!
//! An agent whose `tts_model_name` is listed, or absent, speaks with a carrier's voice: it must
//! be listed and speak the agent's language, since a carrier fails the call's document over a
//! wrong pair. What is not in the list cannot be known, so the voices of any other provider are
//! taken as they come, and never reach a carrier.

use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;

use crate::access::Scope;
use crate::agents::config::TtsConfig;
use crate::error::{Error, FieldError, OnConstraint as _, Result};
use crate::ids::{ProviderId, VoiceId};
use crate::page::{Page, Slice};
use crate::providers::{self, ProviderKind};

/// How many names are suggested for one that is not known.
const SUGGESTIONS: usize = 3;

/// A voice.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Voice {
    pub id: VoiceId,
    pub provider_id: ProviderId,
    /// The vendor's code, which `tts_config.voice_name` takes.
    #[schema(example = "Polly.Joanna")]
    pub voice_id: String,
    /// Its name for people.
    #[schema(example = "Joanna")]
    pub voice_name: String,
    pub supported_languages: Vec<String>,
    /// `female`, `male` or `neutral`.
    pub gender: Option<String>,
    pub preview_url: Option<String>,
    /// Whose it is; always null: the platform's.
    pub user_id: Option<uuid::Uuid>,
    /// Always `catalog`.
    pub source: String,
    pub is_public: bool,
}

/// A voice to list.
#[derive(Clone, Debug)]
pub struct NewVoice {
    pub voice_id: String,
    pub voice_name: String,
    pub supported_languages: Vec<String>,
    pub gender: Option<&'static str>,
    pub preview_url: Option<String>,
    pub is_public: bool,
}

/// Which voices to look for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub id: Option<VoiceId>,
    /// The vendor's code.
    pub code: Option<String>,
    pub provider: Option<ProviderId>,
    /// `en` finds `en-US` as well.
    pub language: Option<String>,
}

/// The voices that the caller may use, by provider and code. The platform sees those that are
/// not public as well.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    wanted: &Wanted,
    page: Page,
) -> Result<Slice<Voice>> {
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
        scope.org() as Option<crate::ids::OrgId>,
        wanted.id as Option<VoiceId>,
        wanted.code,
        wanted.provider as Option<ProviderId>,
        wanted.language,
        page.limit(),
        page.offset(),
    )
    .fetch_all(db)
    .await?;
    Ok(page.slice(voices))
}

/// The voice that goes by a name: its id first, else the vendor's code.
///
/// # Errors
/// [`Error::NotFound`] when none does.
pub async fn resolve(db: &mut PgConnection, scope: &Scope, name: &str) -> Result<Voice> {
    let by_id = Wanted {
        id: name.parse().ok(),
        ..Wanted::default()
    };
    let by_code = Wanted {
        // The database takes no NUL.
        code: name.split('\0').next().map(str::to_owned),
        ..Wanted::default()
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

/// Lists a voice of a provider, for everybody.
///
/// # Errors
/// [`Error::Conflict`] for a code that the provider has.
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
        Error::conflict("voice_listed", "the provider has a voice of that voice_id already")
    })?;
    let wanted = Wanted {
        id: Some(id),
        ..Wanted::default()
    };
    let added = list(db, scope, &wanted, Page::WHOLE).await?;
    added
        .rows
        .into_iter()
        .next()
        .ok_or(Error::NotFound("Voice"))
}

/// Whether an agent that is set up so speaks with a carrier's own voice.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn is_carriers(db: &mut PgConnection, scope: &Scope, config: &TtsConfig) -> Result<bool> {
    Ok(carriers_provider(db, scope, config).await?.is_some())
}

/// None: somebody else speaks. Otherwise the provider that was named, if one was.
async fn carriers_provider(
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

/// Refuses a carrier's voice that there is not, or that does not speak the agent's language.
///
/// # Errors
/// [`Error::Invalid`] with the names that come near, or with the languages of the voice.
pub async fn check(db: &mut PgConnection, scope: &Scope, config: &TtsConfig) -> Result<()> {
    let Some(name) = &config.voice_name else {
        return Ok(());
    };
    let Some(provider) = carriers_provider(db, scope, config).await? else {
        return Ok(());
    };
    let wanted = Wanted {
        provider,
        ..Wanted::default()
    };
    let voices = list(db, scope, &wanted, Page::EVERYTHING).await?.rows;
    let refuse = |field: &str, kind: &'static str, msg: String| {
        let path = ["tts_config", field];
        Err(Error::Invalid(vec![FieldError::new(
            "body", path, kind, msg,
        )]))
    };
    let Some(voice) = voices.iter().find(|voice| voice.voice_id == *name) else {
        let near = nearest(name, voices.iter().map(|voice| voice.voice_id.as_str()));
        let msg = format!(
            "there is no such voice; near it: {} (GET /api/v1/tts-voices lists all)",
            near.join(", ")
        );
        return refuse("voice_name", "unknown_voice", msg);
    };
    let speaks = |tag: &String| tag.eq_ignore_ascii_case(&config.language);
    if !voice.supported_languages.iter().any(speaks) {
        let msg = format!(
            "{} does not speak it; it speaks {}",
            voice.voice_id,
            voice.supported_languages.join(", ")
        );
        return refuse("language", "voice_language", msg);
    }
    Ok(())
}

/// The names that look most like `name`, the nearest first.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = name.to_lowercase();
    let likeness = |known: &str| {
        let known = known.to_lowercase();
        let whole = strsim::normalized_damerau_levenshtein(&wanted, &known);
        // The vendor in front of the name is what people leave out.
        let own = known.split_once('.').map_or("", |(_, own)| own);
        whole.max(strsim::normalized_damerau_levenshtein(&wanted, own))
    };
    let mut ranked: Vec<(f64, &str)> = known.map(|known| (likeness(known), known)).collect();
    ranked.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(other.1)));
    let ranked = ranked.into_iter().map(|(_, known)| known);
    ranked.take(SUGGESTIONS).collect()
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
            let near = nearest(name, known.into_iter());
            assert_eq!(near.len(), SUGGESTIONS);
            assert_eq!(near[0], first, "{name}");
        }
    }
}
