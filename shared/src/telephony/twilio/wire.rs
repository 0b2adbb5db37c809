//! HTTP of every request to Twilio: addresses, credentials, bounded replies, and the two ways in
//! which a request fails without a reply.

use std::error::Error as _;

use reqwest::{RequestBuilder, StatusCode, header};
use secrecy::ExposeSecret;
use serde_json::Value;
use url::Url;

use super::SERVICE;
use crate::platform::error::Error;
use crate::telephony::CarrierAccount;

/// Twilio's public address.
const PUBLIC_BASE: &str = "https://api.twilio.com";

/// The version of the REST API, which is also the first segment of its paths.
const API_VERSION: &str = "2010-04-01";

/// Largest reply that is read; Twilio's are smaller.
const REPLY_LIMIT_BYTES: usize = 8 * 1024 * 1024;

/// A complete reply.
pub(super) struct TwilioReply {
    pub status: StatusCode,
    pub retry_after_secs: Option<u64>,
    pub body: Vec<u8>,
}

/// Failure without a complete reply.
pub(super) enum RequestFailure {
    /// No connection was made, so no byte of the request was sent.
    NotSent(String),
    /// The request may have been processed; no complete reply arrived.
    Lost(String),
}

/// Error document of the API.
pub(super) struct TwilioError {
    pub code: u64,
    pub message: String,
}

/// `{base}/2010-04-01/Accounts/{account}/{tail...}`. `None` when the account's API
/// address cannot hold a path.
pub(super) fn address(account: &CarrierAccount, tail: &[&str]) -> Option<Url> {
    let mut url = match &account.api_base_url {
        Some(base) => base.clone(),
        None => Url::parse(PUBLIC_BASE).ok()?,
    };
    url.path_segments_mut()
        .ok()?
        .pop_if_empty()
        .extend([API_VERSION, "Accounts", &account.account_id])
        .extend(tail);
    Some(url)
}

/// `{base}/2010-04-01/Accounts/{account}.json`: the account itself.
pub(super) fn account_address(account: &CarrierAccount) -> Option<Url> {
    let mut url = address(account, &[])?;
    let file = format!("{}.json", account.account_id);
    url.path_segments_mut().ok()?.pop().push(&file);
    Some(url)
}

/// Adds the account's credentials: an API key where there is one, else the account itself.
pub(super) fn authorize(request: RequestBuilder, account: &CarrierAccount) -> RequestBuilder {
    let credentials = &account.credentials;
    let username = credentials.username.as_deref();
    request.basic_auth(
        username.unwrap_or(&account.account_id),
        Some(credentials.password.expose_secret()),
    )
}

/// Sends a request once and reads its complete reply.
pub(super) async fn send_once(request: RequestBuilder) -> Result<TwilioReply, RequestFailure> {
    let mut response = request.send().await.map_err(|error| {
        // A request that could not be built was not sent either.
        if error.is_connect() || error.is_builder() {
            RequestFailure::NotSent(describe(error))
        } else {
            RequestFailure::Lost(describe(error))
        }
    })?;

    let status = response.status();
    let retry_after_secs = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok());

    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= REPLY_LIMIT_BYTES => {
                body.extend_from_slice(&chunk);
            }
            Ok(Some(_)) => {
                let detail = format!("HTTP {status} with more than {REPLY_LIMIT_BYTES} bytes");
                return Err(RequestFailure::Lost(detail));
            }
            Ok(None) => break,
            Err(error) => {
                let detail = format!("HTTP {status}, then {}", describe(error));
                return Err(RequestFailure::Lost(detail));
            }
        }
    }

    Ok(TwilioReply {
        status,
        retry_after_secs,
        body,
    })
}

impl TwilioReply {
    /// Body, when it is a JSON object.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body)
            .ok()
            .filter(Value::is_object)
    }

    /// Body, when it has the shape of Twilio's errors: a numeric code and a message.
    pub fn error(&self) -> Option<TwilioError> {
        let body = self.json()?;
        Some(TwilioError {
            code: body.get("code")?.as_u64()?,
            message: body.get("message")?.as_str()?.to_owned(),
        })
    }

    /// Converts an unexpected reply into an error. Only rate limits, timeouts and Twilio's server
    /// errors are retryable.
    pub fn into_error(self) -> Error {
        let retryable = self.status.is_server_error()
            || self.status == StatusCode::TOO_MANY_REQUESTS
            || self.status == StatusCode::REQUEST_TIMEOUT;
        let detail = match self.error() {
            Some(fault) => format!("HTTP {}, code {}", self.status, fault.code),
            None => format!("HTTP {}", self.status),
        };
        twilio_failure(retryable, detail)
    }
}

impl From<RequestFailure> for Error {
    fn from(failure: RequestFailure) -> Self {
        let (RequestFailure::NotSent(detail) | RequestFailure::Lost(detail)) = failure;
        twilio_failure(true, detail)
    }
}

/// Creates an error of Twilio's side.
pub(super) fn twilio_failure(retryable: bool, detail: impl Into<String>) -> Error {
    Error::Outside {
        service: SERVICE,
        retryable,
        detail: detail.into(),
    }
}

/// Value of a record as text. Twilio treats absent, null and empty alike.
pub(super) fn text(record: &Value, name: &str) -> Option<String> {
    match record.get(name)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// True for the id of a call: `CA` and 32 hexadecimal digits.
pub(super) fn is_call_sid(text: &str) -> bool {
    text.strip_prefix("CA")
        .is_some_and(|tail| tail.len() == 32 && tail.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Text of an HTTP error with its causes, without its URL, whose query may hold a phone number.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
