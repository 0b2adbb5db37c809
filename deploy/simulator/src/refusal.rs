//! Twilio's error body: `{code, message, more_info, status}`.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TwilioError {
    pub(crate) status: u16,
    pub(crate) code: u32,
    pub(crate) message: String,
}

impl TwilioError {
    pub(crate) fn bad_request(code: u32, message: impl Into<String>) -> Self {
        Self {
            status: 400,
            code,
            message: message.into(),
        }
    }

    pub(crate) fn unauthenticated() -> Self {
        Self {
            status: 401,
            code: 20003,
            message: "Authenticate".to_owned(),
        }
    }

    pub(crate) fn not_found(path: &str) -> Self {
        Self {
            status: 404,
            code: 20404,
            message: format!("The requested resource {path} was not found"),
        }
    }

    pub(crate) fn too_many_requests() -> Self {
        Self {
            status: 429,
            code: 20429,
            message: "Too Many Requests".to_owned(),
        }
    }

    pub(crate) fn unavailable() -> Self {
        Self {
            status: 503,
            code: 20503,
            message: "Service Unavailable".to_owned(),
        }
    }
}

impl IntoResponse for TwilioError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        let body = Json(json!({
            "code": self.code,
            "message": self.message,
            "more_info": format!("https://www.twilio.com/docs/errors/{}", self.code),
            "status": self.status,
        }));
        if status == StatusCode::UNAUTHORIZED {
            let realm = [(header::WWW_AUTHENTICATE, "Basic realm=\"Twilio API\"")];
            return (status, realm, body).into_response();
        }
        (status, body).into_response()
    }
}
