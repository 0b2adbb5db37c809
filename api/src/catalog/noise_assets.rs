//! `/api/v1/noise-assets`: background noises behind an agent's voice.

use axum::Json;
use peal_shared::catalog::background_noises;
use peal_shared::catalog::background_noises::BackgroundNoise;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::openapi::CommonErrors;
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list))
}

/// List background noises
///
/// Agents refer to them by id, as `background_noise_id`.
#[utoipa::path(
    get,
    path = "/api/v1/noise-assets",
    tag = "Providers",
    responses((status = 200, body = Vec<BackgroundNoise>), CommonErrors)
)]
async fn list(_caller: Caller) -> Result<Json<Vec<BackgroundNoise>>> {
    Ok(Json(background_noises::ALL.to_vec()))
}
