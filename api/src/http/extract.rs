//! Extractors of requests: JSON bodies, ids in the path, and the query. Their errors name the
//! invalid field.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, RawPathParams, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use peal_shared::platform::error::FieldError;
use rust_decimal::Decimal;
use serde::Deserialize as _;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;
use tokio::time::timeout;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::http::error::Problem;
use crate::http::json_shape;

/// Longest time to read a whole body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A JSON body.
pub struct ValidJson<T>(pub T);

/// A JSON body that is any object; its handler interprets it.
pub struct JsonObject(pub Map<String, Value>);

/// An optional JSON body.
pub struct OptionalJson<T>(pub T);

/// Ids in the path.
pub struct PathIds<T>(pub T);

/// The query.
pub struct ValidQuery<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + ToSchema> FromRequest<S> for ValidJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(unsupported_media_type());
        }
        let body = read_body(request, state).await?;
        parse_shaped(&body).map(Self)
    }
}

impl<S: Send + Sync> FromRequest<S> for JsonObject {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(unsupported_media_type());
        }
        let body = read_body(request, state).await?;
        parse(&body).map(Self)
    }
}

impl<S, T> FromRequest<S> for OptionalJson<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Default + ToSchema,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let is_json = is_json(request.headers());
        let body = read_body(request, state).await?;
        match body.is_empty() {
            true => Ok(Self(T::default())),
            false if is_json => parse_shaped(&body).map(Self),
            false => Err(unsupported_media_type()),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathIds<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        if let Ok(Path(ids)) = Path::<T>::from_request_parts(parts, state).await {
            return Ok(Self(ids));
        }

        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_rejection| Problem::route_not_found())?;

        let errors: Vec<FieldError> = params
            .iter()
            .filter(|(_, value)| value.parse::<Uuid>().is_err())
            .map(|(name, _)| {
                let message = "this is not an id; ids are UUIDs";
                FieldError::new("path", [name], "uuid_parsing", message)
            })
            .collect();
        Err(Problem::invalid(errors))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for ValidQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let pairs = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        if let Some((name, _)) = pairs.clone().find(|(_, value)| value.contains('\0')) {
            let message = "must not have NUL characters";
            let error = FieldError::new("query", [name], "characters", message);
            return Err(Problem::invalid(vec![error]));
        }
        deserialize_at(serde_urlencoded::Deserializer::new(pairs), "query").map(Self)
    }
}

/// Applies the time limit for reading a body: its reader may hold a permit that others wait for.
///
/// # Errors
/// 408 after the limit.
pub async fn with_body_timeout<T>(reading: impl Future<Output = T>) -> Result<T, Problem> {
    timeout(BODY_TIMEOUT, reading)
        .await
        .map_err(|_elapsed| Problem::of_status(StatusCode::REQUEST_TIMEOUT))
}

async fn read_body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    with_body_timeout(Bytes::from_request(request, state))
        .await?
        .map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(failure)
                if failure.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "too_large",
                    "the body is too large for this route; split it",
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

fn unsupported_media_type() -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "send the body as JSON, with Content-Type: application/json",
    )
}

/// Parses a body, and checks that arrays are not in the place of objects.
fn parse_shaped<T: DeserializeOwned + ToSchema>(body: &[u8]) -> Result<T, Problem> {
    let typed = parse(body)?;
    if body.contains(&b'[') {
        json_shape::reject_lists_for_objects::<T>(&parse(body)?)?;
    }
    Ok(typed)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = deserialize_at(&mut json, "body")?;
    json.end().map_err(|error| {
        let whole = std::iter::empty::<String>();
        let error = FieldError::new("body", whole, "json_invalid", error.to_string());
        Problem::invalid(vec![error])
    })?;
    Ok(value)
}

/// Converts a parsed JSON body to its type.
///
/// # Errors
/// Names the invalid field.
pub fn convert_body<T: DeserializeOwned + ToSchema>(body: Value) -> Result<T, Problem> {
    json_shape::reject_lists_for_objects::<T>(&body)?;
    deserialize_at(body, "body")
}

/// Deserializes a value; an error names the path and the reason.
fn deserialize_at<'de, T, D>(input: D, place: &str) -> Result<T, Problem>
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
        let (kind, detail) = translate_serde_error(&message);

        if matches!(kind, "missing" | "extra_forbidden" | "duplicate")
            && let Some(name) = message.split('`').nth(1)
            && path.last().is_none_or(|last| last != name)
        {
            path.push(name.to_owned());
        }

        Problem::invalid(vec![FieldError::new(place, path, kind, detail)])
    })
}

/// Deserializes a decimal number from a JSON string or number.
///
/// # Errors
/// The value is neither.
pub fn decimal<'de, D: Deserializer<'de>>(input: D) -> std::result::Result<Decimal, D::Error> {
    let text = match Value::deserialize(input)? {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    Decimal::from_str_exact(&text)
        .map_err(|_error| D::Error::custom("must be a number, such as \"12.5\""))
}

/// Deserializes an optional decimal number.
///
/// # Errors
/// Those of [`decimal`].
pub fn some_decimal<'de, D: Deserializer<'de>>(
    input: D,
) -> std::result::Result<Option<Decimal>, D::Error> {
    decimal(input).map(Some)
}

/// Translates a message of serde to a stable kind and a text about the field. Serde's message
/// contains the value, which may be a phone number; the text does not.
fn translate_serde_error(message: &str) -> (&'static str, String) {
    let plain = message
        .rsplit_once(" at line ")
        .map_or(message, |(head, _)| head);

    let expected = || match plain.split_once(", expected ") {
        Some((_, expected)) => format!("must be {}", plain_word(expected)),
        None => "has the wrong type".to_owned(),
    };

    let begins = |beginning: &str| plain.starts_with(beginning);
    if begins("missing field") {
        ("missing", "is missing".to_owned())
    } else if begins("unknown field") {
        let known = plain.split_once(", expected ").map(|(_, known)| known);
        let known = known.unwrap_or("none");
        (
            "extra_forbidden",
            format!("is not a known field; known: {known}"),
        )
    } else if begins("duplicate field") {
        ("duplicate", "is a duplicate".to_owned())
    } else if begins("unknown variant") {
        ("enum", expected())
    } else if begins("invalid type") {
        ("type_error", expected())
    } else if begins("invalid value") {
        ("value_error", expected())
    } else if begins("UUID parsing failed") {
        ("uuid_parsing", "must be a UUID".to_owned())
    } else if plain.contains("digit found in string") {
        ("type_error", "must be a whole number".to_owned())
    } else if plain == message {
        ("value_error", message.to_owned())
    } else {
        ("json_invalid", message.to_owned())
    }
}

/// Plain name of a Rust type.
fn plain_word(expected: &str) -> &str {
    match expected {
        "i32" | "i64" | "u32" | "u64" => "a whole number",
        "a sequence" => "a list",
        "a map" => "an object",
        _ if expected.starts_with("struct ") => "an object",
        _ => expected,
    }
}

/// Collects all errors in the fields of a body, so that one response reports them together.
#[derive(Default)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// Adds an error of the field at `path` unless `holds`.
    pub fn check(&mut self, holds: bool, path: &str, kind: &'static str, msg: impl Into<String>) {
        if !holds {
            self.0
                .push(FieldError::new("body", path.split('.'), kind, msg));
        }
    }

    /// Checks the length of a text, in characters, and that it has no control characters.
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

    /// Checks the bounds of a number.
    pub fn check_range(&mut self, number: i32, path: &str, least: i32, most: i32) {
        self.check(
            (least..=most).contains(&number),
            path,
            "range",
            format!("must be between {least} and {most}"),
        );
    }

    /// Checks the bounds of a fraction.
    pub fn check_fraction(&mut self, number: f64, path: &str, least: f64, most: f64) {
        self.check(
            (least..=most).contains(&number),
            path,
            "range",
            format!("must be between {least} and {most}"),
        );
    }

    /// Ends the collection.
    ///
    /// # Errors
    /// All collected errors.
    pub fn finish(self) -> Result<(), Problem> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Problem::invalid(self.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use uuid::Uuid;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its errors are tested")]
    struct SampleBody {
        name: String,
        id: Option<Uuid>,
        #[serde(default)]
        items: Vec<SampleItem>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its errors are tested")]
    struct SampleItem {
        size: i32,
    }

    #[tokio::test]
    async fn errors_of_a_body_name_the_field_and_not_its_value() {
        for (body, loc, kind, msg) in [
            ("{}", "body.name", "missing", "is missing"),
            (
                r#"{"name": 15550100}"#,
                "body.name",
                "type_error",
                "must be a string",
            ),
            (
                r#"{"name": "a", "id": "+15550100"}"#,
                "body.id",
                "uuid_parsing",
                "must be a UUID",
            ),
            (
                r#"{"name": "a", "15550100": 1}"#,
                "body.15550100",
                "extra_forbidden",
                "is not a known field; known: one of `name`, `id`, `items`",
            ),
            (
                r#"{"name": "a", "items": [{"size": 1}, {"size": "15550100"}]}"#,
                "body.items.1.size",
                "type_error",
                "must be a whole number",
            ),
            (
                r#"{"name": "a", "items": [{}]}"#,
                "body.items.0.size",
                "missing",
                "is missing",
            ),
            (
                r#"{"name": "a", "name": "b"}"#,
                "body.name",
                "duplicate",
                "is a duplicate",
            ),
        ] {
            let problem = parse::<SampleBody>(body.as_bytes()).unwrap_err();
            let [error] = problem.errors() else {
                panic!("{problem:?}")
            };
            assert_eq!(error.loc.join("."), loc);
            assert_eq!((error.kind.as_ref(), error.msg.as_str()), (kind, msg));
        }

        for broken in ["", "{", "[", "{\"name\": \"a\"} x"] {
            let problem = parse::<SampleBody>(broken.as_bytes()).unwrap_err();
            assert_eq!(problem.errors()[0].kind, "json_invalid", "{broken}");
        }
    }

    #[test]
    fn json_is_known_by_its_type() {
        for (kind, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/problem+json", true),
            ("text/json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
            assert_eq!(is_json(&headers), expected, "{kind}");
        }
    }
}
