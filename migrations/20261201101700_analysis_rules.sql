-- Analysis of conversations that have ended: rules, and the agents whose calls they apply to.

create table analysis_rules (
    id            uuid primary key,
    org_id        uuid not null references organizations (id),
    user_id       uuid not null,
    name          text not null check (length(name) between 1 and 200),
    description   text,
    analysis_type text not null check (analysis_type in ('summary', 'structured_output', 'integration')),
    prompt        text,
    model_name    text,
    -- Fields of a structured output: name, type, description, enum_values.
    fields        jsonb not null default '[]' check (jsonb_typeof(fields) = 'array'),
    tool_id       uuid,
    webhook_url   text,
    is_active     boolean not null default true,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    unique (org_id, id),
    foreign key (org_id, user_id) references users (org_id, id),
    constraint tool_has_rules
        foreign key (org_id, tool_id) references tools (org_id, id),
    constraint active_integrations_have_a_tool
        check (analysis_type <> 'integration' or tool_id is not null or not is_active),
    constraint other_rules_have_a_prompt
        check (analysis_type = 'integration' or prompt is not null)
);

create index analysis_rules_by_owner
    on analysis_rules (org_id, user_id, id desc);
create index analysis_rules_by_tool
    on analysis_rules (tool_id)
    where tool_id is not null;

select wall('analysis_rules');

create table agent_analysis_rules (
    id         uuid primary key,
    org_id     uuid not null references organizations (id),
    agent_id   uuid not null,
    rule_id    uuid not null,
    sort_order integer not null default 0,
    created_at timestamptz not null default now(),
    constraint rule_is_attached
        unique (agent_id, rule_id),
    foreign key (org_id, agent_id) references agents (org_id, id)
        on delete cascade,
    foreign key (org_id, rule_id) references analysis_rules (org_id, id)
        on delete cascade
);

create index agent_analysis_rules_by_rule
    on agent_analysis_rules (rule_id);

select wall('agent_analysis_rules');
