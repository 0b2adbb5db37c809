//! What handlers take from a request: JSON bodies, ids in the path and the query, each refused
//! in words that name the field.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, RawPathParams, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use peal_shared::error::FieldError;
use serde::de::{DeserializeOwned, Deserializer};
use serde_path_to_error::Segment;
use uuid::Uuid;

use crate::error::Problem;

/// A JSON body.
pub struct ValidJson<T>(pub T);

/// A JSON body that may be left out.
pub struct OptionalJson<T>(pub T);

/// Ids in the path.
pub struct Ids<T>(pub T);

/// The query.
pub struct ValidQuery<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for ValidJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(wrong_type());
        }
        let body = read(request, state).await?;
        parse(&body).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let is_json = is_json(request.headers());
        let body = read(request, state).await?;
        match body.is_empty() {
            true => Ok(Self(T::default())),
            false if is_json => parse(&body).map(Self),
            false => Err(wrong_type()),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Ids<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if let Ok(Path(ids)) = Path::<T>::from_request_parts(parts, state).await {
            return Ok(Self(ids));
        }
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_rejection| Problem::no_route())?;
        let wrong: Vec<FieldError> = params
            .iter()
            .filter(|(_, value)| value.parse::<Uuid>().is_err())
            .map(|(name, _)| {
                let message = "this is not an id; ids are UUIDs";
                field("path", [name.to_owned()], message, "uuid_parsing")
            })
            .collect();
        Err(Problem::invalid(wrong))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for ValidQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let pairs = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        typed(serde_urlencoded::Deserializer::new(pairs), "query").map(Self)
    }
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(failure)
                if failure.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "too_large",
                    "the body is larger than this route takes; split it",
                )
            }
            _ => Problem::new(
                StatusCode::BAD_REQUEST,
                "body_incomplete",
                "the body ended early",
            ),
        })
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let essence = kind
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn wrong_type() -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "send the body as JSON, with Content-Type: application/json",
    )
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = typed(&mut json, "body")?;
    json.end().map_err(|error| {
        Problem::invalid(vec![field("body", [], error.to_string(), "json_invalid")])
    })?;
    Ok(value)
}

/// Reads a value and, when that fails, says where and why.
fn typed<'de, T, D>(input: D, place: &str) -> Result<T, Problem>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
    D::Error: std::fmt::Display,
{
    serde_path_to_error::deserialize(input).map_err(|error| {
        let mut path: Vec<String> = error
            .path()
            .iter()
            .filter_map(|segment| match segment {
                Segment::Seq { index } => Some(index.to_string()),
                Segment::Map { key } => Some(key.clone()),
                Segment::Enum { variant } => Some(variant.clone()),
                Segment::Unknown => None,
            })
            .collect();
        let message = error.inner().to_string();
        let kind = kind_of(&message);
        if matches!(kind, "missing" | "extra_forbidden")
            && let Some(name) = message.split('`').nth(1)
            && path.last().is_none_or(|last| last != name)
        {
            path.push(name.to_owned());
        }
        Problem::invalid(vec![field(place, path, message, kind)])
    })
}

/// A stable word for what serde says in prose.
fn kind_of(message: &str) -> &'static str {
    [
        ("missing field", "missing"),
        ("unknown field", "extra_forbidden"),
        ("duplicate field", "duplicate"),
        ("unknown variant", "enum"),
        ("invalid type", "type_error"),
        ("invalid value", "value_error"),
        ("UUID parsing failed", "uuid_parsing"),
        ("expected", "json_invalid"),
        ("EOF", "json_invalid"),
        ("key must be", "json_invalid"),
        ("trailing", "json_invalid"),
        ("control character", "json_invalid"),
    ]
    .into_iter()
    .find(|(beginning, _)| message.starts_with(beginning))
    .map_or("value_error", |(_, kind)| kind)
}

fn field(
    place: &str,
    path: impl IntoIterator<Item = String>,
    msg: impl Into<String>,
    kind: &'static str,
) -> FieldError {
    FieldError {
        loc: std::iter::once(place.to_owned()).chain(path).collect(),
        msg: msg.into(),
        kind: kind.into(),
    }
}

/// Collects everything that is wrong with the fields of a body, so that all of it is told at
/// once.
#[derive(Default)]
pub struct Fields(Vec<FieldError>);

impl Fields {
    /// Notes that the field at `path` is wrong unless `holds`.
    pub fn check(&mut self, holds: bool, path: &str, kind: &'static str, msg: impl Into<String>) {
        if !holds {
            let path = path.split('.').map(str::to_owned);
            self.0.push(field("body", path, msg, kind));
        }
    }

    /// A text of some characters, without control characters.
    pub fn check_text(&mut self, text: &str, path: &str, least: usize, most: usize) {
        let chars = text.chars().count();
        self.check(
            (least..=most).contains(&chars),
            path,
            "length",
            format!("must have {least} to {most} characters"),
        );
        let clean = text
            .chars()
            .all(|c| !c.is_control() || matches!(c, '\n' | '\t'));
        self.check(
            clean,
            path,
            "characters",
            "must not have control characters",
        );
    }

    /// A number within bounds.
    pub fn check_range(&mut self, number: i32, path: &str, least: i32, most: i32) {
        self.check(
            (least..=most).contains(&number),
            path,
            "range",
            format!("must be between {least} and {most}"),
        );
    }

    /// # Errors
    /// Everything that was noted.
    pub fn finish(self) -> Result<(), Problem> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Problem::invalid(self.0))
        }
    }
}
