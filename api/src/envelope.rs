//! The envelope of the batch-call family: `{success, message, data}`, and its page.

use axum::Json;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::Result;

/// An answer in its envelope.
#[derive(Debug, Serialize, ToSchema)]
pub struct Envelope<T> {
    success: bool,
    /// What was done or found, for people.
    message: String,
    data: T,
}

/// An envelope with nothing in it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"success": true, "message": "done"}))]
pub struct Said {
    success: bool,
    /// What was done, for people.
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

/// What a handler of the family answers.
pub type Answer<T> = Result<Json<Envelope<T>>>;
/// The same, with a status of its own.
pub type AnswerWith<T> = Result<(StatusCode, Json<Envelope<T>>)>;

/// Good news with data.
pub fn done<T: Serialize>(message: impl Into<String>, data: T) -> Json<Envelope<T>> {
    Json(Envelope {
        success: true,
        message: message.into(),
        data,
    })
}

/// Good news.
pub fn said(message: impl Into<String>) -> Json<Said> {
    Json(Said {
        success: true,
        message: message.into(),
    })
}
