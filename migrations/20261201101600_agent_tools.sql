-- Tools of an agent, in the order in which the model is told of them.

create table agent_tools (
    id             uuid primary key,
    org_id         uuid not null references organizations (id),
    agent_id       uuid not null,
    tool_id        uuid,
    mcp_server_id  uuid,
    enabled        boolean not null default true,
    -- Moment of use: during the conversation, or once it has ended.
    used           text not null default 'during_call' check (used in ('during_call', 'post_call')),
    -- Names of an MCP server's tools that this agent may use; null for those that the server allows.
    allowed_tools  text[],
    -- Arguments that are set here and not by the model.
    param_defaults jsonb not null default '{}' check (jsonb_typeof(param_defaults) = 'object'),
    position       integer not null default 0,
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now(),
    unique (org_id, id),
    constraint agent_tools_are_of_one_kind
        check (num_nonnulls(tool_id, mcp_server_id) = 1),
    constraint agent_has_tool
        unique (agent_id, tool_id),
    constraint agent_has_mcp_server
        unique (agent_id, mcp_server_id),
    foreign key (org_id, agent_id) references agents (org_id, id)
        on delete cascade,
    constraint tool_is_mapped
        foreign key (org_id, tool_id) references tools (org_id, id),
    constraint mcp_server_is_mapped
        foreign key (org_id, mcp_server_id) references mcp_servers (org_id, id)
);

create index agent_tools_by_tool
    on agent_tools (tool_id)
    where tool_id is not null;
create index agent_tools_by_mcp_server
    on agent_tools (mcp_server_id)
    where mcp_server_id is not null;

select wall('agent_tools');
