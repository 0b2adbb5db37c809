//! Agents with all their configurations: create, find, update, delete.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::config::{
    AgentSetup, ModelConfig, ProfileConfig, SpecificConfig, TranscriberConfig, VadConfig,
};
use super::usage::{AgentOperation, check_unused_unscoped, check_variables_unscoped};
use super::webhooks;
use super::webhooks::StoredWebhook;
use crate::access::Scope;
use crate::outbound::credentials::EndpointCredentials;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{AgentId, OrgId, UserId};
use crate::platform::secret::KeyRing;
use crate::voices::{self, TtsConfig};

/// An agent with all of its configurations.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompleteAgent {
    pub agent: AgentProfile,
    pub configurations: AgentConfigurations,
    /// Always `valid`: invalid configurations are rejected.
    pub validation_status: &'static str,
    #[serde(skip)]
    pub org_id: OrgId,
    /// Credentials of the outgoing webhook; the configuration holds masks.
    #[serde(skip)]
    pub webhook_credentials: EndpointCredentials,
}

/// Identity and flags of an agent.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AgentProfile {
    pub id: AgentId,
    pub name: String,
    pub user_id: UserId,
    pub is_active: bool,
    pub description: Option<String>,
    pub recording_enabled: bool,
    pub first_response_message: String,
    pub apply_noise_reduction: bool,
    pub machine_detection: bool,
    pub hipaa_compliance: bool,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Configurations of an agent.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Configurations)]
pub struct AgentConfigurations {
    pub agent_model_config: ModelConfig,
    pub tts_config: TtsConfig,
    pub transcriber_config: Option<TranscriberConfig>,
    pub vad_config: Option<VadConfig>,
    pub agent_specific_config: SpecificConfig,
}

impl CompleteAgent {
    /// All configurations, as the base of an update.
    #[must_use]
    pub fn setup(&self) -> AgentSetup {
        let Self {
            agent,
            configurations,
            ..
        } = self.clone();
        AgentSetup {
            agent: ProfileConfig {
                name: agent.name,
                description: agent.description,
                is_active: agent.is_active,
                recording_enabled: agent.recording_enabled,
                first_response_message: agent.first_response_message,
                apply_noise_reduction: agent.apply_noise_reduction,
                machine_detection: agent.machine_detection,
                hipaa_compliance: agent.hipaa_compliance,
            },
            agent_model_config: configurations.agent_model_config,
            tts_config: configurations.tts_config,
            transcriber_config: configurations.transcriber_config,
            vad_config: configurations.vad_config,
            agent_specific_config: configurations.agent_specific_config,
        }
    }

    /// Stored webhook that the configuration's masks stand for.
    #[must_use]
    pub fn stored_webhook(&self) -> Option<StoredWebhook> {
        Some(StoredWebhook {
            url: self.setup().outgoing_webhook()?.url.clone(),
            credentials: self.webhook_credentials.clone(),
        })
    }
}

/// Creates an agent for a user in the caller's scope. Masks stand for the stored credentials of
/// the agent that is copied.
///
/// # Errors
/// [`Error::NotFound`] for a user out of scope, [`Error::Invalid`] for an unknown voice or a mask
/// without a stored value.
pub async fn create(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    owner: UserId,
    setup: &AgentSetup,
    copied: Option<&StoredWebhook>,
) -> Result<CompleteAgent> {
    voices::check(db, scope, &setup.tts_config).await?;

    let id = AgentId::new();
    let org = sqlx::query_scalar!(
        r#"insert into agents (id, org_id, user_id, name)
           select $1, org_id, id, $3
           from users
           where id = $2
             and removed_at is null
             and ($4::uuid is null or org_id = $4)
             and ($5::uuid is null or id = $5)
           returning org_id as "org_id: OrgId""#,
        id as AgentId,
        owner as UserId,
        setup.agent.name,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("User"))?;

    let sealed = webhooks::seal_credentials(keys, (org, id), setup.outgoing_webhook(), copied)?;
    write_settings(db, scope, id, setup, sealed).await?;
    find(db, keys, scope, id).await
}

/// Finds an agent in the caller's scope.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: AgentId,
) -> Result<CompleteAgent> {
    let row = sqlx::query_as!(
        AgentRow,
        r#"select org_id as "org_id: OrgId", user_id as "user_id: UserId", name, description, is_active,
                  recording_enabled, first_response_message, apply_noise_reduction, machine_detection,
                  hipaa_compliance, system_prompt, language, voice, session_timeout_secs, model_config,
                  tts_config, transcriber_config, vad_config, specific_config, webhook_credentials, created_at,
                  updated_at
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
    .ok_or(Error::NotFound("Agent"))?;
    row.into_complete_agent(keys, id)
}

/// Locks an agent in the caller's scope and reads it.
///
/// # Errors
/// [`Error::NotFound`] for an agent out of scope, which is not locked.
pub async fn lock(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: AgentId,
) -> Result<CompleteAgent> {
    super::lock(db, scope, id).await?;
    // Read with a snapshot taken after the lock.
    find(db, keys, scope, id).await
}

/// Updates a locked agent. Masks stand for its stored credentials.
///
/// # Errors
/// [`Error::Rejected`] when it is active, unless `force`; [`Error::Conflict`] when a running batch
/// or a call in progress does not allow the change; [`Error::Invalid`] for an unknown voice, and
/// for a mask without a stored value or whose webhook moves to another server.
pub async fn update(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    before: &CompleteAgent,
    setup: &AgentSetup,
    force: bool,
) -> Result<CompleteAgent> {
    let id = before.agent.id;

    if before.agent.is_active && !force {
        return Err(Error::rejected(
            "agent_active",
            "the agent is active: send force_update=true in the query to change it all the same",
        ));
    }

    if !setup.agent.is_active {
        let intent = match before.agent.is_active {
            true => AgentOperation::Deactivate,
            false => AgentOperation::ChangeInactive,
        };
        check_unused_unscoped(db, before, intent).await?;
    } else if !force {
        check_unused_unscoped(db, before, AgentOperation::Change).await?;
    }

    check_variables_unscoped(db, id, setup).await?;
    if setup.tts_config != before.configurations.tts_config {
        voices::check(db, scope, &setup.tts_config).await?;
    }

    let (row, stored) = ((before.org_id, id), before.stored_webhook());
    let sealed = webhooks::seal_credentials(keys, row, setup.outgoing_webhook(), stored.as_ref())?;
    write_settings(db, scope, id, setup, sealed).await?;
    find(db, keys, scope, id).await
}

/// Deletes an agent and detaches its numbers, tools and rules. Earlier batches and calls keep
/// their reference to it.
///
/// # Errors
/// As [`change`].
pub async fn delete(
    db: &mut PgConnection,
    keys: &KeyRing,
    scope: &Scope,
    id: AgentId,
    force: bool,
) -> Result<CompleteAgent> {
    let agent = lock(db, keys, scope, id).await?;
    check_unused_unscoped(db, &agent, AgentOperation::Delete).await?;

    if agent.agent.is_active && !force {
        return Err(Error::rejected(
            "agent_active",
            "the agent is active: send force_delete=true in the query to delete it all the same",
        ));
    }

    sqlx::query!(
        "with lines as (delete from phone_mappings where agent_id = $1),
              tools as (delete from agent_tools where agent_id = $1)
         delete from agent_analysis_rules where agent_id = $1",
        id as AgentId
    )
    .execute(&mut *db)
    .await?;

    sqlx::query!(
        "update agents set is_active = false, deleted_at = now(), updated_at = now() where id = $1",
        id as AgentId,
    )
    .execute(db)
    .await?;

    Ok(agent)
}

/// Writes all settings of an agent.
async fn write_settings(
    db: &mut PgConnection,
    scope: &Scope,
    id: AgentId,
    setup: &AgentSetup,
    webhook_credentials: Option<Vec<u8>>,
) -> Result<()> {
    // The voice column holds carriers' voices only.
    let voice = &setup.tts_config;
    let (spoken, columns): (_, &[&str]) = match voices::is_carrier_voice(db, scope, voice).await? {
        true => (voice.voice_name.as_deref(), &["language", "voice_name"]),
        false => (None, &["language"]),
    };

    let ProfileConfig {
        name,
        description,
        is_active,
        recording_enabled,
        first_response_message,
        apply_noise_reduction,
        machine_detection,
        hipaa_compliance,
    } = &setup.agent;

    sqlx::query!(
        "update agents
         set name = $2, description = $3, is_active = $4, recording_enabled = $5, first_response_message = $6,
             apply_noise_reduction = $7, machine_detection = $8, system_prompt = $9, language = $10, voice = $11,
             session_timeout_secs = $12, model_config = $13, tts_config = $14, transcriber_config = $15,
             vad_config = $16, specific_config = $17, hipaa_compliance = $18, webhook_credentials = $19,
             updated_at = now()
         where id = $1",
        id as AgentId,
        name,
        description.as_deref(),
        is_active,
        recording_enabled,
        first_response_message,
        apply_noise_reduction,
        machine_detection,
        setup.agent_model_config.system_prompt,
        voice.language,
        spoken,
        setup.agent_specific_config.session_timeout,
        without_columns(&setup.agent_model_config, &["system_prompt"])?,
        without_columns(voice, columns)?,
        setup.transcriber_config.as_ref().map(serde_json::to_value).transpose()?,
        setup.vad_config.as_ref().map(serde_json::to_value).transpose()?,
        without_credentials(without_columns(&setup.agent_specific_config, &["session_timeout"])?),
        hipaa_compliance,
        webhook_credentials,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Returns a configuration as JSON, without the fields that are columns.
fn without_columns(config: &impl Serialize, columns: &[&str]) -> Result<Value> {
    let mut fields: Map<String, Value> = from_json(serde_json::to_value(config)?)?;
    fields.retain(|name, _| !columns.contains(&name.as_str()));
    Ok(Value::Object(fields))
}

/// Removes the sealed fields of the outgoing webhook.
fn without_credentials(mut specific: Value) -> Value {
    let outgoing = specific.pointer_mut("/webhooks/outgoing");
    if let Some(outgoing) = outgoing.and_then(Value::as_object_mut) {
        outgoing.retain(|name, _| name != "headers" && name != "auth");
    }
    specific
}

fn from_json<T: DeserializeOwned>(stored: Value) -> Result<T> {
    Ok(serde_json::from_value(stored)?)
}

/// A row of `agents`.
struct AgentRow {
    org_id: OrgId,
    user_id: UserId,
    name: String,
    description: Option<String>,
    is_active: bool,
    recording_enabled: bool,
    first_response_message: String,
    apply_noise_reduction: bool,
    machine_detection: bool,
    hipaa_compliance: bool,
    system_prompt: String,
    language: String,
    voice: Option<String>,
    session_timeout_secs: i32,
    model_config: Value,
    tts_config: Value,
    transcriber_config: Option<Value>,
    vad_config: Option<Value>,
    specific_config: Value,
    webhook_credentials: Option<Vec<u8>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl AgentRow {
    fn into_complete_agent(self, keys: &KeyRing, id: AgentId) -> Result<CompleteAgent> {
        let tts: TtsConfig = from_json(self.tts_config)?;
        let mut specific = SpecificConfig {
            session_timeout: self.session_timeout_secs,
            ..from_json(self.specific_config)?
        };

        let sealed = self.webhook_credentials.as_deref();
        let webhook_credentials = webhooks::open_credentials(keys, (self.org_id, id), sealed)?;
        let webhook = specific.webhooks.as_mut();
        if let Some(outgoing) = webhook.and_then(|webhooks| webhooks.outgoing.as_mut()) {
            outgoing.set_masked(&webhook_credentials);
        }

        Ok(CompleteAgent {
            agent: AgentProfile {
                id,
                name: self.name,
                user_id: self.user_id,
                is_active: self.is_active,
                description: self.description,
                recording_enabled: self.recording_enabled,
                first_response_message: self.first_response_message,
                apply_noise_reduction: self.apply_noise_reduction,
                machine_detection: self.machine_detection,
                hipaa_compliance: self.hipaa_compliance,
                created_at: self.created_at,
                updated_at: self.updated_at,
            },
            configurations: AgentConfigurations {
                agent_model_config: ModelConfig {
                    system_prompt: self.system_prompt,
                    ..from_json(self.model_config)?
                },
                tts_config: TtsConfig {
                    language: self.language,
                    voice_name: self.voice.or(tts.voice_name),
                    ..tts
                },
                transcriber_config: self.transcriber_config.map(from_json).transpose()?,
                vad_config: self.vad_config.map(from_json).transpose()?,
                agent_specific_config: specific,
            },
            validation_status: "valid",
            org_id: self.org_id,
            webhook_credentials,
        })
    }
}
