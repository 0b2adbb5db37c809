-- Who owns things: organisations, their users, and the keys users call the API with.

create table organizations (
    id                   uuid primary key,
    name                 text not null check (length(name) between 1 and 200),
    default_country      text check (default_country ~ '^[A-Z]{2}$'),
    timezone             text not null default 'UTC',
    max_concurrent_calls integer not null default 100 check (max_concurrent_calls between 0 and 100000),
    created_at           timestamptz not null default now()
);

create table users (
    id         uuid primary key,
    org_id     uuid not null references organizations (id),
    email      text not null,
    full_name  text,
    role       text not null default 'user' check (role in ('user', 'org_admin', 'super_admin')),
    created_at timestamptz not null default now(),
    unique (org_id, id)
);

create unique index users_email_is_taken on users (lower(email));

create table api_keys (
    id           uuid primary key,
    org_id       uuid not null,
    user_id      uuid not null,
    name         text not null default '',
    prefix       text not null,
    last4        text not null,
    -- HMAC-SHA256 under the pepper, which never enters the database.
    secret_hmac  bytea not null constraint api_key_exists unique,
    created_at   timestamptz not null default now(),
    last_used_at timestamptz,
    revoked_at   timestamptz,
    foreign key (org_id, user_id) references users (org_id, id)
);
