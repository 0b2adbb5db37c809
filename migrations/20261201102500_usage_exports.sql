-- Exports of usage: the files that were asked for.

-- waiting -> finished (finished_at) -> cleared away (cleared_at): the file is gone
--         -> failed   (failed_at)
create table usage_exports (
    id          uuid primary key,
    org_id      uuid not null,
    user_id     uuid not null,
    -- Selection: {usage_type, session_types, agent_ids, from, to}, with whole moments.
    filters     jsonb not null,
    -- Address that the link is sent to.
    to_address  text not null check (length(to_address) between 3 and 320),
    rows        bigint check (rows >= 0),
    created_at  timestamptz not null default now(),
    finished_at timestamptz,
    -- End of the time in which the link opens the file.
    expires_at  timestamptz,
    failed_at   timestamptz,
    cleared_at  timestamptz,
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id),
    constraint finished_exports_have_rows_and_an_end
        check ((finished_at is null) = (rows is null) and (finished_at is null) = (expires_at is null)),
    constraint exports_end_once
        check (finished_at is null or failed_at is null)
);

-- Requests for a file that is being written get the same one.
create unique index usage_export_is_under_way
    on usage_exports (user_id, md5(filters::text))
    where finished_at is null and failed_at is null;
create index usage_exports_to_clear
    on usage_exports (expires_at)
    where cleared_at is null;

select wall('usage_exports');
