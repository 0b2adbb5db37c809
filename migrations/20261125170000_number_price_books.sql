-- What the claim asks of prices on every turn, made cheap: whether the catalogue has changed
-- since a worker read it, and who earns from an organisation's calls.

-- Another edition with every change of service_prices. Whoever read the prices behind an edition
-- has the current ones for as long as that is the edition. No number: a database that was set
-- back would count up to it again.
create table price_book (
    edition uuid not null default gen_random_uuid()
);
create unique index price_book_is_one on price_book ((true));
insert into price_book default values;

alter table price_book enable row level security;
alter table price_book force row level security;
create policy tenant_sees on price_book for select to peal_tenant using (true);
create policy system on price_book to peal_system using (true) with check (true);

-- Runs as peal_system: whoever changes prices makes an edition of them.
create function make_edition() returns trigger
    language plpgsql security definer set search_path = public
as $$
begin
    update price_book set edition = gen_random_uuid();
    if not found then
        raise exception 'price_book has no edition to replace';
    end if;
    return null;
end
$$;

create trigger service_prices_make_editions after insert or update or delete or truncate on service_prices
    for each statement execute function make_edition();

-- The terms of every organisation that somebody earns from, for the platform's own statements,
-- which can be planned as joins; others ask the function for one of them. A view's owner is whom
-- the wall looks at.
create view earning_terms as
    select o.id as org_id, r.id as reseller_org_id, r.org_type,
           case when r.org_type = 'distributor' then r.markup_percent else 0 end as markup_percent,
           r.commission_percent
    from organizations o
    join organizations r on r.id = case when o.org_type = 'internal' then o.parent_org_id else o.id end
    where r.org_type <> 'internal';
revoke all on earning_terms from peal_tenant;

grant create on schema public to peal_system;
alter view earning_terms owner to peal_system;
alter function make_edition() owner to peal_system;
revoke create on schema public from peal_system;

create or replace function reseller_terms(org uuid)
    returns table (reseller_org_id uuid, org_type text, markup_percent numeric, commission_percent numeric)
    language sql stable security definer set search_path = public
as $$
    select t.reseller_org_id, t.org_type, t.markup_percent, t.commission_percent
    from earning_terms t
    where t.org_id = org
$$;
