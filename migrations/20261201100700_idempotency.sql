-- Requests that carry an Idempotency-Key.

-- Answers, written in the transaction of the request's effect: a key is here if and only if its
-- effect is.
create table idempotency_keys (
    org_id      uuid not null references organizations (id) on delete cascade,
    user_id     uuid not null,
    key         text not null check (length(key) between 1 and 255),
    -- SHA-256 of method, path, query and body.
    fingerprint bytea not null,
    status      smallint,
    body        jsonb,
    created_at  timestamptz not null default now(),
    primary key (org_id, user_id, key),
    constraint idempotency_answer_is_whole
        check ((status is null) = (body is null))
);

create index idempotency_keys_by_age
    on idempotency_keys (created_at);

select wall('idempotency_keys');

-- Keys of requests under way that take longer than a transaction may: uploads.
create table idempotency_holds (
    org_id     uuid not null references organizations (id) on delete cascade,
    user_id    uuid not null,
    key        text not null check (length(key) between 1 and 255),
    -- The request that holds the key: after the end of a hold another request may take it.
    holder     uuid not null,
    -- Extended while the request's process lives.
    held_until timestamptz not null,
    primary key (org_id, user_id, key)
);

select wall('idempotency_holds');
