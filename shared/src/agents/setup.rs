//! Agents as their owners see them: set up, listed, changed, deleted.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::config::{
    ModelConfig, Profile, Setup, SpecificConfig, TranscriberConfig, TtsConfig, VadConfig,
};
use super::usage::{check_unused_unscoped, check_variables_unscoped};
use crate::access::{Role, Scope};
use crate::error::{Error, Result};
use crate::ids::{AgentId, OrgId, UserId};
use crate::page::{Owners, Page};
use crate::voices;

/// An agent with all of its configurations.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompleteAgent {
    pub agent: AgentProfile,
    pub configurations: Configurations,
    /// `valid`: what is not is refused.
    pub validation_status: &'static str,
    #[serde(skip)]
    pub org_id: OrgId,
}

/// Who an agent is.
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
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// What an agent is made of.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Configurations {
    pub agent_model_config: ModelConfig,
    pub tts_config: TtsConfig,
    pub transcriber_config: Option<TranscriberConfig>,
    pub vad_config: Option<VadConfig>,
    pub agent_specific_config: SpecificConfig,
}

/// An agent in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "0198c0de-0000-7000-8000-00000000000a", "name": "Ada", "user_id": "0198c0de-0000-7000-8000-000000000002",
    "is_active": true, "description": null, "language": "en-US", "voice_name": "Polly.Joanna",
    "created_at": "2026-06-01T08:00:00Z", "updated_at": "2026-06-09T08:00:00Z"
}))]
pub struct AgentSummary {
    pub id: AgentId,
    pub name: String,
    pub user_id: UserId,
    pub is_active: bool,
    pub description: Option<String>,
    pub language: String,
    pub voice_name: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// How many agents the caller sees, and what they are doing.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({"total": 3, "active": 2, "inactive": 1, "in_batches": 1, "calls_under_way": 12}))]
pub struct AgentStats {
    pub total: i64,
    pub active: i64,
    pub inactive: i64,
    /// Agents with a batch that is scheduled, in progress or paused.
    pub in_batches: i64,
    /// Calls of these agents that are under way or wait for their slot.
    pub calls_under_way: i64,
}

impl CompleteAgent {
    /// What it is made of, to be changed.
    #[must_use]
    pub fn setup(&self) -> Setup {
        let Self {
            agent,
            configurations,
            ..
        } = self.clone();
        Setup {
            agent: Profile {
                name: agent.name,
                description: agent.description,
                is_active: agent.is_active,
                recording_enabled: agent.recording_enabled,
                first_response_message: agent.first_response_message,
                apply_noise_reduction: agent.apply_noise_reduction,
                machine_detection: agent.machine_detection,
            },
            agent_model_config: configurations.agent_model_config,
            tts_config: configurations.tts_config,
            transcriber_config: configurations.transcriber_config,
            vad_config: configurations.vad_config,
            agent_specific_config: configurations.agent_specific_config,
        }
    }
}

/// Sets up an agent for a user in the caller's sight.
///
/// # Errors
/// [`Error::NotFound`] for a user out of sight, [`Error::Invalid`] for a voice that there is not.
pub async fn create(
    db: &mut PgConnection,
    scope: &Scope,
    owner: UserId,
    setup: &Setup,
) -> Result<CompleteAgent> {
    voices::check(db, scope, &setup.tts_config).await?;
    let id = AgentId::new();
    let inserted = sqlx::query!(
        "insert into agents (id, org_id, user_id, name)
         select $1, org_id, id, $3
         from users
         where id = $2
           and removed_at is null
           and ($4::uuid is null or org_id = $4)
           and ($5::uuid is null or id = $5)",
        id as AgentId,
        owner as UserId,
        setup.agent.name,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .execute(&mut *db)
    .await?;
    if inserted.rows_affected() == 0 {
        return Err(Error::NotFound("User"));
    }
    write(db, scope, id, setup).await?;
    find(db, scope, id).await
}

/// An agent in the caller's sight.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(db: &mut PgConnection, scope: &Scope, id: AgentId) -> Result<CompleteAgent> {
    let row = sqlx::query_as!(
        Row,
        r#"select org_id as "org_id: OrgId", user_id as "user_id: UserId", name, description, is_active,
                  recording_enabled, first_response_message, apply_noise_reduction, machine_detection,
                  system_prompt, language, voice, session_timeout_secs, model_config, tts_config,
                  transcriber_config, vad_config, specific_config, created_at, updated_at
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
    row.complete(id)
}

/// The newest agents in the caller's sight whose names contain `q`, and how many there are on
/// all pages, unless this one lies behind the last.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    owners: &Owners,
    q: Option<&str>,
    page: Page,
) -> Result<(Vec<AgentSummary>, Option<i64>)> {
    let rows = sqlx::query!(
        r#"select id as "id: AgentId", name, user_id as "user_id: UserId", is_active, description, language,
                  coalesce(voice, tts_config ->> 'voice_name') as voice, created_at, updated_at, count(*) over () as "total!"
           from agents
           where deleted_at is null
             and ($1::uuid is null or org_id = $1)
             and ($2::uuid is null or user_id = $2)
             and ($3::uuid[] is null or org_id = any($3))
             and ($4::uuid[] is null or user_id = any($4))
             and ($5::text[] is null
                  or exists (select from users u where u.id = agents.user_id and u.role = any($5)))
             and ($6::text is null or position(lower($6) in lower(name)) > 0)
           order by id desc
           limit $7
           offset $8"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
        owners.orgs.as_deref() as Option<&[OrgId]>,
        owners.users.as_deref() as Option<&[UserId]>,
        owners.roles.as_deref() as Option<&[Role]>,
        q,
        page.size,
        page.offset(),
    )
    .fetch_all(db)
    .await?;
    let none = (page.number == 1).then_some(0);
    let total = rows.first().map(|row| row.total).or(none);
    let agents = rows.into_iter().map(|row| AgentSummary {
        id: row.id,
        name: row.name,
        user_id: row.user_id,
        is_active: row.is_active,
        description: row.description,
        language: row.language,
        voice_name: row.voice,
        created_at: row.created_at,
        updated_at: row.updated_at,
    });
    Ok((agents.collect(), total))
}

/// How many agents are in the caller's sight, and what they are doing.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn stats(db: &mut PgConnection, scope: &Scope) -> Result<AgentStats> {
    let stats = sqlx::query_as!(
        AgentStats,
        r#"with seen as (
               select id, is_active
               from agents
               where deleted_at is null
                 and ($1::uuid is null or org_id = $1)
                 and ($2::uuid is null or user_id = $2)
           )
           select count(*) as "total!", count(*) filter (where is_active) as "active!",
                  count(*) filter (where not is_active) as "inactive!",
                  (select count(distinct b.agent_id)
                   from call_batches b
                   where b.status in ('scheduled', 'in_progress', 'paused')
                     and b.agent_id in (select id from seen)) as "in_batches!",
                  (select count(*) from calls c where c.live and c.agent_id in (select id from seen))
                  + (select count(*) from calls c where c.queued and c.agent_id in (select id from seen))
                      as "calls_under_way!"
           from seen"#,
        scope.org() as Option<OrgId>,
        scope.user() as Option<UserId>,
    )
    .fetch_one(db)
    .await?;
    Ok(stats)
}

/// Locks an agent in the caller's sight and reads it.
///
/// # Errors
/// [`Error::NotFound`] for an agent out of sight, which is not locked.
pub async fn lock(db: &mut PgConnection, scope: &Scope, id: AgentId) -> Result<CompleteAgent> {
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
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("Agent"))?;
    // Read with a snapshot taken behind the lock.
    find(db, scope, id).await
}

/// Changes an agent that was locked.
///
/// # Errors
/// [`Error::Rejected`] when it is active and nobody insists, [`Error::Conflict`] when a running
/// batch or a call under way does not allow the change, [`Error::Invalid`] for a voice that
/// there is not.
pub async fn change(
    db: &mut PgConnection,
    scope: &Scope,
    before: &CompleteAgent,
    setup: &Setup,
    force: bool,
) -> Result<CompleteAgent> {
    let id = before.agent.id;
    if before.agent.is_active && !force {
        return Err(Error::rejected(
            "agent_active",
            "the agent is active: deactivate it, or send force_update=true",
        ));
    }
    if !setup.agent.is_active || !force {
        check_unused_unscoped(db, before, "changed").await?;
    }
    check_variables_unscoped(db, id, setup).await?;
    if setup.tts_config != before.configurations.tts_config {
        voices::check(db, scope, &setup.tts_config).await?;
    }
    write(db, scope, id, setup).await?;
    find(db, scope, id).await
}

/// Deletes an agent; its numbers, tools and rules are free again. Batches and calls of the past
/// keep naming it.
///
/// # Errors
/// As [`change`].
pub async fn delete(
    db: &mut PgConnection,
    scope: &Scope,
    id: AgentId,
    force: bool,
) -> Result<CompleteAgent> {
    let agent = lock(db, scope, id).await?;
    check_unused_unscoped(db, &agent, "deleted").await?;
    if agent.agent.is_active && !force {
        return Err(Error::rejected(
            "agent_active",
            "the agent is active: deactivate it, or send force_delete=true",
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

/// Writes all settings of an agent, each to its place.
async fn write(db: &mut PgConnection, scope: &Scope, id: AgentId, setup: &Setup) -> Result<()> {
    // The column holds what carriers are told to speak with, and nobody else's voice.
    let voice = &setup.tts_config;
    let (spoken, columns): (_, &[&str]) = match voices::is_carriers(db, scope, voice).await? {
        true => (voice.voice_name.as_deref(), &["language", "voice_name"]),
        false => (None, &["language"]),
    };
    let Profile {
        name,
        description,
        is_active,
        recording_enabled,
        first_response_message,
        apply_noise_reduction,
        machine_detection,
    } = &setup.agent;
    sqlx::query!(
        "update agents
         set name = $2, description = $3, is_active = $4, recording_enabled = $5, first_response_message = $6,
             apply_noise_reduction = $7, machine_detection = $8, system_prompt = $9, language = $10, voice = $11,
             session_timeout_secs = $12, model_config = $13, tts_config = $14, transcriber_config = $15,
             vad_config = $16, specific_config = $17, updated_at = now()
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
        rest(&setup.agent_model_config, &["system_prompt"])?,
        rest(voice, columns)?,
        setup.transcriber_config.as_ref().map(serde_json::to_value).transpose()?,
        setup.vad_config.as_ref().map(serde_json::to_value).transpose()?,
        rest(&setup.agent_specific_config, &["session_timeout"])?,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// A configuration without the fields that are columns.
fn rest(config: &impl Serialize, columns: &[&str]) -> Result<Value> {
    let mut fields: Map<String, Value> = typed(serde_json::to_value(config)?)?;
    fields.retain(|name, _| !columns.contains(&name.as_str()));
    Ok(Value::Object(fields))
}

fn typed<T: DeserializeOwned>(stored: Value) -> Result<T> {
    Ok(serde_json::from_value(stored)?)
}

/// A row of `agents`.
struct Row {
    org_id: OrgId,
    user_id: UserId,
    name: String,
    description: Option<String>,
    is_active: bool,
    recording_enabled: bool,
    first_response_message: String,
    apply_noise_reduction: bool,
    machine_detection: bool,
    system_prompt: String,
    language: String,
    voice: Option<String>,
    session_timeout_secs: i32,
    model_config: Value,
    tts_config: Value,
    transcriber_config: Option<Value>,
    vad_config: Option<Value>,
    specific_config: Value,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl Row {
    fn complete(self, id: AgentId) -> Result<CompleteAgent> {
        let tts: TtsConfig = typed(self.tts_config)?;
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
                created_at: self.created_at,
                updated_at: self.updated_at,
            },
            configurations: Configurations {
                agent_model_config: ModelConfig {
                    system_prompt: self.system_prompt,
                    ..typed(self.model_config)?
                },
                tts_config: TtsConfig {
                    language: self.language,
                    voice_name: self.voice.or(tts.voice_name),
                    ..tts
                },
                transcriber_config: self.transcriber_config.map(typed).transpose()?,
                vad_config: self.vad_config.map(typed).transpose()?,
                agent_specific_config: SpecificConfig {
                    session_timeout: self.session_timeout_secs,
                    ..typed(self.specific_config)?
                },
            },
            validation_status: "valid",
            org_id: self.org_id,
        })
    }
}
