//! `/api/v1/providers`: model and voice providers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use peal_shared::catalog::providers;
use peal_shared::catalog::providers::{Provider, ProviderKind};
use peal_shared::context::Context;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::openapi::CommonErrors;
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(models))
        .routes(routes!(voices))
        .routes(routes!(transcribers))
        .routes(routes!(detectors))
        .routes(routes!(all))
}

/// List models
#[utoipa::path(
    get,
    path = "/api/v1/providers/model",
    tag = "Providers",
    responses((status = 200, body = Vec<Provider>), CommonErrors)
)]
async fn models(
    State(context): State<Arc<Context>>,
    caller: Caller,
) -> Result<Json<Vec<Provider>>> {
    list_kind(&context, &caller, ProviderKind::Model).await
}

/// List voice providers
#[utoipa::path(
    get,
    path = "/api/v1/providers/tts",
    tag = "Providers",
    responses((status = 200, body = Vec<Provider>), CommonErrors)
)]
async fn voices(
    State(context): State<Arc<Context>>,
    caller: Caller,
) -> Result<Json<Vec<Provider>>> {
    list_kind(&context, &caller, ProviderKind::Tts).await
}

/// List transcribers
#[utoipa::path(
    get,
    path = "/api/v1/providers/stt",
    tag = "Providers",
    responses((status = 200, body = Vec<Provider>), CommonErrors)
)]
async fn transcribers(
    State(context): State<Arc<Context>>,
    caller: Caller,
) -> Result<Json<Vec<Provider>>> {
    list_kind(&context, &caller, ProviderKind::Stt).await
}

/// List voice activity detectors
#[utoipa::path(
    get,
    path = "/api/v1/providers/vad",
    tag = "Providers",
    responses((status = 200, body = Vec<Provider>), CommonErrors)
)]
async fn detectors(
    State(context): State<Arc<Context>>,
    caller: Caller,
) -> Result<Json<Vec<Provider>>> {
    list_kind(&context, &caller, ProviderKind::Vad).await
}

async fn list_kind(
    context: &Context,
    caller: &Caller,
    kind: ProviderKind,
) -> Result<Json<Vec<Provider>>> {
    let mut db = caller.begin_read(context).await?;
    Ok(Json(
        providers::list(&mut db, &caller.scope(), Some(kind)).await?,
    ))
}

/// List all providers
#[utoipa::path(
    get,
    path = "/api/v1/providers/all",
    tag = "Providers",
    responses((status = 200, body = AllProviders), CommonErrors)
)]
async fn all(State(context): State<Arc<Context>>, caller: Caller) -> Result<Json<AllProviders>> {
    let mut db = caller.begin_read(&context).await?;
    let mut all = AllProviders::default();
    for provider in providers::list(&mut db, &caller.scope(), None).await? {
        match provider.kind {
            ProviderKind::Model => all.model_providers.push(provider),
            ProviderKind::Tts => all.tts_providers.push(provider),
            ProviderKind::Stt => all.stt_providers.push(provider),
            ProviderKind::Vad => all.vad_providers.push(provider),
        }
    }
    Ok(Json(all))
}

#[derive(Default, Serialize, ToSchema)]
struct AllProviders {
    model_providers: Vec<Provider>,
    tts_providers: Vec<Provider>,
    stt_providers: Vec<Provider>,
    vad_providers: Vec<Provider>,
}
