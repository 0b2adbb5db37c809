-- API keys, which may end and may be limited to some routes.

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
    expires_at   timestamptz,
    -- The master key that the HMAC is under, so that an operator sees when an earlier one can go.
    hashed_under bytea,
    constraint api_key_of_org
        unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id)
);

create index api_keys_by_user
    on api_keys (user_id)
    where revoked_at is null;

select wall('api_keys');

-- Limits of a key: with rows, one of them has to allow a request; without rows, the key may do
-- everything that its user may do.
create table api_key_scopes (
    id                  uuid primary key,
    org_id              uuid not null,
    api_key_id          uuid not null,
    allowed_path_prefix text not null
                        check (allowed_path_prefix ~ '^/' and length(allowed_path_prefix) <= 500),
    allowed_method      text not null
                        check (allowed_method in ('*', 'GET', 'HEAD', 'OPTIONS', 'POST', 'PUT', 'PATCH', 'DELETE')),
    foreign key (org_id, api_key_id) references api_keys (org_id, id)
        on delete cascade
);

create index api_key_scopes_by_key
    on api_key_scopes (api_key_id);

select wall('api_key_scopes');
