-- Which agent a caller number speaks for, and numbers that are no longer used.

alter table phone_numbers
    -- Batches and calls of the past still name it.
    add column deleted_at timestamptz,
    add constraint deleted_numbers_are_inactive check (deleted_at is null or not is_active);

create index phone_numbers_by_owner on phone_numbers (org_id, user_id, created_at, id) where deleted_at is null;
create index call_batches_by_line on call_batches (caller_phone_id) where status in ('scheduled', 'in_progress', 'paused');

create table phone_mappings (
    id         uuid primary key,
    org_id     uuid not null references organizations (id),
    phone_id   uuid not null constraint phone_is_mapped unique,
    agent_id   uuid not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (org_id, id),
    foreign key (org_id, phone_id) references phone_numbers (org_id, id),
    foreign key (org_id, agent_id) references agents (org_id, id)
);

create index phone_mappings_by_agent on phone_mappings (agent_id);

select wall('phone_mappings');
