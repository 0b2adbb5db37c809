-- What a call is made with: carrier accounts, their pace, caller numbers, agents.

create table trunks (
    id                uuid primary key,
    -- null: the platform's own account, open to every organisation with a number on it.
    org_id            uuid references organizations (id),
    name              text not null check (length(name) between 1 and 200),
    kind              text not null check (kind in ('twilio')),
    status            text not null default 'active' check (status in ('active', 'paused')),
    status_reason     text,
    account_id        text not null,
    -- Sealed JSON: the secret that places calls and every secret that may sign callbacks.
    credentials       bytea not null,
    -- null: the carrier's public address.
    api_base_url      text,
    cps               numeric(8, 3) not null check (cps > 0 and cps <= 10000),
    max_concurrent    integer not null check (max_concurrent between 1 and 100000),
    ring_timeout_secs integer not null default 30 check (ring_timeout_secs between 15 and 600),
    created_at        timestamptz not null default now(),
    updated_at        timestamptz not null default now()
);

-- The send-slot clock of a trunk. Created with the trunk; a missing row stops dialling.
create table pacers (
    trunk_id   uuid primary key references trunks (id) on delete cascade,
    -- The next free send slot (GCRA's theoretical arrival time).
    next_slot  timestamptz not null,
    -- Multiplies the slot interval after the carrier pushed back; 1 is full speed.
    slowdown   double precision not null default 1 check (slowdown >= 1),
    slowed_at  timestamptz,
    -- Virtual time of the fair share over organisations.
    turn       bigint not null default 0
) with (fillfactor = 50);

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
    unique (org_id, id),
    constraint phone_number_is_taken unique (trunk_id, phone_number),
    foreign key (org_id, user_id) references users (org_id, id)
);

create table agents (
    id                     uuid primary key,
    org_id                 uuid not null references organizations (id),
    user_id                uuid not null,
    name                   text not null check (length(name) between 1 and 200),
    description            text,
    is_active              boolean not null default true,
    recording_enabled      boolean not null default false,
    -- Both may hold {{variables}}.
    first_response_message text not null default '',
    system_prompt          text not null default '',
    language               text not null default 'en-US',
    voice                  text,
    session_timeout_secs   integer not null default 180 check (session_timeout_secs between 1 and 86400),
    machine_detection      boolean not null default false,
    created_at             timestamptz not null default now(),
    updated_at             timestamptz not null default now(),
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id)
);
