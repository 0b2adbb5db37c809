-- Who changed what, one row per change, written in the change's own transaction.

create table audit_log (
    id            uuid primary key,
    -- The organisation whose thing was changed.
    org_id        uuid not null references organizations (id),
    actor_user_id uuid,
    actor_kind    text not null check (actor_kind in ('session', 'api_key', 'system')),
    api_key_id    uuid,
    ip            inet,
    request_id    text,
    -- The thing and the verb: 'batch.create'.
    action        text not null check (action ~ '^[a-z_]+\.[a-z_]+$'),
    subject_id    text not null,
    -- SHA-256 of the thing as JSON; null before it existed and after it was gone.
    before_digest bytea,
    after_digest  bytea,
    -- Names of the fields that differ; values are nobody's business here.
    changed       text[] not null default '{}',
    created_at    timestamptz not null default clock_timestamp()
);

create index audit_log_by_org on audit_log (org_id, id desc);
create index audit_log_by_subject on audit_log (org_id, subject_id, id desc);

create function refuse_change() returns trigger
    language plpgsql
as $$
begin
    raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation';
end
$$;

create trigger audit_log_is_append_only before update or delete on audit_log
    for each row execute function refuse_change();
create trigger audit_log_is_never_emptied before truncate on audit_log
    for each statement execute function refuse_change();

select wall('audit_log');
