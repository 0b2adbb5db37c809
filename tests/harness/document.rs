//! The OpenAPI document: its operations, their examples, and the targets of references.

use reqwest::Method;
use serde_json::Value;

/// Methods that an operation may have.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// An OpenAPI document.
pub struct Document(pub Value);

/// One operation of a document.
pub struct Operation<'a> {
    pub method: Method,
    pub path: &'a str,
    pub spec: &'a Value,
    pub document: &'a Document,
}

impl Document {
    /// Generates the document of this build.
    pub fn current() -> Self {
        Self(serde_json::to_value(peal_api::document()).expect("JSON"))
    }

    /// All operations, by path and method.
    pub fn operations(&self) -> Vec<Operation<'_>> {
        let paths = self.0["paths"].as_object().expect("paths");
        let mut found = Vec::new();
        for (path, item) in paths {
            for method in METHODS {
                if let Some(spec) = item.get(method) {
                    found.push(Operation {
                        method: method.to_uppercase().parse().expect("a method"),
                        path,
                        spec,
                        document: self,
                    });
                }
            }
        }
        assert!(!found.is_empty(), "the document has no operations");
        found
    }

    /// Follows a `$ref` to its target; returns other values unchanged.
    pub fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.trim_start_matches('#');
                let target = self.0.pointer(pointer);
                self.resolve(target.unwrap_or_else(|| panic!("nothing is at {reference}")))
            }
            None => value,
        }
    }
}

impl<'a> Operation<'a> {
    /// Method and path, such as `POST /api/v1/batch-call/create`.
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Parameters in one location: `path`, `query` or `header`.
    pub fn parameters(&self, place: &str) -> Vec<&'a Value> {
        let all = self.spec["parameters"].as_array();
        let all = all.into_iter().flatten();
        all.filter(|parameter| parameter["in"] == place).collect()
    }

    /// Content type of the request's body, and its media type object.
    pub fn body(&self) -> Option<(&'a str, &'a Value)> {
        let content = self.spec["requestBody"]["content"].as_object()?;
        let (kind, body) = content.iter().next()?;
        Some((kind, body))
    }

    /// Example of the request's JSON body.
    pub fn body_example(&self) -> Option<Value> {
        let (_, body) = self.body()?;
        self.example(body)
    }

    /// Example of a media type, or else of its schema.
    pub fn example(&self, content: &'a Value) -> Option<Value> {
        if let Some(example) = content.get("example") {
            return Some(example.clone());
        }
        let examples = content.get("examples").and_then(Value::as_object);
        if let Some(first) = examples.and_then(|examples| examples.values().next()) {
            return first.get("value").cloned();
        }
        self.schema_example(&content["schema"])
    }

    /// Example of a schema, composed from its parts when it has none of its own.
    fn schema_example(&self, schema: &'a Value) -> Option<Value> {
        let schema = self.document.resolve(schema);
        if let Some(example) = schema.get("example") {
            return Some(example.clone());
        }
        if let Some(first) = schema["examples"].as_array().and_then(|all| all.first()) {
            return Some(first.clone());
        }

        if let Some(items) = schema.get("items") {
            return Some(Value::Array(vec![self.schema_example(items)?]));
        }

        let choices = ["oneOf", "anyOf", "allOf"];
        let choices = choices.iter().filter_map(|name| schema[name].as_array());
        if let Some(example) = choices
            .flatten()
            .find_map(|choice| self.schema_example(choice))
        {
            return Some(example);
        }

        let properties = schema["properties"].as_object()?;
        let parts = properties.iter().filter_map(|(name, property)| {
            let example = self.schema_example(property)?;
            Some((name.clone(), example))
        });
        let whole: serde_json::Map<String, Value> = parts.collect();
        (!whole.is_empty()).then_some(Value::Object(whole))
    }
}
