-- Trunks: carrier accounts, the pace of each, and the share of each organisation in it.

create table trunks (
    id                uuid primary key,
    -- Null for the platform's own account, open to every organisation with a number on it.
    org_id            uuid references organizations (id),
    name              text not null check (length(name) between 1 and 200),
    kind              text not null check (kind in ('twilio')),
    status            text not null default 'active' check (status in ('active', 'paused')),
    status_reason     text,
    account_id        text not null,
    -- Sealed JSON: the secret that places calls and every secret that may sign callbacks.
    credentials       bytea not null,
    -- Null for the carrier's public address.
    api_base_url      text,
    cps               numeric(8, 3) not null check (cps > 0 and cps <= 10000),
    max_concurrent    integer not null check (max_concurrent between 1 and 100000),
    ring_timeout_secs integer not null default 30 check (ring_timeout_secs between 15 and 600),
    created_at        timestamptz not null default now(),
    updated_at        timestamptz not null default now(),
    -- Deletion takes the secrets away; the row stays, because past calls name it.
    deleted_at        timestamptz,
    constraint deleted_trunks_are_paused
        check (deleted_at is null or status = 'paused')
);

create index trunks_by_org
    on trunks (org_id)
    where deleted_at is null;

alter table trunks enable row level security;
alter table trunks force row level security;
-- Trunks of the platform serve all tenants, and only the platform changes them.
create policy tenant_sees
    on trunks
    for select
    to peal_tenant
    using (org_id is null or org_id = (select tenant()));
create policy tenant_writes
    on trunks
    to peal_tenant
    using (org_id = (select tenant()))
    with check (org_id = (select tenant()));
create policy system
    on trunks
    to peal_system
    using (true)
    with check (true);

-- The send-slot clock of a trunk. Created with the trunk; a missing row stops dialling.
create table pacers (
    trunk_id  uuid primary key references trunks (id) on delete cascade,
    -- The next free send slot (GCRA's theoretical arrival time).
    next_slot timestamptz not null,
    -- Multiplies the slot interval after the carrier pushed back; 1 is full speed.
    slowdown  double precision not null default 1 check (slowdown >= 1),
    slowed_at timestamptz,
    -- Virtual time of the fair share over organisations.
    turn      bigint not null default 0
) with (fillfactor = 50);

select wall('pacers', 'exists (select from trunks t where t.id = trunk_id)');

-- Fair share over the organisations of a trunk: the number of turns that each has had.
create table dial_shares (
    trunk_id    uuid not null references trunks (id) on delete cascade,
    org_id      uuid not null references organizations (id) on delete cascade,
    turn        bigint not null default 0,
    -- Turns of the organisation's direct calls, which share with its batches as if they were one.
    direct_turn bigint not null default 0,
    primary key (trunk_id, org_id)
) with (fillfactor = 50);

select wall('dial_shares');
