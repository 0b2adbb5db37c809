-- Campaigns: batches, their rows, and exact counts of the rows.

create table call_batches (
    id                  uuid primary key,
    org_id              uuid not null references organizations (id),
    user_id             uuid not null,
    agent_id            uuid not null,
    caller_phone_id     uuid not null,
    -- The caller number's trunk, frozen when the batch starts; the claim finds batches by it.
    trunk_id            uuid references trunks (id),
    batch_name          text not null check (length(batch_name) between 1 and 200),
    description         text,
    status              text not null default 'not_started'
                        check (status in ('not_started', 'scheduled', 'in_progress', 'paused', 'stopped', 'completed')),
    -- Reason for the pause or the stop, in words for the owner.
    status_reason       text,
    variable_names      text[] not null default '{}',
    batch_size          integer not null default 1 check (batch_size between 1 and 1000),
    max_retries         integer not null default 0 check (max_retries between 0 and 5),
    retry_delay_seconds integer not null default 60 check (retry_delay_seconds between 1 and 604800),
    retry_lost          boolean not null default false,
    default_country     text check (default_country ~ '^[A-Z]{2}$'),
    -- Virtual time of the fair share over the organisation's batches.
    turn                bigint not null default 0,
    -- The next row number to give out; taken by the statement that adds rows.
    next_row_no         bigint not null default 1,
    -- Set by the start job once the batch was found ready; rows are claimed only after that.
    launched_at         timestamptz,
    started_at          timestamptz,
    completed_at        timestamptz,
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now(),
    auto_resume         boolean not null default false,
    -- Lack of money: the batch waits, and is paused when the lack lasts.
    starved_since       timestamptz,
    starved_reason      text check (starved_reason in ('insufficient_credits', 'monthly_cap_reached')),
    -- Time before which the claim does not look at the batch again.
    starved_until       timestamptz,
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id),
    foreign key (org_id, agent_id) references agents (org_id, id),
    foreign key (org_id, caller_phone_id) references phone_numbers (org_id, id),
    constraint launched_batches_have_a_trunk
        check (launched_at is null or trunk_id is not null),
    constraint completed_batches_have_an_end
        check ((status = 'completed') = (completed_at is not null)),
    constraint starved_batches_have_a_reason
        check ((starved_since is null) = (starved_reason is null) and (starved_since is null) = (starved_until is null))
);

create index call_batches_by_owner
    on call_batches (org_id, user_id, created_at desc, id);
create index call_batches_by_agent
    on call_batches (agent_id)
    where status in ('scheduled', 'in_progress', 'paused');
create index call_batches_by_line
    on call_batches (caller_phone_id)
    where status in ('scheduled', 'in_progress', 'paused');
create index call_batches_dialling
    on call_batches (trunk_id)
    where status = 'in_progress' and launched_at is not null;
-- Batches wait for their launch for a moment only, so the frequent search for a lost launch reads
-- next to nothing.
create index call_batches_launching
    on call_batches (id)
    where status = 'in_progress' and launched_at is null;
create index call_batches_starved
    on call_batches (starved_since)
    where starved_since is not null;

select wall('call_batches');

-- Distinct sets of candidate time zones, so that a row of a batch carries four bytes.
create table zone_sets (
    id    integer generated always as identity primary key,
    zones text[] not null unique
);

create table batch_data (
    id              uuid primary key,
    org_id          uuid not null,
    batch_id        uuid not null,
    row_no          bigint not null,
    to_phonenumber  text not null check (to_phonenumber ~ '^\+[1-9][0-9]{6,14}$'),
    variable_values jsonb not null default '{}',
    zone_set_id     integer references zone_sets (id),
    status          text not null default 'not_started'
                    check (status in ('not_started', 'calling', 'completed', 'failed', 'no_answer')),
    outcome         text,
    reason          text,
    error_message   text,
    attempts        integer not null default 0,
    -- Time from which a not_started row may be dialled.
    due_at          timestamptz not null default now(),
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    foreign key (org_id, batch_id) references call_batches (org_id, id)
        on delete cascade,
    constraint row_number_is_taken
        unique (batch_id, row_no),
    constraint number_is_in_batch
        unique (batch_id, to_phonenumber)
) with (fillfactor = 70);

create index batch_data_due
    on batch_data (batch_id, due_at, row_no)
    where status = 'not_started';

select wall('batch_data');

-- Counts of a batch's rows. Only the triggers below write them, inside the statement that changes
-- the rows, so that they always agree.
create table batch_progress (
    batch_id    uuid primary key references call_batches (id) on delete cascade,
    not_started bigint not null default 0 check (not_started >= 0),
    calling     bigint not null default 0 check (calling >= 0),
    completed   bigint not null default 0 check (completed >= 0),
    failed      bigint not null default 0 check (failed >= 0),
    no_answer   bigint not null default 0 check (no_answer >= 0)
) with (fillfactor = 50);

select wall('batch_progress', 'exists (select from call_batches b where b.id = batch_id)');

create function batch_progress_open() returns trigger language plpgsql as $$
begin
    insert into batch_progress (batch_id) values (new.id);
    return null;
end $$;

create trigger batch_progress_open
    after insert on call_batches
    for each row execute function batch_progress_open();

-- Number of rows of a batch that came to a status; negative when they left it.
create type batch_move as (batch_id uuid, status text, step bigint);

create function batch_progress_add(moves batch_move[]) returns void language plpgsql as $$
begin
    -- Locks counts in one order, so that statements which change several batches do not deadlock.
    perform from batch_progress
    where batch_id in (select m.batch_id from unnest(moves) m)
    order by batch_id
    for update;
    update batch_progress p
    set not_started = p.not_started + d.not_started,
        calling     = p.calling + d.calling,
        completed   = p.completed + d.completed,
        failed      = p.failed + d.failed,
        no_answer   = p.no_answer + d.no_answer
    from (
        select m.batch_id,
               coalesce(sum(m.step) filter (where m.status = 'not_started'), 0) as not_started,
               coalesce(sum(m.step) filter (where m.status = 'calling'), 0) as calling,
               coalesce(sum(m.step) filter (where m.status = 'completed'), 0) as completed,
               coalesce(sum(m.step) filter (where m.status = 'failed'), 0) as failed,
               coalesce(sum(m.step) filter (where m.status = 'no_answer'), 0) as no_answer
        from unnest(moves) m
        group by m.batch_id
    ) d
    where p.batch_id = d.batch_id
      and (d.not_started, d.calling, d.completed, d.failed, d.no_answer) <> (0, 0, 0, 0, 0);
end $$;

create function batch_progress_count() returns trigger language plpgsql as $$
declare
    moves batch_move[] := '{}';
begin
    if tg_op <> 'DELETE' then
        moves := moves || array(
            select row (batch_id, status, count(*))::batch_move from arrived group by batch_id, status);
    end if;
    if tg_op <> 'INSERT' then
        moves := moves || array(
            select row (batch_id, status, -count(*))::batch_move from departed group by batch_id, status);
    end if;
    if moves <> '{}' then
        perform batch_progress_add(moves);
    end if;
    return null;
end $$;

create trigger batch_progress_insert
    after insert on batch_data
    referencing new table as arrived
    for each statement execute function batch_progress_count();
create trigger batch_progress_update
    after update on batch_data
    referencing old table as departed new table as arrived
    for each statement execute function batch_progress_count();
create trigger batch_progress_delete
    after delete on batch_data
    referencing old table as departed
    for each statement execute function batch_progress_count();
