//! `/api/v1/tts-voices`: the voices that carriers speak with.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use peal_shared::access::Role;
use peal_shared::audit::AuditEntry;
use peal_shared::catalog::providers;
use peal_shared::catalog::providers::ProviderKind;
use peal_shared::context::Context;
use peal_shared::voices;
use peal_shared::voices::{NewVoice, Voice, VoiceFilter};
use serde::Deserialize;
use url::Url;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::agents::validation::is_language;
use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::extract::{FieldErrors, PathIds, ValidJson, ValidQuery};
use crate::http::openapi::{CommonErrors, ProblemDocument};
use crate::http::paging::{ListParams, ListResponse, parse_page_or_whole};
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(of_provider))
}

/// List voices
///
/// By provider and code.
#[utoipa::path(
    get,
    path = "/api/v1/tts-voices",
    tag = "Voices",
    params(ListVoices),
    responses((status = 200, body = Vec<Voice>, headers(("X-Truncated" = bool, description = "True when more rows follow"))), CommonErrors)
)]
async fn list(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidQuery(query): ValidQuery<ListVoices>,
) -> Result<ListResponse<Vec<Voice>>> {
    let page = parse_page_or_whole(query.page, query.page_size)?;
    let filter = VoiceFilter {
        language: query.language,
        ..VoiceFilter::default()
    };
    let mut db = caller.begin_read(&context).await?;
    let voices = voices::list(&mut db, &caller.scope(), &filter, page).await?;
    Ok(voices.into())
}

/// List a provider's voices
#[utoipa::path(
    get,
    path = "/api/v1/tts-voices/provider/{provider_id}",
    tag = "Voices",
    params(("provider_id" = String, Path, description = "A provider's id or code"), ListParams),
    responses(
        (status = 200, body = Vec<Voice>, headers(("X-Truncated" = bool, description = "True when more rows follow"))),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such provider"),
        CommonErrors,
    )
)]
async fn of_provider(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(name): PathIds<String>,
    ValidQuery(part): ValidQuery<ListParams>,
) -> Result<ListResponse<Vec<Voice>>> {
    let page = part.parse_page()?;
    let mut db = caller.begin_read(&context).await?;
    let scope = caller.scope();
    let provider = providers::resolve(&mut db, &scope, ProviderKind::Tts, &name).await?;
    let filter = VoiceFilter {
        provider: Some(provider.id),
        ..VoiceFilter::default()
    };
    Ok(voices::list(&mut db, &scope, &filter, page).await?.into())
}

/// Show a voice
#[utoipa::path(
    get,
    path = "/api/v1/tts-voices/{voice_id}",
    tag = "Voices",
    params(("voice_id" = String, Path, description = "A voice's id or its vendor's code")),
    responses(
        (status = 200, body = Voice),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such voice"),
        CommonErrors,
    )
)]
async fn show(
    State(context): State<Arc<Context>>,
    caller: Caller,
    PathIds(name): PathIds<String>,
) -> Result<Json<Voice>> {
    let mut db = caller.begin_read(&context).await?;
    Ok(Json(
        voices::resolve(&mut db, &caller.scope(), &name).await?,
    ))
}

/// Add a voice
///
/// For super_admins. All organizations may use the voice, unless it is not public.
#[utoipa::path(
    post,
    path = "/api/v1/tts-voices",
    tag = "Voices",
    security(("session" = [])),
    request_body(content = AddVoice, example = json!({
        "provider_id": "polly", "voice_id": "Polly.Matthew-Generative", "voice_name": "Matthew (generative)",
        "supported_languages": ["en-US"], "gender": "male"
    })),
    responses(
        (status = 201, body = Voice),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json", description = "No such provider"),
        (status = 409, body = ProblemDocument, content_type = "application/problem+json", description = "The provider has that voice"),
        CommonErrors,
    )
)]
async fn create(
    State(context): State<Arc<Context>>,
    caller: Caller,
    ValidJson(body): ValidJson<AddVoice>,
) -> Result<(StatusCode, Json<Voice>)> {
    caller.require(Role::SuperAdmin)?;
    caller.require_session()?;

    let mut fields = FieldErrors::default();
    fields.check_text(&body.voice_id, "voice_id", 1, 200);
    fields.check_text(body.voice_name.trim(), "voice_name", 1, 200);

    let languages = body.supported_languages.len();
    fields.check(
        (1..=100).contains(&languages),
        "supported_languages",
        "length",
        "must have 1 to 100 languages",
    );
    for (place, language) in body.supported_languages.iter().enumerate() {
        fields.check(
            is_language(language),
            &format!("supported_languages.{place}"),
            "language",
            "must be a language tag, such as en-US or hi-IN",
        );
    }

    if let Some(url) = &body.preview_url {
        let is_valid =
            Url::parse(url).is_ok_and(|url| url.scheme() == "https") && url.len() <= 2000;
        fields.check(is_valid, "preview_url", "url", "must be an https address");
    }

    fields.finish()?;

    let mut db = caller.begin_write(&context).await?;
    let scope = caller.scope();
    let kind = ProviderKind::Tts;
    let provider = providers::resolve(&mut db, &scope, kind, &body.provider_id).await?;

    let new = NewVoice {
        voice_id: body.voice_id,
        voice_name: body.voice_name.trim().to_owned(),
        supported_languages: body.supported_languages,
        gender: body.gender.map(VoiceGender::as_str),
        preview_url: body.preview_url,
        is_public: body.is_public,
    };

    let voice = voices::add(&mut db, &scope, provider.id, &new).await?;

    let note = AuditEntry::new("voice.create", caller.org, voice.id.0).after(&voice)?;
    db.commit(note, StatusCode::CREATED, Json(voice)).await
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListVoices {
    /// `en-US`, or `en` for all English voices.
    language: Option<String>,
    /// From 1. Without this and `page_size`, the first 1000 are listed.
    #[param(minimum = 1)]
    page: Option<i64>,
    /// 20 by default.
    #[param(minimum = 1, maximum = 100)]
    page_size: Option<i64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AddVoice {
    /// The provider's id or code.
    provider_id: String,
    /// The vendor's code of the voice, as in TwiML.
    #[schema(min_length = 1, max_length = 200)]
    voice_id: String,
    #[schema(min_length = 1, max_length = 200)]
    voice_name: String,
    #[schema(min_items = 1, max_items = 100)]
    supported_languages: Vec<String>,
    gender: Option<VoiceGender>,
    #[schema(max_length = 2000)]
    preview_url: Option<String>,
    /// All organizations may use the voice when true, else only the platform.
    #[serde(default = "yes")]
    #[schema(default = true)]
    is_public: bool,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Gender)]
enum VoiceGender {
    Female,
    Male,
    Neutral,
}

impl VoiceGender {
    fn as_str(self) -> &'static str {
        match self {
            Self::Female => "female",
            Self::Male => "male",
            Self::Neutral => "neutral",
        }
    }
}
