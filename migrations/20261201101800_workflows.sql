-- Conversations that follow a graph: nodes say, ask, branch, call tools, transfer or hang up.

create table workflows (
    id          uuid primary key,
    org_id      uuid not null references organizations (id),
    user_id     uuid not null,
    -- The agent that lends its voice and model.
    agent_id    uuid,
    name        text not null check (length(name) between 1 and 200),
    description text,
    nodes       jsonb not null check (jsonb_typeof(nodes) = 'array'),
    transitions jsonb not null check (jsonb_typeof(transitions) = 'array'),
    is_active   boolean not null default true,
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id),
    constraint agent_has_workflows
        foreign key (org_id, agent_id) references agents (org_id, id)
        on delete set null (agent_id)
);

create index workflows_by_owner
    on workflows (org_id, user_id, id desc);
create index workflows_by_agent
    on workflows (agent_id)
    where agent_id is not null;

select wall('workflows');

-- Tools that a workflow's nodes name, so that none of them is deleted unnoticed.
create table workflow_tools (
    org_id      uuid not null references organizations (id),
    workflow_id uuid not null,
    tool_id     uuid not null,
    primary key (workflow_id, tool_id),
    foreign key (org_id, workflow_id) references workflows (org_id, id)
        on delete cascade,
    constraint tool_has_workflows
        foreign key (org_id, tool_id) references tools (org_id, id)
);

create index workflow_tools_by_tool
    on workflow_tools (tool_id);

select wall('workflow_tools');
