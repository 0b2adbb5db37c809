-- Caller numbers, and the agent that each speaks for.

create table phone_numbers (
    id            uuid primary key,
    org_id        uuid not null references organizations (id),
    user_id       uuid not null,
    trunk_id      uuid not null references trunks (id),
    phone_number  text not null check (phone_number ~ '^\+[1-9][0-9]{6,14}$'),
    friendly_name text,
    country_code  text,
    region        text,
    is_active     boolean not null default true,
    created_at    timestamptz not null default now(),
    -- Deletion keeps the row, because past batches and calls name it.
    deleted_at    timestamptz,
    unique (org_id, id),
    constraint phone_number_is_taken
        unique (trunk_id, phone_number),
    foreign key (org_id, user_id) references users (org_id, id),
    constraint deleted_numbers_are_inactive
        check (deleted_at is null or not is_active)
);

create index phone_numbers_by_owner
    on phone_numbers (org_id, user_id, created_at, id)
    where deleted_at is null;

select wall('phone_numbers');

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

create index phone_mappings_by_agent
    on phone_mappings (agent_id);

select wall('phone_mappings');
