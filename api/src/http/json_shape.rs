//! Rejection of lists in place of objects. serde's derived deserializers also accept a list where
//! a struct or a tagged enum belongs, and read its items as the fields in order. A list sent by
//! mistake would be misread. A body is therefore compared with its schema: where the schema has
//! an object, a list is rejected.

use std::collections::HashMap;

use peal_shared::platform::error::FieldError;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::{AdditionalProperties, ArrayItems, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};

use crate::http::error::{Problem, Result};

/// Rejects lists where `T` has objects.
///
/// # Errors
/// Every list in place of an object.
pub fn reject_lists_for_objects<T: ToSchema>(body: &Value) -> Result<()> {
    let mut parts = Vec::new();
    T::schemas(&mut parts);
    let shape = SchemaIndex(parts.into_iter().collect());
    let mut lists = Vec::new();
    shape.check(&T::schema(), body, &mut Vec::new(), &mut lists);
    match lists.is_empty() {
        true => Ok(()),
        false => Err(Problem::invalid(lists)),
    }
}

/// Schemas by name.
struct SchemaIndex(HashMap<String, RefOr<Schema>>);

impl SchemaIndex {
    fn resolve<'a>(&'a self, schema: &'a RefOr<Schema>) -> Option<&'a Schema> {
        match schema {
            RefOr::T(schema) => Some(schema),
            RefOr::Ref(reference) => {
                let name = reference.ref_location.rsplit('/').next()?;
                self.resolve(self.0.get(name)?)
            }
        }
    }

    /// True when the schema accepts a value of this type.
    fn accepts(&self, schema: &RefOr<Schema>, kind: &Type) -> bool {
        let is_kind = |schema: &SchemaType| match schema {
            SchemaType::Type(one) => one == kind,
            SchemaType::Array(several) => several.contains(kind),
            SchemaType::AnyValue => true,
        };
        match self.resolve(schema) {
            None => true,
            Some(Schema::Object(object)) => is_kind(&object.schema_type),
            Some(Schema::Array(array)) => is_kind(&array.schema_type),
            Some(Schema::OneOf(forms)) => forms.items.iter().any(|form| self.accepts(form, kind)),
            Some(Schema::AnyOf(forms)) => forms.items.iter().any(|form| self.accepts(form, kind)),
            Some(Schema::AllOf(forms)) => forms.items.iter().all(|form| self.accepts(form, kind)),
            Some(_) => true,
        }
    }

    fn check(
        &self,
        schema: &RefOr<Schema>,
        value: &Value,
        path: &mut Vec<String>,
        lists: &mut Vec<FieldError>,
    ) {
        if value.is_array()
            && self.accepts(schema, &Type::Object)
            && !self.accepts(schema, &Type::Array)
        {
            let error = FieldError::new("body", path.clone(), "type_error", "must be an object");
            lists.push(error);
            return;
        }

        match (self.resolve(schema), value) {
            (Some(Schema::Array(array)), Value::Array(items)) => {
                if let ArrayItems::RefOrSchema(each) = &array.items {
                    for (at, item) in items.iter().enumerate() {
                        self.check_child(each, item, at.to_string(), path, lists);
                    }
                }
            }
            (Some(Schema::Object(object)), Value::Object(fields)) => {
                for (name, field) in fields {
                    let other = match object.additional_properties.as_deref() {
                        Some(AdditionalProperties::RefOr(other)) => Some(other),
                        _ => None,
                    };
                    if let Some(property) = object.properties.get(name).or(other) {
                        self.check_child(property, field, name.clone(), path, lists);
                    }
                }
            }
            (Some(Schema::AllOf(forms)), _) => {
                for form in &forms.items {
                    self.check(form, value, path, lists);
                }
            }
            (Some(Schema::OneOf(forms)), _) => self.check_any(&forms.items, value, path, lists),
            (Some(Schema::AnyOf(forms)), _) => self.check_any(&forms.items, value, path, lists),
            _ => {}
        }
    }

    fn check_child(
        &self,
        schema: &RefOr<Schema>,
        value: &Value,
        name: String,
        path: &mut Vec<String>,
        lists: &mut Vec<FieldError>,
    ) {
        path.push(name);
        self.check(schema, value, path, lists);
        path.pop();
    }

    /// True when the value can be this variant of an enum: its tag is not another variant's.
    fn is_variant(&self, form: &RefOr<Schema>, value: &Value) -> bool {
        match self.resolve(form) {
            Some(Schema::Object(object)) => object.properties.iter().all(|(name, part)| {
                match (self.resolve(part), value.get(name)) {
                    (Some(Schema::Object(part)), Some(tag)) => part
                        .enum_values
                        .as_ref()
                        .is_none_or(|known| known.contains(tag)),
                    _ => true,
                }
            }),
            Some(Schema::AllOf(forms)) => {
                forms.items.iter().all(|form| self.is_variant(form, value))
            }
            _ => true,
        }
    }

    /// Checks a value against alternatives; the one with the fewest errors counts.
    fn check_any(
        &self,
        forms: &[RefOr<Schema>],
        value: &Value,
        path: &mut Vec<String>,
        lists: &mut Vec<FieldError>,
    ) {
        let kind = match value {
            Value::Object(_) => Type::Object,
            Value::Array(_) => Type::Array,
            _ => return,
        };

        let mut fewest: Option<Vec<FieldError>> = None;
        let fitting =
            |form: &&RefOr<Schema>| self.accepts(form, &kind) && self.is_variant(form, value);

        for form in forms.iter().filter(fitting) {
            let mut found = Vec::new();
            self.check(form, value, path, &mut found);
            if fewest
                .as_ref()
                .is_none_or(|fewest| found.len() < fewest.len())
            {
                fewest = Some(found);
            }
        }

        lists.extend(fewest.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use utoipa::ToSchema;

    use super::*;

    #[derive(ToSchema)]
    #[expect(dead_code, reason = "its fields are read by the macro alone")]
    struct TestBody {
        auth: Option<TestAuth>,
        items: Vec<TestItem>,
        by_name: HashMap<String, TestItem>,
        anything: Value,
        #[schema(value_type = Object)]
        parameters: Value,
    }

    #[derive(ToSchema)]
    #[serde(tag = "type", rename_all = "snake_case")]
    #[expect(dead_code, reason = "read by the macro alone")]
    enum TestAuth {
        None,
        Basic { user: TestItem, pets: Vec<String> },
    }

    #[derive(ToSchema)]
    #[expect(dead_code, reason = "its fields are read by the macro alone")]
    struct TestItem {
        size: i32,
    }

    #[test]
    fn a_list_is_rejected_only_where_an_object_belongs() {
        for fine in [
            json!({}),
            json!({"auth": null, "items": [], "by_name": {}, "anything": [], "parameters": {}}),
            json!({"auth": {"type": "basic", "user": {"size": 1}, "pets": ["a"]}}),
            json!({"items": [{"size": 1}], "by_name": {"a": {"size": 2}}, "anything": [[]]}),
            json!({"unknown": [1], "auth": {"type": "none", "surprise": []}}),
        ] {
            assert!(
                reject_lists_for_objects::<TestBody>(&fine).is_ok(),
                "{fine}"
            );
        }
        assert!(reject_lists_for_objects::<Vec<TestItem>>(&json!([{"size": 1}])).is_ok());
        for (body, place) in [
            (json!([]), "body"),
            (json!({"auth": ["none"]}), "body.auth"),
            (
                json!({"auth": {"type": "basic", "user": [1]}}),
                "body.auth.user",
            ),
            (json!({"items": [{"size": 1}, [1]]}), "body.items.1"),
            (json!({"by_name": {"a": [1]}}), "body.by_name.a"),
            (json!({"parameters": []}), "body.parameters"),
        ] {
            let problem = reject_lists_for_objects::<TestBody>(&body).unwrap_err();
            let errors = problem.errors().iter();
            let places: Vec<_> = errors.map(|error| error.loc.join(".")).collect();
            assert_eq!(places, [place], "{body}");
        }
        assert!(reject_lists_for_objects::<Vec<TestItem>>(&json!([[1]])).is_err());
    }
}
