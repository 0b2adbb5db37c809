//! Routes of earlier versions, which say what replaced them. They tell nothing of anybody, so
//! nobody needs to be known.

use axum::extract::Path;
use peal_shared::Error;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Problem;
use crate::openapi::ProblemDocument;
use crate::state::Api;

pub fn router() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(assign_credits))
}

/// Give credit, as it was done before
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
    Error::Gone(
        "credits are not assigned any more: POST /api/v1/wallets/{wallet_id}/grants gives credit to a wallet".into(),
    )
    .into()
}
