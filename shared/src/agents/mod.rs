//! Voice agents: the conversation settings of calls.
//!
//! Every call reads its agent. Each setting is stored once: those that dialling and answering
//! read are columns of `agents` (the texts, the language, the voice, recording, machine
//! detection, the longest call), all others are fields of one JSON column per configuration.
//! [`crud`] converts between both and the contract's nested configurations. The voice column
//! holds carriers' voices only, because answer documents are written from it. The outgoing
//! webhook's credentials are sealed in a column of their own ([`webhooks`]).
//!
//! A batch or a call in progress reads its agent at every step. So an agent in use cannot be
//! deleted or deactivated, and its texts change only by force and only to variables that the
//! batch has. The agent's tools and rules, and their definitions, also change during a running
//! batch or a call only by force. A deleted agent keeps its row, because earlier batches and
//! calls reference it.

pub mod config;
pub mod crud;
pub mod list;
pub mod usage;
pub mod webhooks;

use serde::Serialize;
use sqlx::PgConnection;

use crate::access::Scope;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{AgentId, OrgId, UserId};

/// The settings of an agent that dialling needs.
#[derive(Clone, Debug, Serialize)]
pub struct Agent {
    pub id: AgentId,
    pub org_id: OrgId,
    pub user_id: UserId,
    pub name: String,
    pub is_active: bool,
    pub first_response_message: String,
    pub system_prompt: String,
    pub language: String,
    pub voice: Option<String>,
    pub recording_enabled: bool,
    pub machine_detection: bool,
    pub session_timeout_secs: i32,
}

/// Settings of an agent to be created.
#[derive(Clone, Debug)]
pub struct NewAgent {
    pub org: OrgId,
    pub user: UserId,
    pub name: String,
    pub first_response_message: String,
    pub recording_enabled: bool,
    pub machine_detection: bool,
}

impl Agent {
    /// Variables of the agent's texts: every `{{name}}`, once each, in order.
    #[must_use]
    pub fn variables(&self) -> Vec<String> {
        variables([&self.first_response_message, &self.system_prompt])
    }
}

fn variables(texts: [&str; 2]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in texts.into_iter().flat_map(placeholders) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Creates an agent.
pub async fn create_unscoped(db: &mut PgConnection, agent: &NewAgent) -> Result<AgentId> {
    let id = AgentId::new();
    sqlx::query!(
        "insert into agents (id, org_id, user_id, name, first_response_message, recording_enabled, machine_detection)
         values ($1, $2, $3, $4, $5, $6, $7)",
        id as AgentId,
        agent.org as OrgId,
        agent.user as UserId,
        agent.name,
        agent.first_response_message,
        agent.recording_enabled,
        agent.machine_detection,
    )
    .execute(db)
    .await?;
    Ok(id)
}

/// Creates an agent, or updates the organisation's agent of that name.
pub async fn ensure_unscoped(db: &mut PgConnection, agent: &NewAgent) -> Result<AgentId> {
    let updated = sqlx::query_scalar!(
        r#"update agents
           set first_response_message = $3, recording_enabled = $4, machine_detection = $5, is_active = true,
               updated_at = now()
           where id = (select id from agents where org_id = $1 and name = $2 and deleted_at is null order by created_at limit 1)
           returning id as "id: AgentId""#,
        agent.org as OrgId,
        agent.name,
        agent.first_response_message,
        agent.recording_enabled,
        agent.machine_detection,
    )
    .fetch_optional(&mut *db)
    .await?;

    match updated {
        Some(id) => Ok(id),
        None => create_unscoped(db, agent).await,
    }
}

/// Finds an agent in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: AgentId) -> Result<Agent> {
    sqlx::query_as!(
        Agent,
        r#"select id as "id: AgentId", org_id as "org_id: OrgId", user_id as "user_id: UserId", name, is_active,
                  first_response_message, system_prompt, language, voice, recording_enabled, machine_detection,
                  session_timeout_secs
           from agents
           where id = $1
             and deleted_at is null
             and ($2::uuid is null or org_id = $2)
             and ($3::uuid is null or user_id = $3)"#,
        id as AgentId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Agent"))
}

/// Locks an agent in the caller's scope and reads it, so that one request at a time changes its
/// tools and rules.
///
/// # Errors
/// [`Error::NotFound`] for an agent out of scope, which is not locked.
pub async fn find_locked(db: &mut PgConnection, scope: &Scope, id: AgentId) -> Result<Agent> {
    lock(db, scope, id).await?;
    // Read with a snapshot taken after the lock.
    find(db, scope, id).await
}

async fn lock(db: &mut PgConnection, scope: &Scope, id: AgentId) -> Result<()> {
    sqlx::query!(
        "select
         from agents
         where id = $1
           and ($2::uuid is null or org_id = $2)
           and ($3::uuid is null or user_id = $3)
         for no key update",
        id as AgentId,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Agent"))?;
    Ok(())
}

/// The names between `{{` and `}}`, trimmed.
pub fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split("{{")
        .skip(1)
        .filter_map(|rest| rest.split_once("}}"))
        .map(|(name, _)| name.trim())
        .filter(|name| !name.is_empty())
}

/// Replaces each `{{name}}` with its value. A name without a value becomes an empty string: the
/// text is spoken, and braces must not be read aloud.
#[must_use]
pub fn fill_placeholders(text: &str, values: &serde_json::Value) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((name, remainder)) = after.split_once("}}") else {
            break;
        };

        filled.push_str(before);
        match values.get(name.trim()) {
            Some(serde_json::Value::String(value)) => filled.push_str(value),
            Some(serde_json::Value::Null) | None => {}
            Some(value) => filled.push_str(&value.to_string()),
        }
        rest = remainder;
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn placeholders_are_found_and_filled() {
        let text = "Hi {{ name }}, you owe {{amount}} {{missing}}. {{ not closed";
        assert_eq!(
            placeholders(text).collect::<Vec<_>>(),
            ["name", "amount", "missing"]
        );
        assert_eq!(
            fill_placeholders(text, &json!({"name": "Ada", "amount": 12})),
            "Hi Ada, you owe 12 . {{ not closed"
        );
    }
}
