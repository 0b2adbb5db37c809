-- Signing in: passwords, sessions and invitations.

create table passwords (
    user_id    uuid primary key,
    org_id     uuid not null,
    -- Argon2id in PHC form.
    hash       text not null,
    changed_at timestamptz not null default now(),
    foreign key (org_id, user_id) references users (org_id, id)
);

select wall('passwords');

create table sessions (
    id         uuid primary key,
    org_id     uuid not null,
    user_id    uuid not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    revoked_at timestamptz,
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id)
);

create index sessions_by_user
    on sessions (user_id)
    where revoked_at is null;
create index sessions_by_end
    on sessions (expires_at);

select wall('sessions');

create table invites (
    id          uuid primary key,
    org_id      uuid not null references organizations (id),
    invited_by  uuid not null,
    email       text not null check (length(email) between 3 and 320),
    role        text not null check (role in ('user', 'org_admin')),
    created_at  timestamptz not null default now(),
    expires_at  timestamptz not null,
    accepted_at timestamptz,
    revoked_at  timestamptz,
    unique (org_id, id),
    constraint invite_ends_once
        check (accepted_at is null or revoked_at is null)
);

create unique index invite_is_open
    on invites (org_id, lower(email))
    where accepted_at is null and revoked_at is null;
create index invites_by_email
    on invites (lower(email))
    where accepted_at is null and revoked_at is null;

select wall('invites');
