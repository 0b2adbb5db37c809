-- What an organisation's administrators settle, and whose organisation it is: a reseller's
-- customers are organisations of their own below the reseller's.

alter table organizations
    add column parent_org_id uuid references organizations (id),
    add column hipaa_compliance boolean not null default false,
    add column updated_at timestamptz not null default now(),
    add constraint organization_is_not_its_own_parent check (parent_org_id <> id);

create index organizations_by_parent on organizations (parent_org_id) where parent_org_id is not null;

-- A reseller sees that its customers' organisations are there, and nothing inside them.
create policy tenant_sees_children on organizations for select to peal_tenant
    using (parent_org_id = (select tenant()));
