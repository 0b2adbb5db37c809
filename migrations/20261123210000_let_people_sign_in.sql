-- How people sign in: with a password of ours or a token of somebody else's; who was invited;
-- and the sessions that were opened.

alter table users
    -- Removed from the organisation: may do nothing any more; what they made stays.
    add column removed_at timestamptz,
    -- Issuer and subject of the tokens that name this user, when those are not ours.
    add column external_subject text check (length(external_subject) between 3 and 1000);

-- Who was removed may be invited again, also elsewhere.
create unique index users_email_is_in_use on users (lower(email)) where removed_at is null;
create unique index users_subject_is_in_use on users (external_subject) where removed_at is null;
drop index users_email_is_taken;

create table passwords (
    user_id    uuid primary key,
    org_id     uuid not null,
    -- Argon2id in PHC form.
    hash       text not null,
    changed_at timestamptz not null default now(),
    foreign key (org_id, user_id) references users (org_id, id)
);

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

create index sessions_by_user on sessions (user_id) where revoked_at is null;
create index sessions_by_end on sessions (expires_at);

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
    constraint invite_ends_once check (accepted_at is null or revoked_at is null)
);

create unique index invite_is_open on invites (org_id, lower(email))
    where accepted_at is null and revoked_at is null;
create index invites_by_email on invites (lower(email)) where accepted_at is null and revoked_at is null;

select wall('passwords');
select wall('sessions');
select wall('invites');
