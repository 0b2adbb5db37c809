//! Calls under HIPAA, and what nobody is shown of them.
//!
//! An agent and an organisation can have the flag `hipaa_compliance`. A call is made under it
//! when either had it at the moment its row was written, and `calls.hipaa_compliance` keeps that
//! for good: neither the next change of the flag nor anybody's role brings back what a call hid.
//! Private are the values of a person's variables, what was said, the recording, and what is
//! found out from them afterwards. They are used to make the call and leave the database for
//! nothing else; nor is such a call recorded. A batch row is private while its batch is called
//! by an agent or for an organisation with the flag, and for good once a call was made of it
//! under the flag. So are the values that an upload rejects.
//!
//! [`Variables`] is how a person's values are read. It cannot be printed or written as JSON:
//! whoever shows them has to say whether they are private. `tests/tidy.rs` lists the files that
//! may name a private column at all.

use std::fmt;

use serde_json::{Map, Value};

/// What an agent's `{{names}}` stand for on one person's call.
#[derive(Clone, PartialEq, Eq, sqlx::Type)]
#[sqlx(transparent)]
pub struct Variables(Value);

impl Variables {
    /// The values by their names.
    #[must_use]
    pub fn of(values: Map<String, Value>) -> Self {
        Self(Value::Object(values))
    }

    /// For the words of the call itself.
    #[must_use]
    pub fn to_be_spoken(&self) -> &Value {
        &self.0
    }

    /// For whoever looks at the call or the row: an empty object when it is private.
    #[must_use]
    pub fn shown(self, is_private: bool) -> Value {
        match is_private {
            true => Value::Object(Map::new()),
            false => self.0,
        }
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Variables([REDACTED])")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn private_values_are_spoken_and_not_shown() {
        let values = json!({"name": "Ada"});
        let variables = Variables::of(values.as_object().unwrap().clone());
        assert_eq!(variables.to_be_spoken(), &values);
        assert!(!format!("{variables:?}").contains("Ada"));
        assert_eq!(variables.clone().shown(false), values);
        assert_eq!(variables.shown(true), json!({}));
    }
}
