-- Everything else an agent is made of. What dialling reads stays in its own column and nowhere
-- else; each of these holds the rest of one configuration, as the API names its fields.

alter table agents
    add column apply_noise_reduction boolean not null default false,
    add column model_config          jsonb not null default '{}',
    add column tts_config            jsonb not null default '{}',
    -- null: not configured.
    add column transcriber_config    jsonb,
    add column vad_config            jsonb,
    add column specific_config       jsonb not null default '{}',
    -- Batches and calls of the past still name it.
    add column deleted_at            timestamptz,
    add constraint deleted_agents_are_inactive check (deleted_at is null or not is_active);

create index agents_by_owner on agents (org_id, user_id, id desc) where deleted_at is null;
create index call_batches_by_agent on call_batches (agent_id) where status in ('scheduled', 'in_progress', 'paused');
