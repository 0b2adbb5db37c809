//! Response envelope of the batch-call routes: `{success, message, data}`, and its page.

use axum::Json;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::Result;

/// A response in its envelope.
#[derive(Debug, Serialize, ToSchema)]
pub struct Envelope<T> {
    success: bool,
    /// One-line summary, for people.
    message: String,
    data: T,
}

/// An envelope without data.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Said, example = json!({"success": true, "message": "done"}))]
pub struct MessageBody {
    success: bool,
    /// One-line summary, for people.
    message: String,
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Items<T> {
    pub items: Vec<T>,
    pub total: i64,
    pub page: i64,
    pub page_size: i64,
}

/// Result of a handler that responds with an envelope.
pub type EnvelopeResult<T> = Result<Json<Envelope<T>>>;
/// [`Answer`] with a status.
pub type EnvelopeStatusResult<T> = Result<(StatusCode, Json<Envelope<T>>)>;

/// Success response with data.
pub fn ok<T: Serialize>(message: impl Into<String>, data: T) -> Json<Envelope<T>> {
    Json(Envelope {
        success: true,
        message: message.into(),
        data,
    })
}

/// Success response without data.
pub fn ok_message(message: impl Into<String>) -> Json<MessageBody> {
    Json(MessageBody {
        success: true,
        message: message.into(),
    })
}
