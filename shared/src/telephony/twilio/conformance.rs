//! Check of every sent field against Twilio's published OpenAPI document, if present:
//! `PEAL_SPECS_DIR` names the directory that holds `twilio_api_v2010.json`.

use serde_json::Value;

use super::{create, fake, records};
use crate::telephony::{CallSearch, CallTermination};

const CALLS: &str = "/2010-04-01/Accounts/{AccountSid}/Calls.json";
const CALL: &str = "/2010-04-01/Accounts/{AccountSid}/Calls/{Sid}.json";

#[test]
fn every_field_we_send_is_in_the_published_specification() {
    let Some(spec) = specification() else {
        return;
    };
    let create = schema(&spec, CALLS);
    for call in [fake::new_call(), fake::new_call_with_everything()] {
        for (name, value) in create::request_form(&call) {
            check(&spec, &create["properties"][name], name, &value);
        }
        let sent = create::request_form(&call);
        for name in create["required"].as_array().unwrap() {
            assert!(
                sent.iter().any(|(sent, _)| name == sent),
                "{name} is required"
            );
        }
    }

    let update = schema(&spec, CALL);
    for ending in [CallTermination::Cancel, CallTermination::HangUp] {
        for (name, value) in records::end_form(ending) {
            check(&spec, &update["properties"][name], name, value);
        }
    }

    let search = CallSearch {
        to: fake::number("+15550100002"),
        from: fake::number("+15550100001"),
        created_from: "2026-03-04T09:30:00Z".parse().unwrap(),
        created_until: "2026-03-04T09:31:00Z".parse().unwrap(),
    };
    let parameters = spec["paths"][CALLS]["get"]["parameters"]
        .as_array()
        .unwrap();
    for (name, value) in records::search_query(&search) {
        let parameter = parameters
            .iter()
            .find(|parameter| parameter["name"] == name);
        let parameter = parameter.unwrap_or_else(|| panic!("{name} is not a parameter"));
        assert_eq!(parameter["in"], "query");
        check(&spec, &parameter["schema"], name, value);
    }
}

#[test]
fn every_status_of_the_published_specification_is_known() {
    let Some(spec) = specification() else {
        return;
    };
    let statuses = &spec["components"]["schemas"]["call_enum_status"]["enum"];
    for word in statuses.as_array().unwrap() {
        let word = word.as_str().unwrap();
        assert!(super::words::status(word).is_some(), "{word}");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a setting of this test, not of Peal"
)]
fn specification() -> Option<Value> {
    let Ok(directory) = std::env::var("PEAL_SPECS_DIR") else {
        eprintln!("skipped: PEAL_SPECS_DIR does not name a directory of specifications");
        return None;
    };
    let path = std::path::Path::new(&directory).join("twilio_api_v2010.json");
    let text = std::fs::read_to_string(&path).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

fn schema(spec: &Value, path: &str) -> Value {
    let body = &spec["paths"][path]["post"]["requestBody"];
    body["content"]["application/x-www-form-urlencoded"]["schema"].clone()
}

/// Asserts that a value, as the text of a form field, conforms to the schema.
fn check(spec: &Value, schema: &Value, name: &str, value: &str) {
    assert!(schema.is_object(), "{name} is not in the specification");
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.strip_prefix('#').unwrap();
        return check(spec, spec.pointer(pointer).unwrap(), name, value);
    }
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.iter().any(|word| word == value), "{name}={value}");
    }
    match schema["type"].as_str().unwrap() {
        "string" => assert!(!value.is_empty(), "{name} is empty"),
        "integer" => {
            let value: u64 = value.parse().unwrap();
            assert!(
                schema["maximum"].as_u64().is_none_or(|max| value <= max),
                "{name}"
            );
        }
        "boolean" => assert!(matches!(value, "true" | "false"), "{name}={value}"),
        "array" => check(spec, &schema["items"], name, value),
        other => panic!("{name} has the type {other}"),
    }
    if schema["format"] == "uri" {
        assert!(url::Url::parse(value).is_ok(), "{name}={value}");
    }
}
