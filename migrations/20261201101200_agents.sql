-- Agents, which speak in calls.

create table agents (
    id                     uuid primary key,
    org_id                 uuid not null references organizations (id),
    user_id                uuid not null,
    name                   text not null check (length(name) between 1 and 200),
    description            text,
    is_active              boolean not null default true,
    recording_enabled      boolean not null default false,
    -- Texts that may hold {{variables}}.
    first_response_message text not null default '',
    system_prompt          text not null default '',
    language               text not null default 'en-US',
    voice                  text,
    session_timeout_secs   integer not null default 180 check (session_timeout_secs between 1 and 86400),
    machine_detection      boolean not null default false,
    created_at             timestamptz not null default now(),
    updated_at             timestamptz not null default now(),
    apply_noise_reduction  boolean not null default false,
    -- Configurations as the API names their fields, less the fields that dialling reads: those
    -- stand in the columns above and nowhere else.
    model_config           jsonb not null default '{}',
    tts_config             jsonb not null default '{}',
    -- Null while not configured.
    transcriber_config     jsonb,
    vad_config             jsonb,
    specific_config        jsonb not null default '{}',
    -- Deletion keeps the row, because past batches and calls name it.
    deleted_at             timestamptz,
    -- Applies besides the flag of the organisation.
    hipaa_compliance       boolean not null default false,
    -- Headers and authentication of outgoing webhooks, sealed as those of tools are; null for none.
    webhook_credentials    bytea,
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id),
    constraint deleted_agents_are_inactive
        check (deleted_at is null or not is_active)
);

create index agents_by_owner
    on agents (org_id, user_id, id desc)
    where deleted_at is null;

select wall('agents');
