//! Mapping of errors to a status and a body; no other file does this.
//!
//! Bodies are problem documents (RFC 9457) with a stable `code`. A handler returns a
//! [`Problem`], which travels as an extension of an empty response. The outermost middleware
//! calls [`written`], which renders it with the request's id, logs server errors, and converts
//! bare error responses of the framework (405, 408, 413). Internal causes are logged and never
//! sent.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use peal_shared::Error;
use peal_shared::idempotency::StoredResponse;
use peal_shared::platform::error::{Blocker, FieldError};
use serde::Serialize;
use serde_json::{Value, json};

use crate::http::{RATELIMIT_LIMIT, RATELIMIT_REMAINING, RATELIMIT_RESET};
use crate::limits::token_bucket::RateLimited;

/// Seconds after which a client may retry when the server is busy.
const RETRY_AFTER_SECS: u32 = 1;
/// Header of a stored response to a repeated request.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The result of every handler.
pub type Result<T> = std::result::Result<T, Problem>;

/// An error response, or a stored response to a repeated request.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    code: Cow<'static, str>,
    detail: Cow<'static, str>,
    errors: Box<[FieldError]>,
    blockers: Box<[Blocker]>,
    retry_after_secs: Option<u32>,
    /// The rate limit that is used up.
    exhausted_limit: Option<u32>,
    /// Logged, never shown.
    cause: Option<Arc<anyhow::Error>>,
    /// True for a stored response.
    is_replayed: bool,
    /// Stored response of a request that succeeded.
    stored_response: Option<Arc<StoredResponse>>,
}

impl Problem {
    /// Creates a problem with a code and a text.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            detail: detail.into(),
            errors: Box::default(),
            blockers: Box::default(),
            retry_after_secs: None,
            exhausted_limit: None,
            cause: None,
            is_replayed: false,
            stored_response: None,
        }
    }

    /// True for a client error (4xx).
    pub fn is_client_error(&self) -> bool {
        self.status.is_client_error()
    }

    /// Stored response to a request with a used `Idempotency-Key`, sent with the header
    /// `Idempotent-Replayed`.
    pub fn replayed(stored: StoredResponse) -> Self {
        let status = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::OK);
        let text = |name| stored.body.get(name).and_then(Value::as_str);
        let text = |name| Cow::Owned(text(name).unwrap_or_default().to_owned());
        let replayed = Self {
            code: text("code"),
            is_replayed: true,
            ..Self::new(status, "answered_before", text("detail"))
        };

        match status.is_client_error() {
            true => replayed,
            false => Self {
                stored_response: Some(Arc::new(stored)),
                ..replayed
            },
        }
    }

    /// Converts to the stored form, for an error of a request that has side effects.
    pub fn to_stored(&self) -> StoredResponse {
        StoredResponse {
            status: self.status.as_u16(),
            body: json!({"code": self.code, "detail": self.detail}),
        }
    }

    /// Sets `Retry-After`.
    #[must_use]
    pub fn retry_after_secs(self, secs: u32) -> Self {
        Self {
            retry_after_secs: Some(secs),
            ..self
        }
    }

    /// Unauthenticated request. The text is the same for every reason, so that keys and users
    /// cannot be probed.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "authentication is required: send a valid x-api-key, or Authorization: Bearer with a session token",
        )
    }

    /// Exceeded rate limit.
    pub fn rate_limited(refused: RateLimited) -> Self {
        Self {
            retry_after_secs: Some(refused.retry_after_secs()),
            exhausted_limit: Some(refused.limit),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_requests",
                "too many requests; retry after the seconds in Retry-After",
            )
        }
    }

    /// Unknown route.
    pub fn route_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "route_not_found",
            "there is no such route",
        )
    }

    /// Invalid fields of the request.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [only] => format!("{}: {}", only.loc.join("."), only.msg),
            several => format!("{} fields are invalid", several.len()),
        };
        Self {
            errors: errors.into(),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_input", detail)
        }
    }

    /// The invalid fields.
    #[cfg(test)]
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    fn internal(cause: anyhow::Error) -> Self {
        Self {
            cause: Some(Arc::new(cause)),
            ..Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal_error",
                "internal error",
            )
        }
    }

    fn unavailable(
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
        cause: Option<anyhow::Error>,
    ) -> Self {
        Self {
            retry_after_secs: Some(RETRY_AFTER_SECS),
            cause: cause.map(Arc::new),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
        }
    }

    /// Problem for a bare error response of the framework.
    pub fn of_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => return Self::route_not_found(),
            StatusCode::METHOD_NOT_ALLOWED => (
                "method_not_allowed",
                "the route does not support this method; the header Allow lists those that it supports",
            ),
            StatusCode::REQUEST_TIMEOUT => ("request_timeout", "the request took too long"),
            StatusCode::PAYLOAD_TOO_LARGE => ("too_large", "the body is too large"),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                ("unsupported_media_type", "the body has the wrong type")
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                return Self::unavailable("busy", "try again shortly", None);
            }
            status if status.is_server_error() => ("internal_error", "internal error"),
            _ => ("bad_request", "the request cannot be read"),
        };
        Self::new(status, code, detail)
    }
}

/// True when the database could not be reached, false when it rejected a statement.
pub fn is_unreachable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<sqlx::Error>()
            .is_some_and(|error| match error {
                sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Io(_)
                | sqlx::Error::Tls(_) => true,
                // Connection exceptions, insufficient resources, operator intervention.
                sqlx::Error::Database(refusal) => refusal
                    .code()
                    .is_some_and(|code| ["08", "53", "57P"].iter().any(|c| code.starts_with(c))),
                _ => false,
            })
    })
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();

        match error {
            Error::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not_found", detail),
            Error::Forbidden(_) => Self::new(StatusCode::FORBIDDEN, "forbidden", detail),
            Error::Invalid(errors) => Self::invalid(errors),
            Error::Rejected { code, detail } => Self::new(StatusCode::BAD_REQUEST, code, detail),
            Error::Conflict { code, detail } => Self::new(StatusCode::CONFLICT, code, detail),
            Error::NotReady(blockers) => Self {
                blockers: blockers.into(),
                ..Self::new(StatusCode::BAD_REQUEST, "not_ready", detail)
            },
            Error::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail),
            Error::InsufficientCredit { code, detail } => {
                Self::new(StatusCode::PAYMENT_REQUIRED, code, detail)
            }
            Error::Gone(_) => Self::new(StatusCode::GONE, "gone", detail),
            Error::Busy(_) => Self::unavailable("busy", detail, None),
            Error::Outside {
                service, retryable, ..
            } => {
                let cause = anyhow::anyhow!(detail);
                let message = format!("the {service} does not respond correctly");
                if retryable {
                    Self::unavailable("outside_unavailable", message, Some(cause))
                } else {
                    Self {
                        cause: Some(Arc::new(cause)),
                        ..Self::new(StatusCode::BAD_GATEWAY, "outside_failed", message)
                    }
                }
            }
            Error::Unexpected(cause) if is_unreachable(&cause) => Self::unavailable(
                "database_unavailable",
                "the database does not answer; try again shortly",
                Some(cause),
            ),
            Error::Unexpected(cause) => Self::internal(cause),
        }
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Error::from(error).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = match &self.stored_response {
            Some(stored) => (self.status, Json(&stored.body)).into_response(),
            None => self.status.into_response(),
        };

        if self.is_replayed {
            let replayed = HeaderValue::from_static("true");
            response.headers_mut().insert(IDEMPOTENT_REPLAYED, replayed);
        }

        if self.stored_response.is_none() {
            response.extensions_mut().insert(self);
        }
        response
    }
}

/// Body of a problem document.
#[derive(Serialize)]
struct ProblemBody<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    blockers: &'a [Blocker],
}

/// Renders the problem of an error response, or one for its bare status.
pub fn render_problem(mut response: Response, request_id: &str) -> Response {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }

    let problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        // A handler's own document, such as the health report.
        None if response.headers().get(CONTENT_TYPE) == Some(&JSON) => return response,
        None => Problem::of_status(status),
    };

    if let Some(cause) = &problem.cause {
        tracing::error!(
            code = %problem.code,
            error = format!("{cause:#}"),
            "a request failed"
        );
    }

    let document = ProblemBody {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail: &problem.detail,
        code: &problem.code,
        request_id,
        errors: &problem.errors,
        blockers: &problem.blockers,
    };

    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, PROBLEM_JSON);
    headers.remove(CONTENT_LENGTH);
    if let Some(seconds) = problem.retry_after_secs {
        headers.insert(RETRY_AFTER, seconds.into());
        if let Some(limit) = problem.exhausted_limit {
            headers.insert(RATELIMIT_LIMIT, limit.into());
            headers.insert(RATELIMIT_REMAINING, 0.into());
            headers.insert(RATELIMIT_RESET, seconds.into());
        }
    }

    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status != StatusCode::METHOD_NOT_ALLOWED {
        headers.remove(ALLOW);
    }

    // Strings and numbers always serialize.
    *response.body_mut() = Body::from(serde_json::to_vec(&document).unwrap_or_default());
    response
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;

    async fn body(response: impl IntoResponse) -> (StatusCode, Value) {
        let response = render_problem(response.into_response(), "r-1");
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);

        let status = response.status();
        let bytes = to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn every_error_has_its_status_and_code() {
        let outside = |retryable| Error::Outside {
            service: "store",
            retryable,
            detail: "https://secret.internal".into(),
        };

        for (error, status, code) in [
            (Error::NotFound("Batch"), 404, "not_found"),
            (Error::Forbidden("no".into()), 403, "forbidden"),
            (
                Error::field("a", "missing", "is missing"),
                422,
                "invalid_input",
            ),
            (Error::rejected("one_of", "choose"), 400, "one_of"),
            (Error::conflict("batch_started", "x"), 409, "batch_started"),
            (Error::NotReady(Vec::new()), 400, "not_ready"),
            (Error::TooLarge("big".into()), 413, "too_large"),
            (
                Error::InsufficientCredit {
                    code: "insufficient_credits",
                    detail: "x".into(),
                },
                402,
                "insufficient_credits",
            ),
            (Error::Gone("x".into()), 410, "gone"),
            (Error::Busy("x".into()), 503, "busy"),
            (outside(true), 503, "outside_unavailable"),
            (outside(false), 502, "outside_failed"),
            (
                sqlx::Error::PoolTimedOut.into(),
                503,
                "database_unavailable",
            ),
            (sqlx::Error::RowNotFound.into(), 500, "internal_error"),
            (
                Error::Unexpected(anyhow::anyhow!("secret")),
                500,
                "internal_error",
            ),
        ] {
            let (seen, body) = body(Problem::from(error)).await;
            assert_eq!((seen.as_u16(), body["code"].as_str()), (status, Some(code)));
            assert_eq!(body["status"], status);
            assert_eq!(body["request_id"], "r-1");
            assert!(!body.to_string().contains("secret"), "{body}");
        }
    }

    #[tokio::test]
    async fn field_errors_and_blockers_are_listed() {
        let (_, invalid) = body(Problem::from(Error::field("batch_size", "range", "1 to 9"))).await;
        assert_eq!(
            invalid,
            json!({
                "type": "about:blank", "title": "Unprocessable Entity", "status": 422,
                "detail": "body.batch_size: 1 to 9", "code": "invalid_input", "request_id": "r-1",
                "errors": [{"loc": ["body", "batch_size"], "msg": "1 to 9", "type": "range"}],
            })
        );

        let blocker = Blocker {
            code: "no_rows",
            message: "upload a CSV first".into(),
        };
        let (_, unready) = body(Problem::from(Error::NotReady(vec![blocker]))).await;
        assert_eq!(unready["blockers"][0]["code"], "no_rows");
    }

    #[tokio::test]
    async fn bare_responses_of_the_framework_become_problems() {
        for (status, code) in [
            (404, "route_not_found"),
            (405, "method_not_allowed"),
            (408, "request_timeout"),
            (413, "too_large"),
            (415, "unsupported_media_type"),
            (400, "bad_request"),
            (500, "internal_error"),
        ] {
            let (_, body) = body(StatusCode::from_u16(status).unwrap()).await;
            assert_eq!(body["code"], code);
        }
    }

    #[test]
    fn retry_after_and_www_authenticate_are_headers() {
        let busy = render_problem(Problem::from(Error::Busy("x".into())).into_response(), "r");
        assert_eq!(busy.headers()[RETRY_AFTER], "1");

        let unknown = render_problem(Problem::unauthorized().into_response(), "r");
        assert_eq!(unknown.headers()[WWW_AUTHENTICATE], "Bearer");
    }
}
