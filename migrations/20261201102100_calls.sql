-- Calls, the carriers' reports of them, and the words spoken.

-- Calls: one row is one dial, with at most one request to the carrier.
create table calls (
    id               uuid primary key,
    org_id           uuid not null references organizations (id),
    user_id          uuid not null,
    agent_id         uuid not null,
    phone_id         uuid not null,
    trunk_id         uuid not null references trunks (id),
    batch_id         uuid,
    row_id           uuid,
    attempt_no       integer not null default 1 check (attempt_no > 0),
    from_number      text not null,
    to_number        text not null check (to_number ~ '^\+[1-9][0-9]{6,14}$'),
    variable_values  jsonb not null default '{}',
    status           text not null check (status in (
                         'queued', 'submitting', 'deferred', 'unknown', 'accepted',
                         'dialing', 'ringing', 'in_progress', 'canceling', 'final')),
    -- Occupies the person's phone, a concurrency slot and money. Indexes look at this and the next
    -- two, never at the status itself, so most changes of the status touch no index.
    live             boolean not null generated always as (status not in ('queued', 'final')) stored,
    queued           boolean not null generated always as (status = 'queued') stored,
    deferred         boolean not null generated always as (status = 'deferred') stored,
    outcome          text check (outcome in (
                         'completed', 'machine', 'busy', 'no_answer', 'rejected',
                         'failed', 'canceled', 'expired', 'lost')),
    reason           text,
    error_message    text,
    carrier_call_id  text,
    carrier_status   text,
    carrier_code     text,
    sip_code         integer,
    answered_by      text check (answered_by in ('human', 'machine', 'fax', 'unknown')),
    -- The worker that claimed the call: it alone may send the request, for this submission only.
    worker           text,
    submit_count     integer not null default 0 check (submit_count >= 0),
    -- Number of carrier events that contradicted the final state.
    conflicts        integer not null default 0,
    submitted_at     timestamptz,
    dialed_at        timestamptz,
    ringing_at       timestamptz,
    answered_at      timestamptz,
    ended_at         timestamptz,
    duration_seconds integer check (duration_seconds >= 0),
    carrier_price    numeric(12, 6),
    carrier_currency text,
    recording_url    text,
    -- Time at which a deferred call may be sent, or the reconciler next looks at this call.
    check_at         timestamptz,
    changed_at       timestamptz not null default now(),
    created_at       timestamptz not null default now(),
    -- Frozen when the call was made: its organisation's or its agent's flag.
    hipaa_compliance boolean not null default false,
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id),
    foreign key (org_id, agent_id) references agents (org_id, id),
    foreign key (org_id, phone_id) references phone_numbers (org_id, id),
    constraint attempt_is_taken
        unique (row_id, attempt_no),
    constraint batch_calls_have_a_row
        check ((batch_id is null) = (row_id is null)),
    constraint final_calls_have_an_outcome
        check ((status = 'final') = (outcome is not null and ended_at is not null)),
    constraint submitting_calls_have_a_worker
        check (status <> 'submitting' or (worker is not null and submitted_at is not null)),
    constraint carriers_know_these_calls
        check (
            status not in ('accepted', 'dialing', 'ringing', 'in_progress', 'canceling')
            or carrier_call_id is not null)
) with (fillfactor = 60);

create unique index calls_one_live_per_number
    on calls (org_id, to_number)
    where live;
create index calls_live
    on calls (trunk_id, org_id, batch_id)
    where live;
create index calls_queued
    on calls (trunk_id, org_id, created_at)
    where queued;
create index calls_deferred
    on calls (trunk_id, check_at)
    where deferred;
create unique index carrier_call_is_bound
    on calls (trunk_id, carrier_call_id)
    where carrier_call_id is not null;
create index calls_by_batch
    on calls (batch_id, created_at)
    where batch_id is not null;
create index calls_by_owner
    on calls (org_id, user_id, created_at desc);

select wall('calls');

-- Reports of carriers. Callbacks only append here; a worker applies them to the calls.
create table call_events (
    id               bigint generated always as identity primary key,
    org_id           uuid not null,
    call_id          uuid not null,
    source           text not null check (source in ('callback', 'poll', 'answer', 'placement')),
    -- Reports that say the same thing have the same key.
    dedup_key        text not null,
    carrier_call_id  text,
    -- Canonical status; null where the carrier's word is unknown or says nothing of progress.
    status           text,
    outcome          text,
    reason           text,
    carrier_status   text,
    carrier_code     text,
    sip_code         integer,
    answered_by      text,
    duration_seconds integer,
    price            numeric(12, 6),
    currency         text,
    recording_url    text,
    -- Time of the event by the carrier's clock.
    occurred_at      timestamptz,
    received_at      timestamptz not null default clock_timestamp(),
    applied_at       timestamptz
) with (fillfactor = 80);

create unique index call_event_is_known
    on call_events (call_id, dedup_key);
create index call_events_unapplied
    on call_events (id)
    where applied_at is null;

select wall('call_events');

-- Words spoken, in order.
create table call_turns (
    org_id     uuid not null,
    call_id    uuid not null references calls (id),
    turn_no    integer not null,
    role       text not null check (role in ('agent', 'callee')),
    text       text not null,
    created_at timestamptz not null default now(),
    primary key (call_id, turn_no)
);

select wall('call_turns');
