//! HTTP client for callbacks and documents, with the behavior of Twilio's.
//!
//! The URL's fragment overrides the connection settings: `#rc=0..5` retries (1), `rp=`
//! conditions of a retry, of `4xx 5xx ct rt all` (`ct`), `ct=` connect and `rt=`
//! read timeout in milliseconds (5000, 15000), `tt=` total (15000). It is
//! removed before the request and is not part of the signed URL. Every attempt
//! has the same `I-Twilio-Idempotency-Token`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_TYPE, HeaderName};
use tokio::sync::Semaphore;
use url::form_urlencoded;

use crate::call::HttpMethod;
use crate::signature::sign;

/// Most bytes that are read of a response.
const MAX_BODY_BYTES: usize = 64 * 1024;
const SIGNATURE_HEADER: HeaderName = HeaderName::from_static("x-twilio-signature");
const IDEMPOTENCY_HEADER: HeaderName = HeaderName::from_static("i-twilio-idempotency-token");

/// Retries and timeouts from the URL's fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RetryPolicy {
    retries: u32,
    on_4xx: bool,
    on_5xx: bool,
    on_connect: bool,
    on_read: bool,
    connect_timeout: Duration,
    read_timeout: Duration,
    total_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retries: 1,
            on_4xx: false,
            on_5xx: false,
            on_connect: true,
            on_read: false,
            connect_timeout: Duration::from_millis(5000),
            read_timeout: Duration::from_millis(15_000),
            total_timeout: Duration::from_millis(15_000),
        }
    }
}

impl RetryPolicy {
    /// Parses a fragment; rejects keys and values that Twilio does not document.
    pub(crate) fn parse(fragment: &str) -> Result<Self, String> {
        let mut policy = Self::default();
        for (key, value) in form_urlencoded::parse(fragment.as_bytes()) {
            let number = |min: u32, max: u32| match value.parse::<u32>() {
                Ok(number) if (min..=max).contains(&number) => Ok(number),
                _ => Err(format!("{key}={value} is not within {min} and {max}")),
            };
            let millis = |number: u32| Duration::from_millis(u64::from(number));
            match &*key {
                "rc" => policy.retries = number(0, 5)?,
                "ct" => policy.connect_timeout = millis(number(100, 10_000)?),
                "rt" => policy.read_timeout = millis(number(100, 15_000)?),
                "tt" => policy.total_timeout = millis(number(100, 15_000)?),
                "rp" => policy.retry_on(&value)?,
                "sni" | "edge" => {}
                _ => return Err(format!("unknown connection override `{key}`")),
            }
        }
        Ok(policy)
    }

    fn retry_on(&mut self, words: &str) -> Result<(), String> {
        (self.on_4xx, self.on_5xx) = (false, false);
        (self.on_connect, self.on_read) = (false, false);
        for word in words.split(',') {
            match word.trim() {
                "4xx" => self.on_4xx = true,
                "5xx" => self.on_5xx = true,
                "ct" => self.on_connect = true,
                "rt" => self.on_read = true,
                "all" => {
                    (self.on_4xx, self.on_5xx) = (true, true);
                    (self.on_connect, self.on_read) = (true, true);
                }
                other => return Err(format!("unknown retry policy `{other}`")),
            }
        }
        Ok(())
    }

    fn retries_status(&self, status: u16) -> bool {
        match status {
            400..=499 => self.on_4xx,
            500..=599 => self.on_5xx,
            _ => false,
        }
    }
}

/// The URL without its fragment, and the fragment.
pub(crate) fn split_fragment(url: &str) -> (&str, &str) {
    url.split_once('#').unwrap_or((url, ""))
}

/// One request to send.
#[derive(Clone, Debug)]
pub(crate) struct CallbackRequest {
    pub(crate) url: Arc<str>,
    pub(crate) method: HttpMethod,
    /// A form, already encoded.
    pub(crate) body: String,
    pub(crate) token: Arc<str>,
    pub(crate) idempotency_token: String,
}

/// Result of a delivery: the response of the last attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeliveryReceipt {
    pub(crate) attempts: u32,
    pub(crate) status: Option<u16>,
    pub(crate) body: String,
    pub(crate) error: Option<String>,
}

impl DeliveryReceipt {
    pub(crate) fn is_success(&self) -> bool {
        self.status
            .is_some_and(|status| (200..300).contains(&status))
    }
}

pub(crate) fn encode_form(params: &[(&'static str, String)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(params)
        .finish()
}

/// Pooled HTTP client with separate bounds, so that a callback endpoint that hangs does not
/// delay the documents of answered calls.
pub(crate) struct CallbackClient {
    client: reqwest::Client,
    pub(crate) callbacks: Semaphore,
    pub(crate) documents: Semaphore,
}

impl CallbackClient {
    pub(crate) fn new(concurrency: usize) -> Result<Self, reqwest::Error> {
        let concurrency = concurrency.clamp(1, Semaphore::MAX_PERMITS);
        let client = reqwest::Client::builder()
            .user_agent("TwilioProxy/1.1")
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(concurrency)
            .build()?;
        Ok(Self {
            client,
            callbacks: Semaphore::new(concurrency),
            documents: Semaphore::new(concurrency),
        })
    }

    /// Sends the request and retries it as the URL's fragment allows.
    pub(crate) async fn deliver(&self, parcel: &CallbackRequest) -> DeliveryReceipt {
        let (target, fragment) = split_fragment(&parcel.url);
        // Creates with an invalid fragment are refused, so it parses here.
        let policy = RetryPolicy::parse(fragment).unwrap_or_default();

        let started = Instant::now();
        let mut receipt = DeliveryReceipt::default();
        loop {
            let left = policy.total_timeout.saturating_sub(started.elapsed());
            let timeout = left.min(policy.connect_timeout + policy.read_timeout);
            receipt.attempts += 1;

            let retry = match self.try_once(target, parcel, timeout).await {
                Ok((status, body)) => {
                    receipt.status = Some(status);
                    receipt.body = body;
                    receipt.error = None;
                    policy.retries_status(status)
                }
                Err(error) => {
                    receipt.status = None;
                    receipt.error = Some(describe(&error));
                    if error.is_connect() {
                        policy.on_connect
                    } else {
                        policy.on_read
                    }
                }
            };

            if !retry || receipt.attempts > policy.retries {
                return receipt;
            }
            let pause = Duration::from_millis(50 << receipt.attempts.min(5));
            if started.elapsed() + pause >= policy.total_timeout {
                return receipt;
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_once(
        &self,
        target: &str,
        parcel: &CallbackRequest,
        timeout: Duration,
    ) -> Result<(u16, String), reqwest::Error> {
        let request = match parcel.method {
            HttpMethod::Post => {
                let params: Vec<_> = form_urlencoded::parse(parcel.body.as_bytes()).collect();
                self.client
                    .post(target)
                    .header(
                        CONTENT_TYPE,
                        "application/x-www-form-urlencoded; charset=UTF-8",
                    )
                    .header(SIGNATURE_HEADER, sign(&parcel.token, target, &params))
                    .body(parcel.body.clone())
            }
            HttpMethod::Get => {
                let separator = if target.contains('?') { '&' } else { '?' };
                let url = format!("{target}{separator}{}", parcel.body);
                let none: [(&str, &str); 0] = [];
                let signature = sign(&parcel.token, &url, &none);
                self.client.get(url).header(SIGNATURE_HEADER, signature)
            }
        };

        let mut response = request
            .header(IDEMPOTENCY_HEADER, &parcel.idempotency_token)
            .timeout(timeout)
            .send()
            .await?;

        let status = response.status().as_u16();
        let mut body = Vec::new();
        while body.len() < MAX_BODY_BYTES {
            let Some(chunk) = response.chunk().await? else {
                break;
            };
            body.extend_from_slice(&chunk);
        }
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// Describes the cause without the URL, which may contain a secret token.
fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        "timed out".to_owned()
    } else if error.is_connect() {
        "connection failed".to_owned()
    } else {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        cause.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_sets_the_retries() {
        assert_eq!(RetryPolicy::parse("").unwrap(), RetryPolicy::default());
        let policy = RetryPolicy::parse("rc=5&rp=all&rt=200").unwrap();
        assert_eq!(policy.retries, 5);
        assert!(policy.on_4xx && policy.on_5xx && policy.on_connect && policy.on_read);
        assert_eq!(policy.read_timeout, Duration::from_millis(200));
        let policy = RetryPolicy::parse("rp=5xx,rt").unwrap();
        assert!(policy.retries_status(503) && !policy.retries_status(404));
        assert!(policy.on_read && !policy.on_connect);
    }

    #[test]
    fn a_wrong_fragment_is_refused() {
        for bad in ["rc=6", "rc=x", "rp=3xx", "ct=50", "retries=2"] {
            assert!(RetryPolicy::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_fragment_is_split_off() {
        assert_eq!(
            split_fragment("http://x/a?b#rc=1"),
            ("http://x/a?b", "rc=1")
        );
        assert_eq!(split_fragment("http://x/a"), ("http://x/a", ""));
    }
}
