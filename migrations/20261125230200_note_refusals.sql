-- Whom the API has turned away: what a role, a key's scopes or a feature do not allow, failed
-- sign-ins, and keys and tokens that are no good. A part of the audit log; its writers bound how
-- much of a flood gets here.

create table refusals (
    id            uuid primary key,
    -- Null when nobody is known by what was shown: only the platform sees it then.
    org_id        uuid references organizations (id),
    -- Of one who is unproven: whom they tried to sign in as, or whose key or session they showed.
    actor_user_id uuid,
    actor_kind    text not null check (actor_kind in ('session', 'api_key', 'unproven')),
    api_key_id    uuid,
    ip            inet,
    request_id    text,
    action        text not null check (action ~ '^[a-z_]+\.[a-z_]+$'),
    -- Method and pattern of the route; what stood in the request is nobody's business here.
    target        text not null,
    -- Further refusals of the same caller or address, which have no rows of their own.
    left_out      bigint not null default 0 check (left_out >= 0),
    created_at    timestamptz not null default clock_timestamp()
);

create index refusals_by_org on refusals (org_id, id desc);

-- Old ones are looked for; those of nobody are kept for a shorter time.
create index refusals_by_age on refusals (created_at);
create index refusals_of_nobody_by_age on refusals (created_at) where org_id is null;

create trigger refusals_are_never_changed before update on refusals
    for each row execute function refuse_change();
create trigger refusals_are_never_emptied before truncate on refusals
    for each statement execute function refuse_change();

select wall('refusals');
-- Only the platform forgets them.
revoke update, delete on refusals from peal_tenant;
