//! The description of the API, made from the same declarations as its routes.

use utoipa::{IntoResponses, ToSchema};

/// A problem document (RFC 9457).
#[derive(ToSchema)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct ProblemDocument {
    /// Always `about:blank`: the code says which problem it is.
    r#type: String,
    /// The status in words.
    title: String,
    status: u16,
    /// What is wrong and how to put it right.
    detail: String,
    /// A stable, snake_case name of the problem.
    code: String,
    /// To be named when asking for help.
    request_id: String,
    /// Each wrong field, when the input is invalid.
    errors: Option<Vec<WrongField>>,
}

/// A wrong field of the input.
#[derive(ToSchema)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct WrongField {
    /// Where it stands: `["body", "records", "3", "to_phonenumber"]`.
    loc: Vec<String>,
    msg: String,
    /// A stable, snake_case kind.
    r#type: String,
}

/// What any operation that needs a caller may be refused with. An operation adds what is its
/// own: 400, 402, 404, 409 ...
#[derive(IntoResponses)]
#[expect(dead_code, reason = "its variants are read by the macro alone")]
pub enum Refusals {
    /// Nobody is known by this key or token.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] ProblemDocument),
    /// The caller may not do this.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] ProblemDocument),
    /// The input is invalid.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(#[to_schema] ProblemDocument),
    /// Too many requests; `Retry-After` says when to come again.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] ProblemDocument),
    /// Too busy, or the database is away; `Retry-After` says when to come again.
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(#[to_schema] ProblemDocument),
}
