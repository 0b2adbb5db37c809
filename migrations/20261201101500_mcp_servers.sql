-- Servers of the Model Context Protocol; each offers agents several tools.

create table mcp_servers (
    id               uuid primary key,
    org_id           uuid not null references organizations (id),
    user_id          uuid not null,
    name             text not null check (length(name) between 1 and 200),
    server_url       text not null check (length(server_url) <= 2048),
    -- Servers from before March 2025 speak sse.
    transport        text not null default 'streamable_http'
                     constraint mcp_transport_is_known check (transport in ('streamable_http', 'sse')),
    -- Headers and authentication, sealed for this row and field.
    credentials      bytea not null,
    timeout_seconds  integer not null check (timeout_seconds between 1 and 15),
    -- Names of the tools that agents may use; null for all of them.
    allowed_tools    text[],
    is_active        boolean not null default true,
    -- Tools in the server's last answer.
    discovered_tools jsonb not null default '[]' check (jsonb_typeof(discovered_tools) = 'array'),
    last_synced_at   timestamptz,
    -- Reason for the failure of the last attempt to ask, in words for the owner.
    sync_error       text,
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id)
);

create index mcp_servers_by_owner
    on mcp_servers (org_id, user_id, id desc);

select wall('mcp_servers');
