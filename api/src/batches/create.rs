//! Request body that creates a batch, and its validation.

use std::collections::HashSet;
use std::str::FromStr as _;

use peal_shared::Error;
use peal_shared::access::Principal;
use peal_shared::campaigns::{BatchStatus, NewBatch};
use peal_shared::config::uploads::IngestLimits;
use peal_shared::platform::e164::Country;
use peal_shared::platform::ids::{AgentId, PhoneId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::http::error::Result;
use crate::http::extract::FieldErrors;

const MAX_VARIABLES: usize = 50;
const MAX_VARIABLE_CHARS: usize = 64;
/// CSV columns that cannot be variables.
const RESERVED_NAMES: [&str; 2] = ["to_phonenumber", "timezone"];

/// A batch to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "batch_name": "March reminders", "agent_id": "0197d7a5-3c1e-7a10-8f00-00000000000b",
    "caller_phone_id": "0197d7a5-3c1e-7a10-8f00-00000000000c", "variable_names": ["name"], "batch_size": 20,
    "max_retries": 1
}))]
pub struct CreateBatch {
    /// The number that calls show.
    caller_phone_id: PhoneId,
    #[schema(min_length = 1, max_length = 200)]
    batch_name: String,
    /// The agent that speaks.
    agent_id: Option<AgentId>,
    /// Must be left out: workflows cannot place calls.
    workflow_id: Option<Uuid>,
    /// Always null; kept for compatibility.
    #[schema(value_type = (), required = false)]
    call_flow_id: Option<Value>,
    /// The owner; the caller unless an administrator names a member.
    user_id: Option<UserId>,
    #[schema(max_length = 2000)]
    description: Option<String>,
    /// `not_started`, if present.
    status: Option<BatchStatus>,
    /// Columns of the CSV, used as `{{names}}` in the agent's texts.
    #[serde(default)]
    #[schema(max_items = 50)]
    variable_names: Vec<String>,
    /// Maximum of concurrent calls.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 1000)]
    batch_size: i32,
    /// Maximum of retries for a number that was not reached.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 5)]
    max_retries: i32,
    #[serde(default = "a_minute")]
    #[schema(minimum = 1, maximum = 604_800)]
    retry_delay_seconds: i32,
    /// Retries calls whose outcome is unknown.
    #[serde(default)]
    retry_lost: bool,
    /// Resumes the batch when credit arrives after a pause for lack of credit.
    #[serde(default)]
    auto_resume: bool,
    /// Country of numbers without a country code, such as IN.
    #[schema(min_length = 2, max_length = 2)]
    default_country: Option<String>,
}

fn one() -> i32 {
    1
}

fn a_minute() -> i32 {
    60
}

impl CreateBatch {
    /// Validates the body.
    ///
    /// # Errors
    /// Every invalid field, then a broken rule across fields, then an owner outside the caller's
    /// scope.
    pub fn validated(self, caller: &Principal) -> Result<NewBatch> {
        let batch_name = self.batch_name.trim();
        let mut fields = FieldErrors::default();

        fields.check_text(batch_name, "batch_name", 1, 200);
        fields.check_text(
            self.description.as_deref().unwrap_or_default(),
            "description",
            0,
            2000,
        );

        fields.check_range(self.batch_size, "batch_size", 1, 1000);
        fields.check_range(self.max_retries, "max_retries", 0, 5);
        fields.check_range(self.retry_delay_seconds, "retry_delay_seconds", 1, 604_800);

        fields.check(
            self.status
                .is_none_or(|status| status == BatchStatus::NotStarted),
            "status",
            "enum",
            "a batch is created as not_started; start it with POST /api/v1/batch-call/start/{batch_id}",
        );
        fields.check(
            self.call_flow_id.is_none(),
            "call_flow_id",
            "value_error",
            "must be null: call flows cannot place calls",
        );

        check_variables(&mut fields, &self.variable_names);

        let country = self.default_country.as_deref().map(Country::from_str);
        fields.check(
            !matches!(country, Some(Err(_))),
            "default_country",
            "country",
            "must be the two letters of a country, such as IN or US",
        );

        fields.finish()?;

        let user = self.user_id.unwrap_or(caller.user);
        let agent = require_agent(self.agent_id, self.workflow_id)?;

        // Refuses an owner outside the caller's scope.
        caller.scope_of(user)?;

        Ok(NewBatch {
            user,
            agent,
            caller_phone: self.caller_phone_id,
            batch_name: batch_name.to_owned(),
            description: self.description,
            variable_names: self.variable_names,
            batch_size: self.batch_size,
            max_retries: self.max_retries,
            retry_delay_seconds: self.retry_delay_seconds,
            retry_lost: self.retry_lost,
            auto_resume: self.auto_resume,
            default_country: country.and_then(std::result::Result::ok).map(String::from),
        })
    }
}

/// Requires exactly an agent.
///
/// # Errors
/// Neither or both are given, or a workflow is.
pub fn require_agent(agent: Option<AgentId>, workflow: Option<Uuid>) -> Result<AgentId> {
    match (agent, workflow) {
        (Some(agent), None) => Ok(agent),
        (None, Some(_)) => Err(Error::rejected(
            "workflow_unsupported",
            "workflows cannot place calls; send agent_id",
        )
        .into()),
        _ => Err(Error::rejected(
            "agent_or_workflow",
            "send exactly one of agent_id and workflow_id",
        )
        .into()),
    }
}

/// Checks names of variables: usable as CSV columns and in `{{braces}}`.
pub fn check_variables(fields: &mut FieldErrors, names: &[String]) {
    let path = "variable_names";
    fields.check(
        names.len() <= MAX_VARIABLES,
        path,
        "length",
        format!("a batch has at most {MAX_VARIABLES} variables"),
    );
    let mut seen = HashSet::new();
    for (place, name) in names.iter().enumerate() {
        let path = format!("{path}.{place}");
        check_name(fields, name, &path);
        fields.check(
            seen.insert(name),
            &path,
            "duplicate",
            "is a duplicate; remove one",
        );
    }
}

/// Checks the variables of one call: names as of a batch, values no longer than of a row.
pub fn check_variable_values(
    fields: &mut FieldErrors,
    values: &Map<String, Value>,
    limits: &IngestLimits,
) {
    let path = "variable_values";
    let most = MAX_VARIABLES.min(limits.max_columns);
    fields.check(
        values.len() <= most,
        path,
        "length",
        format!("a call has at most {most} variables"),
    );
    for (name, value) in values.iter().take(most) {
        // An invalid name may have any length and content; the path shows its beginning.
        let shown: String = name
            .chars()
            .filter(|c| *c != '.')
            .take(MAX_VARIABLE_CHARS)
            .collect();
        let path = format!("{path}.{shown}");
        check_name(fields, name, &path);
        check_value(fields, value, &path, limits.max_cell_chars);
    }
}

fn check_value(fields: &mut FieldErrors, value: &Value, path: &str, most: usize) {
    fields.check(
        !value.is_array() && !value.is_object(),
        path,
        "not_flat",
        "is a list or an object; a variable is a text, a number or true/false",
    );
    if let Value::String(text) = value {
        fields.check(
            text.chars().count() <= most,
            path,
            "length",
            format!("must have at most {most} characters"),
        );
        fields.check(
            !text.contains('\0'),
            path,
            "characters",
            "must not have NUL characters",
        );
    }
}

fn check_name(fields: &mut FieldErrors, name: &str, path: &str) {
    fields.check(
        is_identifier(name),
        path,
        "identifier",
        format!(
            "must be 1 to {MAX_VARIABLE_CHARS} letters, digits and underscores, and not begin with a digit"
        ),
    );
    fields.check(
        !RESERVED_NAMES.contains(&name.to_ascii_lowercase().as_str()),
        path,
        "reserved",
        "is a reserved column name; choose another",
    );
}

fn is_identifier(name: &str) -> bool {
    name.len() <= MAX_VARIABLE_CHARS
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}
