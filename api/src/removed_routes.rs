//! Removed routes of earlier versions. Each names its replacement, and needs no authentication.

use axum::extract::Path;
use peal_shared::Error;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::Problem;
use crate::http::openapi::ProblemDocument;
use crate::state::AppState;

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(assign_credits))
}

/// Assign credits (removed)
///
/// Use `POST /api/v1/wallets/{wallet_id}/grants`.
#[utoipa::path(
    post,
    path = "/organizations/{id}/billing/assign-credits",
    tag = "Wallets",
    security(()),
    params(("id" = String, Path)),
    responses(
        (status = 410, body = ProblemDocument, content_type = "application/problem+json", description = "Use POST /api/v1/wallets/{wallet_id}/grants"),
    )
)]
async fn assign_credits(Path(_organization): Path<String>) -> Problem {
    Error::Gone("this route was removed: use POST /api/v1/wallets/{wallet_id}/grants".into()).into()
}
