-- A second wall between tenants. Whatever a statement forgets to ask for, a request sees the
-- rows of its own organisation only: its transaction runs as peal_tenant and is bound to one
-- organisation with `set local peal.org`. Without that there are no rows at all. Workers,
-- callbacks and the platform's own administrators run as peal_system, which sees everything.
-- The account that owns the tables is kept out as well, unless it is a superuser.

do $$
declare
    missing text;
begin
    foreach missing in array array['peal_system', 'peal_tenant'] loop
        if not exists (select from pg_roles where rolname = missing) then
            begin
                execute format('create role %I nologin', missing);
            exception
                when duplicate_object or unique_violation then
                    null; -- another database of this server is being migrated at the same time
                when insufficient_privilege then
                    raise exception '% may not create roles', current_user using hint = format(
                        'As an administrator, once: create role peal_system nologin; '
                        'create role peal_tenant nologin; grant peal_system, peal_tenant to %I;', current_user);
            end;
        end if;
    end loop;
    begin
        execute format('grant peal_system, peal_tenant to %I', current_user);
    exception when insufficient_privilege then
        if not pg_has_role(current_user, 'peal_system', 'member')
           or not pg_has_role(current_user, 'peal_tenant', 'member') then
            raise exception '% may not act as peal_system and peal_tenant', current_user using hint = format(
                'As an administrator, once: grant peal_system, peal_tenant to %I;', current_user);
        end if;
    end;
end
$$;

grant usage on schema public to peal_system, peal_tenant;
grant select, insert, update, delete on all tables in schema public to peal_system, peal_tenant;
grant usage on all sequences in schema public to peal_system, peal_tenant;
alter default privileges in schema public
    grant select, insert, update, delete on tables to peal_system, peal_tenant;
alter default privileges in schema public
    grant usage on sequences to peal_system, peal_tenant;

-- The organisation that the transaction is bound to.
create function tenant() returns uuid
    language sql stable parallel safe
    return nullif(current_setting('peal.org', true), '')::uuid;

-- Walls a table: tenants see and write the rows for which `mine` holds.
create function wall(walled regclass, mine text default 'org_id = (select tenant())') returns void
    language plpgsql
as $$
begin
    execute format('alter table %s enable row level security', walled);
    execute format('alter table %s force row level security', walled);
    execute format('create policy tenant on %s to peal_tenant using (%s) with check (%s)', walled, mine, mine);
    execute format('create policy system on %s to peal_system using (true) with check (true)', walled);
end
$$;

select wall('organizations', 'id = (select tenant())');
select wall('users');
select wall('api_keys');
select wall('jobs');
select wall('phone_numbers');
select wall('agents');
select wall('call_batches');
select wall('batch_data');
select wall('batch_progress', 'exists (select from call_batches b where b.id = batch_id)');
select wall('ingests');
select wall('ingest_rejects', 'exists (select from ingests i where i.id = ingest_id)');
select wall('calls');
select wall('call_events');
select wall('call_turns');
select wall('dial_shares');
select wall('emails');
select wall('pacers', 'exists (select from trunks t where t.id = trunk_id)');

-- A trunk without an organisation is the platform's: everybody calls through it, nobody but
-- the platform changes it.
alter table trunks enable row level security;
alter table trunks force row level security;
create policy tenant_sees on trunks for select to peal_tenant
    using (org_id is null or org_id = (select tenant()));
create policy tenant_writes on trunks to peal_tenant
    using (org_id = (select tenant())) with check (org_id = (select tenant()));
create policy system on trunks to peal_system using (true) with check (true);
