-- Keys of requests that are under way and take longer than a transaction may: an upload.

create table idempotency_holds (
    org_id     uuid not null references organizations (id) on delete cascade,
    user_id    uuid not null,
    key        text not null check (length(key) between 1 and 255),
    -- Which request: a hold that has run out may be another's by now.
    holder     uuid not null,
    -- Moved on while the request's process lives.
    held_until timestamptz not null,
    primary key (org_id, user_id, key)
);

select wall('idempotency_holds');
