-- Jobs: the rows are the queue; Redis only carries their ids to wake workers.

create table jobs (
    id           uuid primary key,
    queue        text not null,
    kind         text not null,
    -- Ids only: personal data may not stand here.
    args         jsonb not null,
    org_id       uuid references organizations (id),
    dedupe_key   text,
    state        text not null default 'ready' check (state in ('ready', 'running', 'done', 'dead')),
    -- Higher numbers run sooner.
    priority     smallint not null default 0,
    -- Counted when a worker claims the job, so that a job which kills its worker is counted too.
    attempts     integer not null default 0 check (attempts >= 0),
    max_attempts integer not null check (max_attempts > 0),
    run_at       timestamptz not null default now(),
    -- Number of claims; a worker whose fence is older than the row's has lost the job.
    fence        bigint not null default 0,
    worker       text,
    lease_until  timestamptz,
    last_error   text,
    created_at   timestamptz not null default now(),
    finished_at  timestamptz,
    constraint running_jobs_have_a_lease
        check ((state = 'running') = (lease_until is not null)),
    constraint running_jobs_were_claimed
        check (state <> 'running' or (worker is not null and attempts > 0 and fence > 0)),
    constraint ended_jobs_have_an_end
        check ((state in ('done', 'dead')) = (finished_at is not null)),
    constraint dead_jobs_have_a_reason
        check (state <> 'dead' or last_error is not null)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- The order of claims, level by level of priority.
create index jobs_ready
    on jobs (queue, priority desc, run_at, id)
    where state = 'ready';
create index jobs_leases
    on jobs (lease_until)
    where state = 'running';
create index jobs_done
    on jobs (finished_at)
    where state = 'done';
create index jobs_dead
    on jobs (finished_at desc)
    where state = 'dead';
create unique index job_is_live
    on jobs (kind, dedupe_key)
    where state in ('ready', 'running');

select wall('jobs');

-- Pauses; a queue without a row runs.
create table queues (
    name      text primary key,
    paused_at timestamptz
);
