-- Audit log: changes that were made, and requests that were refused.

create function refuse_change() returns trigger
    language plpgsql
as $$
begin
    raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation';
end
$$;

-- Changes: one row each, written in the change's own transaction.
create table audit_log (
    id            uuid primary key,
    -- Owner of the changed thing.
    org_id        uuid not null references organizations (id),
    actor_user_id uuid,
    actor_kind    text not null check (actor_kind in ('session', 'api_key', 'system')),
    api_key_id    uuid,
    ip            inet,
    request_id    text,
    -- Thing and verb: 'batch.create'.
    action        text not null check (action ~ '^[a-z_]+\.[a-z_]+$'),
    subject_id    text not null,
    -- SHA-256 of the thing as JSON; null before it existed and after it was gone.
    before_digest bytea,
    after_digest  bytea,
    -- Names of the fields that differ; values may be secret and are left out.
    changed       text[] not null default '{}',
    created_at    timestamptz not null default clock_timestamp()
);

create index audit_log_by_org
    on audit_log (org_id, id desc);
create index audit_log_by_subject
    on audit_log (org_id, subject_id, id desc);

create trigger audit_log_is_append_only
    before update or delete on audit_log
    for each row execute function refuse_change();
create trigger audit_log_is_never_emptied
    before truncate on audit_log
    for each statement execute function refuse_change();

select wall('audit_log');

-- Refusals: requests that a role, a key's scopes or a feature does not allow, failed sign-ins, and
-- bad keys and tokens. The writers bound the rows that a flood of requests leaves here.
create table refusals (
    id            uuid primary key,
    -- Null when the request proves no organisation; only the platform sees such rows.
    org_id        uuid references organizations (id),
    -- User; of an unproven actor the user named by the sign-in, the key or the session shown.
    actor_user_id uuid,
    actor_kind    text not null check (actor_kind in ('session', 'api_key', 'unproven')),
    api_key_id    uuid,
    ip            inet,
    request_id    text,
    action        text not null check (action ~ '^[a-z_]+\.[a-z_]+$'),
    -- Method and pattern of the route; the request's content may be secret and is left out.
    target        text not null,
    -- Further refusals of the same caller or address, which have no rows of their own.
    left_out      bigint not null default 0 check (left_out >= 0),
    created_at    timestamptz not null default clock_timestamp()
);

create index refusals_by_org
    on refusals (org_id, id desc);
-- Old rows are removed; those without an organisation sooner than others.
create index refusals_by_age
    on refusals (created_at);
create index refusals_of_nobody_by_age
    on refusals (created_at)
    where org_id is null;

create trigger refusals_are_never_changed
    before update on refusals
    for each row execute function refuse_change();
create trigger refusals_are_never_emptied
    before truncate on refusals
    for each statement execute function refuse_change();

select wall('refusals');

-- Removal of old rows is for the platform alone.
revoke update, delete
    on refusals
    from peal_tenant;
