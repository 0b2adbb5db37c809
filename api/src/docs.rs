//! `/openapi.json`: the OpenAPI document, and `/docs`: an interactive page of it, from files in
//! this binary, so that it works without the internet. Neither needs a key; requests that are
//! tried on the page use the reader's own.

use std::sync::{Arc, LazyLock};

use axum::Extension;
use axum::http::HeaderName;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::Result;
use crate::state::AppState;

/// RapiDoc 9.3.8 (MIT), `dist/rapidoc-min.js` of its npm package.
const VIEWER_SCRIPT: &str = include_str!("../assets/rapidoc/rapidoc-9.3.8.min.js");
const DOCS_PAGE: &str = include_str!("../assets/docs.html");

/// Restricts scripts and requests to this origin; the viewer creates inline styles.
const DOCS_CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; \
    connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// Serialized OpenAPI document of all routes, an extension of the requests to `/openapi.json`.
type SerializedDocument = Arc<LazyLock<serde_json::Result<String>, DocumentWriter>>;
type DocumentWriter = Box<dyn FnOnce() -> serde_json::Result<String> + Send>;

/// Routes of the document that `document` makes at the first request.
pub fn router(document: fn() -> OpenApi) -> OpenApiRouter<AppState> {
    let write: DocumentWriter = Box::new(move || document().to_json());
    let serialized: SerializedDocument = Arc::new(LazyLock::new(write));

    OpenApiRouter::new()
        .routes(routes!(openapi))
        .route_layer(Extension(serialized))
        .routes(routes!(docs))
        .routes(routes!(viewer))
}

/// Get the OpenAPI document
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "Description",
    security(()),
    responses((status = 200, body = Object, description = "OpenAPI 3.1", example = json!({"openapi": "3.1.0"})))
)]
async fn openapi(Extension(serialized): Extension<SerializedDocument>) -> Result<Response> {
    let document = LazyLock::force(&serialized)
        .as_ref()
        .map_err(|error| anyhow::anyhow!("the OpenAPI document cannot be serialized: {error}"))?;
    let headers = [(CONTENT_TYPE, "application/json")];
    Ok((headers, document.clone()).into_response())
}

/// Read and try the API in a browser
#[utoipa::path(
    get,
    path = "/docs",
    tag = "Description",
    security(()),
    responses((status = 200, body = String, content_type = "text/html", description = "A page", example = "<!doctype html>"))
)]
async fn docs() -> impl IntoResponse {
    let headers: [(HeaderName, &str); 3] = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, DOCS_CONTENT_POLICY),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, DOCS_PAGE)
}

/// Script of the documentation page
#[utoipa::path(
    get,
    path = "/docs/rapidoc-9.3.8.min.js",
    tag = "Description",
    security(()),
    responses((status = 200, body = String, content_type = "text/javascript", description = "A script", example = "/*! RapiDoc */"))
)]
async fn viewer() -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "text/javascript; charset=utf-8"),
        // The path contains the version.
        (CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, VIEWER_SCRIPT)
}
