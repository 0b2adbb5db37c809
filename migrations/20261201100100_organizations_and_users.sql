-- Organisations, their users, and the terms on which resellers earn from organisations.

create table organizations (
    id                   uuid primary key,
    name                 text not null check (length(name) between 1 and 200),
    default_country      text check (default_country ~ '^[A-Z]{2}$'),
    timezone             text not null default 'UTC',
    max_concurrent_calls integer not null default 100 check (max_concurrent_calls between 0 and 100000),
    created_at           timestamptz not null default now(),
    -- The reseller whose customer this is.
    parent_org_id        uuid references organizations (id),
    hipaa_compliance     boolean not null default false,
    updated_at           timestamptz not null default now(),
    org_type             text not null default 'internal'
                         check (org_type in ('internal', 'channel_partner', 'distributor')),
    commission_percent   numeric(9, 6) not null default 0 check (commission_percent between 0 and 100),
    markup_percent       numeric(9, 6) not null default 0 check (markup_percent between 0 and 1000),
    markup_currency      text not null default 'USD' check (markup_currency = 'USD'),
    constraint organization_is_not_its_own_parent
        check (parent_org_id <> id)
);

create index organizations_by_parent
    on organizations (parent_org_id)
    where parent_org_id is not null;

select wall('organizations', 'id = (select tenant())');

-- Resellers see that their customers' organisations exist, and nothing inside them.
create policy tenant_sees_children
    on organizations
    for select
    to peal_tenant
    using (parent_org_id = (select tenant()));

create table users (
    id                uuid primary key,
    org_id            uuid not null references organizations (id),
    email             text not null,
    full_name         text,
    role              text not null default 'user' check (role in ('user', 'org_admin', 'super_admin')),
    created_at        timestamptz not null default now(),
    -- Removal takes all rights away; the row stays, because other rows name it.
    removed_at        timestamptz,
    -- Issuer and subject of another issuer's tokens that name this user.
    external_subject  text check (length(external_subject) between 3 and 1000),
    -- Claims of such tokens besides the address; only the user is shown them.
    phone             text check (length(phone) <= 40),
    profile_image_url text check (length(profile_image_url) <= 2000),
    user_metadata     jsonb not null default '{}' check (jsonb_typeof(user_metadata) = 'object'),
    -- Time of issue of the token that made these claims; an older token changes nothing.
    told_at           timestamptz,
    unique (org_id, id)
);

-- Removed users do not count, so that their address can be invited again, elsewhere too.
create unique index users_email_is_in_use
    on users (lower(email))
    where removed_at is null;
create unique index users_subject_is_in_use
    on users (external_subject)
    where removed_at is null;

select wall('users');

-- The terms of every organisation from which a reseller earns: a reseller earns from its own calls
-- and from those of its customers. A view, so that the platform's statements are planned as joins;
-- it belongs to peal_system, because row-level security looks at the owner of a view.
create view earning_terms as
    select o.id as org_id, r.id as reseller_org_id, r.org_type,
           case when r.org_type = 'distributor' then r.markup_percent else 0 end as markup_percent,
           r.commission_percent
    from organizations o
    join organizations r on r.id = case when o.org_type = 'internal' then o.parent_org_id else o.id end
    where r.org_type <> 'internal';

revoke all
    on earning_terms
    from peal_tenant;

-- The terms of one organisation, for statements of tenants. Runs as peal_system, because members of
-- an organisation may not look at the one above it.
create function reseller_terms(org uuid)
    returns table (reseller_org_id uuid, org_type text, markup_percent numeric, commission_percent numeric)
    language sql stable security definer set search_path = public
as $$
    select t.reseller_org_id, t.org_type, t.markup_percent, t.commission_percent
    from earning_terms t
    where t.org_id = org
$$;

-- Ownership can only go to a role that may create in the schema.
grant create on schema public to peal_system;
alter view earning_terms owner to peal_system;
alter function reseller_terms(uuid) owner to peal_system;
revoke create on schema public from peal_system;
