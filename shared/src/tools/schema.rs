//! Argument schemas of tools: a JSON Schema of an object, written by the tool's owner, shown to
//! the model, and checked against the model's arguments.

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::{Map, Value};

use crate::platform::error::FieldError;

/// Maximum size of a schema; a larger one takes too much of a model's context.
const MAX_SCHEMA_BYTES: usize = 32 * 1024;
/// Keywords of references, which are rejected: remote schemas are never fetched, and a recursive
/// schema would never end.
const REFERENCE_KEYWORDS: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];
/// Maximum of errors reported for one set of arguments.
const MAX_REPORTED_ERRORS: usize = 20;

/// Returns the schema of a tool without arguments.
#[must_use]
pub fn empty_object() -> Value {
    serde_json::json!({"type": "object", "properties": {}})
}

/// Checks a schema.
///
/// # Errors
/// A message for the owner about the required change.
pub fn check(schema: &Value) -> Result<(), String> {
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        return Err("must be a JSON Schema whose type is \"object\"".to_owned());
    }

    if schema.to_string().len() > MAX_SCHEMA_BYTES {
        return Err("must not be larger than 32 KB".to_owned());
    }
    if !is_storable(schema) {
        return Err("must not have a NUL character (\\u0000)".to_owned());
    }

    if has_references(schema) {
        return Err("must not use $ref; write the schema out in place".to_owned());
    }
    if schema.get("properties").is_some_and(|p| !p.is_object()) {
        return Err("must have an object under \"properties\"".to_owned());
    }

    compile(schema).map(drop)
}

/// Names of the arguments that a schema describes.
#[must_use]
pub fn parameters(schema: &Value) -> Vec<&str> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.map_or_else(Vec::new, |properties| {
        properties.keys().map(String::as_str).collect()
    })
}

/// Names of the required arguments.
#[must_use]
pub fn required(schema: &Value) -> Vec<String> {
    let names = schema.get("required").and_then(Value::as_array);
    names.map_or_else(Vec::new, |names| {
        names
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect()
    })
}

/// Adds required arguments to a schema.
#[must_use]
pub fn with_required(mut schema: Value, names: &[String]) -> Value {
    let mut all = required(&schema);
    for name in names {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    if let Some(schema) = schema.as_object_mut().filter(|_| !all.is_empty()) {
        schema.insert("required".to_owned(), all.into());
    }
    schema
}

/// Validates arguments against a schema and lists the errors, with paths under `place`.
#[must_use]
pub fn validation_errors(
    schema: &Value,
    arguments: &Map<String, Value>,
    place: &str,
) -> Vec<FieldError> {
    let arguments = Value::Object(arguments.clone());
    if !is_storable(&arguments) {
        let message = "must not have a NUL character (\\u0000)";
        return vec![FieldError::new("body", [place], "characters", message)];
    }

    let validator = match compile(schema) {
        Ok(validator) => validator,
        Err(why) => return vec![FieldError::new("body", [place], "schema", why)],
    };
    validator
        .iter_errors(&arguments)
        .take(MAX_REPORTED_ERRORS)
        .map(|error| {
            let path = error.instance_path().to_string();
            let steps = path.split('/').filter(|step| !step.is_empty());
            let path: Vec<&str> = std::iter::once(place).chain(steps).collect();
            FieldError::new("body", path, "json_schema", error.masked().to_string())
        })
        .collect()
}

/// Compiles a schema. Its patterns run in linear time, and nothing is fetched.
fn compile(schema: &Value) -> Result<Validator, String> {
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .with_pattern_options(PatternOptions::regex())
        .build(schema)
        .map_err(|error| format!("is not a JSON Schema: {}", error.masked()))
}

/// True when the database can store a value: its strings have no NUL.
#[must_use]
pub fn is_storable(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.contains('\0'),
        Value::Array(items) => items.iter().all(is_storable),
        Value::Object(fields) => fields
            .iter()
            .all(|(name, value)| !name.contains('\0') && is_storable(value)),
        _ => true,
    }
}

fn has_references(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            REFERENCE_KEYWORDS.contains(&name.as_str()) || has_references(value)
        }),
        Value::Array(items) => items.iter().any(has_references),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn order() -> Value {
        json!({
            "type": "object",
            "properties": {
                "order_id": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
                "count": {"type": "integer", "minimum": 1},
            },
            "required": ["order_id"],
            "additionalProperties": false,
        })
    }

    #[test]
    fn a_schema_of_an_object_is_taken_and_others_are_refused() {
        for good in [order(), empty_object(), json!({"type": "object"})] {
            assert_eq!(check(&good), Ok(()), "{good}");
        }
        for odd in [
            json!({}),
            json!({"type": "array"}),
            json!({"type": "object", "properties": []}),
            json!({"type": "object", "properties": {"a": {"type": "text"}}}),
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "https://example.com/a.json"}}}),
            json!({"type": "object", "description": "a".repeat(MAX_SCHEMA_BYTES)}),
            json!({"type": "object", "properties": {"a\0": {}}}),
        ] {
            assert!(check(&odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn arguments_are_held_against_the_schema() {
        let faults = |arguments: Value| {
            let found = validation_errors(&order(), arguments.as_object().unwrap(), "arguments");
            let mut places: Vec<String> = found.iter().map(|fault| fault.loc.join(".")).collect();
            places.sort_unstable();
            places
        };
        assert!(faults(json!({"order_id": "AB12", "count": 2})).is_empty());
        assert_eq!(faults(json!({})), ["body.arguments"]);
        assert_eq!(
            faults(json!({"order_id": "12", "count": 0})),
            ["body.arguments.count", "body.arguments.order_id"]
        );
        assert_eq!(
            faults(json!({"order_id": "AB1", "x": 1})),
            ["body.arguments"]
        );
    }

    #[test]
    fn demanded_arguments_are_added_once() {
        let names = ["order_id".to_owned(), "count".to_owned()];
        assert_eq!(required(&with_required(order(), &names)), names);
        assert_eq!(with_required(empty_object(), &[]), empty_object());
    }
}
