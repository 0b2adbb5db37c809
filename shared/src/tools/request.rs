//! Requests of HTTP tools: builds and sends them, and reduces the answer for the model.

use std::time::{Duration, Instant};

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use utoipa::ToSchema;

use super::{EndpointCredentials, Tool, ToolMethod, schema};
use crate::agents::placeholders;
use crate::outbound::{OutboundClient, OutboundRequest, OutboundTarget};
use crate::platform::error::{Error, Result};

/// Maximum length of an answer; the model reads all of it while the callee waits on the phone.
const MAX_ANSWER_CHARS: usize = 16_000;

/// Request and response of one use of a tool.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Use, example = json!({
    "success": true, "error": null, "duration_ms": 84,
    "request": {"method": "GET", "url": "https://shop.example.com/orders/A-17", "body": null,
                "headers": {"authorization": "********"}},
    "response": {"status": 200, "body": {"status": "sent"}, "truncated": false}
}))]
pub struct ToolExecution {
    /// True when the endpoint answered with a status from 200 to 299.
    pub success: bool,
    pub request: SentRequest,
    pub response: Option<ReceivedResponse>,
    /// Reason of the failure.
    pub error: Option<String>,
    pub duration_ms: u64,
}

/// Request of a tool. Secrets are masked.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Sent)]
pub struct SentRequest {
    pub method: ToolMethod,
    pub url: String,
    pub headers: BTreeMap<String, String>,
    #[schema(value_type = Option<Object>)]
    pub body: Option<Value>,
}

/// Response to a tool's request, as the model sees it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Received)]
pub struct ReceivedResponse {
    pub status: u16,
    /// The selected fields; a string when the answer is not JSON, or too long.
    pub body: Value,
    /// True when the body was cut.
    pub truncated: bool,
}

/// Checks the address of a tool, whose parameters the schema must describe.
///
/// # Errors
/// A message for the owner about the required change.
pub fn check_url(
    outbound: &OutboundClient,
    url: &str,
    tool_schema: &Value,
) -> std::result::Result<(), String> {
    let known = schema::parameters(tool_schema);
    for name in placeholders(url) {
        if !known.contains(&name) {
            return Err(format!(
                "uses {{{{{name}}}}}, which is not among the properties of tool_schema"
            ));
        }
    }
    if !host_is_fixed(url) {
        return Err("must not have {{parameters}} in its scheme, host or port".to_owned());
    }
    let sample = fill_parameters(url, |_| Some("x".to_owned())).unwrap_or_default();
    outbound.parse_url(&sample).map(drop).map_err(str::to_owned)
}

/// Uses a tool: sends its request and reads the answer.
///
/// # Errors
/// [`Error::Invalid`] for arguments that do not match the tool's schema. An endpoint that does
/// not answer is no error: the result reports it.
pub async fn send(
    outbound: &OutboundClient,
    tool: &Tool,
    credentials: &EndpointCredentials,
    arguments: &Map<String, Value>,
) -> Result<ToolExecution> {
    let faults = schema::validation_errors(&tool.tool_schema, arguments, "arguments");
    if !faults.is_empty() {
        return Err(Error::Invalid(faults));
    }

    // 1. Build the request.
    let (target, body) = build_target(outbound, tool, arguments)?;
    let mut headers = credentials.header_map()?;
    if body.is_some() {
        let json = HeaderValue::from_static("application/json");
        headers.entry(CONTENT_TYPE).or_insert(json);
    }

    // 2. Record it with masked secrets.
    let sent = SentRequest {
        method: tool.method,
        url: target.url().to_string(),
        headers: headers
            .iter()
            .map(|(name, value)| {
                let value = match value.is_sensitive() {
                    true => crate::outbound::credentials::MASK.to_owned(),
                    false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
                };
                (name.as_str().to_owned(), value)
            })
            .collect(),
        body: body.clone(),
    };

    // 3. Send it.
    let outgoing = OutboundRequest {
        method: tool.method.into(),
        target,
        headers,
        body: body.map(|body| Bytes::from(body.to_string())),
        timeout: Duration::from_secs(u64::try_from(tool.timeout_seconds).unwrap_or(1)),
    };
    let begun = Instant::now();
    let answer = outbound.send(tool.org_id, outgoing).await;
    let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);

    // 4. Redact secrets from the answer and reduce it.
    let (response, error) = match answer {
        Ok(answer) => {
            let text = String::from_utf8_lossy(&answer.body);
            let received = reduce_answer(answer.status.as_u16(), &credentials.redact(&text), tool);
            let error = status_error(answer.status);
            (Some(received), error)
        }
        Err(failure) => (None, Some(failure.to_string())),
    };

    Ok(ToolExecution {
        success: error.is_none(),
        request: sent,
        response,
        error,
        duration_ms,
    })
}

fn status_error(status: reqwest::StatusCode) -> Option<String> {
    if status.is_success() {
        return None;
    }
    Some(if status.is_redirection() {
        format!(
            "the endpoint redirects ({}); use the target address as the tool's url",
            status.as_u16()
        )
    } else {
        format!("the endpoint answered with status {}", status.as_u16())
    })
}

impl From<ToolMethod> for Method {
    fn from(method: ToolMethod) -> Self {
        match method {
            ToolMethod::Get => Self::GET,
            ToolMethod::Post => Self::POST,
            ToolMethod::Put => Self::PUT,
            ToolMethod::Patch => Self::PATCH,
            ToolMethod::Delete => Self::DELETE,
        }
    }
}

/// Returns the target and body of a request. Arguments that the address names are filled in
/// there; the others go into the query, or into the body of a method that has one.
fn build_target(
    outbound: &OutboundClient,
    tool: &Tool,
    arguments: &Map<String, Value>,
) -> Result<(OutboundTarget, Option<Value>)> {
    // 1. Fill the parameters of the address.
    let in_address: Vec<&str> = placeholders(&tool.url).collect();
    let address = fill_parameters(&tool.url, |name| {
        // A segment of dots would resolve to another path, encoded or not.
        let text = arguments.get(name).map(to_plain_text).unwrap_or_default();
        (!text.is_empty() && !text.bytes().all(|byte| byte == b'.'))
            .then(|| utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string())
    });
    let refused = |why: &str| Error::rejected("tool_address", format!("the tool's url {why}"));
    let address = address.ok_or_else(|| refused("needs a value for each of its {{parameters}}"))?;
    let target = outbound.parse_url(&address).map_err(refused)?;

    // 2. Put the other arguments into the body or the query.
    let rest: Map<String, Value> = arguments
        .iter()
        .filter(|(name, _)| !in_address.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !matches!(tool.method, ToolMethod::Get | ToolMethod::Delete) {
        return Ok((target, Some(Value::Object(rest))));
    }
    if rest.is_empty() {
        return Ok((target, None));
    }
    let mut url = target.url().clone();
    url.query_pairs_mut().extend_pairs(
        rest.iter()
            .map(|(name, value)| (name, to_plain_text(value))),
    );
    Ok((outbound.parse_url(url.as_str()).map_err(refused)?, None))
}

/// Formats a value for an address: strings as they are, other values as JSON.
fn to_plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        value => value.to_string(),
    }
}

/// Replaces each `{{name}}` by its value; `None` when a value is missing.
fn fill_parameters(text: &str, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut whole = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, remainder) = after.split_once("}}")?;
        whole.push_str(before);
        whole.push_str(&value(name.trim())?);
        rest = remainder;
    }
    whole.push_str(rest);
    Some(whole)
}

/// True when the first parameter comes after the host.
fn host_is_fixed(url: &str) -> bool {
    let fixed = url.split("{{").next().unwrap_or_default();
    fixed.len() == url.len()
        || fixed
            .split_once("://")
            .is_some_and(|(_, rest)| rest.contains(['/', '?']))
}

/// Reduces an answer to the selected fields and the maximum length.
fn reduce_answer(status: u16, text: &str, tool: &Tool) -> ReceivedResponse {
    let body = match serde_json::from_str::<Value>(text) {
        // Parsed JSON may contain NULs, which the database cannot store; pass it on as text.
        Ok(body) if !schema::is_storable(&body) => Value::String(text.replace('\0', "")),
        Ok(body) => match &tool.output_schema {
            Some(paths) => select_fields(&body, paths),
            None => body,
        },
        Err(_) => Value::String(text.replace('\0', "")),
    };

    let whole = to_plain_text(&body);
    if whole.chars().count() <= MAX_ANSWER_CHARS {
        return ReceivedResponse {
            status,
            body,
            truncated: false,
        };
    }

    ReceivedResponse {
        status,
        body: Value::String(whole.chars().take(MAX_ANSWER_CHARS).collect()),
        truncated: true,
    }
}

/// Selects the fields at these paths; applies to each item of a list.
fn select_fields(value: &Value, paths: &[String]) -> Value {
    match value {
        Value::Array(items) => items
            .iter()
            .map(|item| select_fields(item, paths))
            .collect(),
        Value::Object(fields) => {
            let mut left = Map::new();
            for (name, value) in fields {
                let inner: Vec<String> = paths
                    .iter()
                    .filter_map(|path| path.strip_prefix(name.as_str())?.strip_prefix('.'))
                    .map(str::to_owned)
                    .collect();
                if paths.contains(name) {
                    left.insert(name.clone(), value.clone());
                } else if !inner.is_empty() {
                    left.insert(name.clone(), select_fields(value, &inner));
                }
            }
            Value::Object(left)
        }
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::outbound::OutboundPolicy;
    use crate::platform::ids::{OrgId, ToolId, UserId};
    use crate::tools::EndpointAuth;

    fn tool(method: ToolMethod, url: &str) -> Tool {
        Tool {
            id: ToolId::new(),
            user_id: UserId::new(),
            org_id: OrgId::new(),
            name: "find_order".to_owned(),
            description: "Finds an order".to_owned(),
            url: url.to_owned(),
            method,
            headers: BTreeMap::new(),
            auth: EndpointAuth::None,
            timeout_seconds: 5,
            tool_schema: json!({"type": "object", "properties": {"id": {}, "page": {}}}),
            required: Vec::new(),
            output_schema: None,
            is_active: true,
            created_at: chrono::DateTime::UNIX_EPOCH,
            updated_at: chrono::DateTime::UNIX_EPOCH,
        }
    }

    fn outbound() -> OutboundClient {
        OutboundClient::new(OutboundPolicy::default()).unwrap()
    }

    fn request(method: ToolMethod, url: &str, arguments: Value) -> Result<(String, Option<Value>)> {
        let (target, body) = build_target(
            &outbound(),
            &tool(method, url),
            arguments.as_object().unwrap(),
        )?;
        Ok((target.url().to_string(), body))
    }

    #[test]
    fn arguments_go_where_the_method_has_a_place_for_them() {
        let arguments = json!({"id": "A 1/2", "page": 3});
        let url = "https://shop.test/orders/{{ id }}?x=1";
        assert_eq!(
            request(ToolMethod::Get, url, arguments.clone()).unwrap(),
            (
                "https://shop.test/orders/A%201%2F2?x=1&page=3".to_owned(),
                None
            )
        );
        assert_eq!(
            request(ToolMethod::Post, url, arguments).unwrap(),
            (
                "https://shop.test/orders/A%201%2F2?x=1".to_owned(),
                Some(json!({"page": 3}))
            )
        );
    }

    #[test]
    fn an_argument_cannot_lead_to_another_place() {
        let url = "https://shop.test/orders/{{id}}";
        for (id, path) in [
            ("../admin", "/orders/%2E%2E%2Fadmin"),
            ("x@evil.test", "/orders/x%40evil%2Etest"),
            ("x?y=1#z", "/orders/x%3Fy%3D1%23z"),
        ] {
            let (sent, _) = request(ToolMethod::Get, url, json!({"id": id})).unwrap();
            assert_eq!(sent, format!("https://shop.test{path}"));
        }
        for id in ["", ".", ".."] {
            assert!(
                request(ToolMethod::Get, url, json!({"id": id})).is_err(),
                "{id}"
            );
        }
        assert!(request(ToolMethod::Get, url, json!({})).is_err());
    }

    #[test]
    fn an_address_has_a_fixed_host_and_known_parameters() {
        let schema = json!({"type": "object", "properties": {"id": {}}});
        for good in [
            "https://shop.test",
            "https://shop.test/{{id}}",
            "https://shop.test?id={{id}}",
        ] {
            assert_eq!(check_url(&outbound(), good, &schema), Ok(()), "{good}");
        }
        for odd in [
            "https://{{id}}.shop.test/",
            "https://shop.test:{{id}}/",
            "https://shop.test{{id}}/",
            "{{id}}://shop.test/",
            "https://shop.test/{{other}}",
            "https://127.0.0.1/{{id}}",
            "https://shop.test/{{id",
        ] {
            assert!(check_url(&outbound(), odd, &schema).is_err(), "{odd}");
        }
    }

    #[test]
    fn an_answer_is_cut_to_what_its_owner_asked_for() {
        let mut tool = tool(ToolMethod::Get, "https://shop.test");
        let text =
            r#"{"order": {"status": "sent", "card": "1"}, "items": [{"n": 1, "m": 2}], "more": 1}"#;
        assert_eq!(reduce_answer(200, text, &tool).body["more"], 1);
        tool.output_schema = Some(vec![
            "order.status".to_owned(),
            "items.n".to_owned(),
            "missing.x".to_owned(),
        ]);
        assert_eq!(
            reduce_answer(200, text, &tool).body,
            json!({"order": {"status": "sent"}, "items": [{"n": 1}]})
        );
        assert_eq!(reduce_answer(200, "pl\0ain", &tool).body, json!("plain"));
        let odd = reduce_answer(200, r#"{"order": {"status": "\u0000"}}"#, &tool).body;
        assert!(odd.is_string(), "{odd}");
        let long = reduce_answer(200, &"ä".repeat(MAX_ANSWER_CHARS + 1), &tool);
        assert!(long.truncated);
        assert_eq!(
            long.body.as_str().unwrap().chars().count(),
            MAX_ANSWER_CHARS
        );
    }
}
