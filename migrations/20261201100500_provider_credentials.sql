-- Secrets that users store for requests to providers. They have to be readable, unlike API keys,
-- and open nothing of the platform's own.

create table provider_credentials (
    id            uuid primary key,
    org_id        uuid not null,
    user_id       uuid not null,
    provider_name text not null check (provider_name ~ '^[a-z0-9][a-z0-9_.-]{0,59}$'),
    name          text not null default '',
    last4         text not null,
    -- Key of this row alone, sealed under the master key.
    data_key      bytea not null,
    -- Secret, sealed under the key of the row.
    secret        bytea not null,
    created_at    timestamptz not null default now(),
    revoked_at    timestamptz,
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id)
);

create index provider_credentials_by_user
    on provider_credentials (user_id, provider_name)
    where revoked_at is null;

select wall('provider_credentials');
