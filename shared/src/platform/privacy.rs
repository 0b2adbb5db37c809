//! Privacy of calls under HIPAA.
//!
//! An agent and an organisation can have the flag `hipaa_compliance`. A call is under HIPAA when
//! either had the flag at the moment its row was written, and `calls.hipaa_compliance` keeps that
//! for good: no later change of the flag and no role reveals the private data of the call.
//! Private are the values of a person's variables, the transcript, the recording, and the results
//! of their analysis. They are used to make the call and leave the database for nothing else; such
//! a call is not recorded either. A batch row is private while its batch is called by an agent or
//! for an organisation with the flag, and for good once a call was made of it under the flag. So
//! are the values that an upload rejects.
//!
//! [`Variables`] holds a person's values. It cannot be printed or serialized: a reader has to
//! state whether they are private. `tests/house/tidy.rs` lists the files that may name a private column.

use std::fmt;

use serde_json::{Map, Value};

/// Values of an agent's `{{names}}` on one person's call.
#[derive(Clone, PartialEq, Eq, sqlx::Type)]
#[sqlx(transparent)]
pub struct Variables(Value);

impl Variables {
    /// Wraps values by their names.
    #[must_use]
    pub fn from_map(values: Map<String, Value>) -> Self {
        Self(Value::Object(values))
    }

    /// Values for the speech of the call itself.
    #[must_use]
    pub fn for_speech(&self) -> &Value {
        &self.0
    }

    /// Values for readers of the call or the row: an empty object when it is private.
    #[must_use]
    pub fn redacted_if(self, is_private: bool) -> Value {
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
        let variables = Variables::from_map(values.as_object().unwrap().clone());
        assert_eq!(variables.for_speech(), &values);
        assert!(!format!("{variables:?}").contains("Ada"));
        assert_eq!(variables.clone().redacted_if(false), values);
        assert_eq!(variables.redacted_if(true), json!({}));
    }
}
