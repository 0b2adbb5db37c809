-- Leases the best due jobs of a queue, unless it is paused.
--
-- The due jobs of one priority are a prefix of their stretch of the index, those of all
-- priorities are not: jobs that wait for a later time lie between. So the levels are walked
-- first (one index probe each), and the walk ends as soon as the limit is reached.
with recursive levels as (
    (
        select priority
        from jobs
        where queue = $1
            and state = 'ready'
            and not exists (
                select from queues where name = $1 and paused_at is not null
            )
        order by priority desc
        limit 1
    )
    union all
    select (
        select priority
        from jobs
        where queue = $1
            and state = 'ready'
            and priority < levels.priority
        order by priority desc
        limit 1
    )
    from levels
    where levels.priority is not null
),
picked as materialized (
    select due.id
    from levels
    cross join lateral (
        select id
        from jobs
        where queue = $1
            and state = 'ready'
            and priority = levels.priority
            and run_at <= now()
        order by run_at, id
        limit $2
        for update skip locked
    ) due
    limit $2
)
update jobs
set state = 'running',
    attempts = attempts + 1,
    fence = fence + 1,
    worker = $3,
    lease_until = now() + make_interval(secs => $4)
from picked
where jobs.id = picked.id
returning
    jobs.id as "id: JobId",
    jobs.kind,
    jobs.org_id as "org: OrgId",
    jobs.args,
    jobs.attempts,
    jobs.max_attempts,
    jobs.fence,
    jobs.priority,
    jobs.run_at
