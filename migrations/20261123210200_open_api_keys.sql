-- API keys that end, that reach only some routes, and that tell nothing of a secret which
-- somebody brought; secrets of providers, which are something else; and switches per user.

alter table api_keys
    add column expires_at timestamptz,
    -- Which master key the HMAC is under, so that an operator knows when an earlier one can go.
    add column hashed_under bytea,
    add constraint api_key_of_org unique (org_id, id);

create index api_keys_by_user on api_keys (user_id) where revoked_at is null;

-- No row: everything that the key's user may do. Otherwise one row has to allow a request.
create table api_key_scopes (
    id                  uuid primary key,
    org_id              uuid not null,
    api_key_id          uuid not null,
    allowed_path_prefix text not null check (allowed_path_prefix ~ '^/' and length(allowed_path_prefix) <= 500),
    allowed_method      text not null
        check (allowed_method in ('*', 'GET', 'HEAD', 'OPTIONS', 'POST', 'PUT', 'PATCH', 'DELETE')),
    foreign key (org_id, api_key_id) references api_keys (org_id, id) on delete cascade
);

create index api_key_scopes_by_key on api_key_scopes (api_key_id);

-- A secret that we send to a provider. It has to be readable, and never opens anything of ours.
create table provider_credentials (
    id            uuid primary key,
    org_id        uuid not null,
    user_id       uuid not null,
    provider_name text not null check (provider_name ~ '^[a-z0-9][a-z0-9_.-]{0,59}$'),
    name          text not null default '',
    last4         text not null,
    -- The key of this row alone, sealed under the master key; and the secret under it.
    data_key      bytea not null,
    secret        bytea not null,
    created_at    timestamptz not null default now(),
    revoked_at    timestamptz,
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id)
);

create index provider_credentials_by_user on provider_credentials (user_id, provider_name) where revoked_at is null;

-- What a user may use. No row: it is on.
create table feature_flags (
    org_id     uuid not null,
    user_id    uuid not null,
    flag       text not null check (length(flag) between 1 and 60),
    enabled    boolean not null,
    updated_at timestamptz not null default now(),
    primary key (user_id, flag),
    foreign key (org_id, user_id) references users (org_id, id)
);

select wall('api_key_scopes');
select wall('provider_credentials');
select wall('feature_flags');
