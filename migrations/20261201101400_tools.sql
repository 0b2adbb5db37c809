-- Tools: requests to their owners' HTTP endpoints, which agents make.

create table tools (
    id              uuid primary key,
    org_id          uuid not null references organizations (id),
    user_id         uuid not null,
    name            text not null check (name ~ '^[a-zA-Z_][a-zA-Z0-9_]{0,63}$'),
    description     text not null check (length(description) between 1 and 1024),
    -- Address that may hold {{parameters}} behind the host.
    url             text not null check (length(url) <= 2048),
    method          text not null check (method in ('GET', 'POST', 'PUT', 'PATCH', 'DELETE')),
    -- Headers and authentication, sealed for this row and field.
    credentials     bytea not null,
    timeout_seconds integer not null check (timeout_seconds between 1 and 15),
    -- JSON Schema of the arguments: an object.
    tool_schema     jsonb not null check (jsonb_typeof(tool_schema) = 'object'),
    -- Fields of the answer that the model sees; null for all of them.
    output_schema   text[],
    is_active       boolean not null default true,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    unique (org_id, id),
    constraint tool_name_is_taken
        unique (user_id, name),
    foreign key (org_id, user_id) references users (org_id, id)
);

create index tools_by_owner
    on tools (org_id, user_id, id desc);

select wall('tools');
