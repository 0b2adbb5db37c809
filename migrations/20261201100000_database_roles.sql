-- Roles and row-level security: the database itself keeps tenants apart.
--
-- A request's transaction runs as peal_tenant and is bound to one organisation with
-- `set local peal.org`; it reads and writes that organisation's rows alone, and no rows at all
-- without the binding. Workers, callbacks and the platform's own administrators run as peal_system,
-- which sees all rows. Policies are forced on the owner of the tables as well; only a superuser
-- escapes them.

-- Roles belong to the server, so they may exist before this database does.
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

-- Grants on existing tables cover the migrator's own, _sqlx_migrations, which the programs read to
-- compare the schema with their build. Default privileges cover every later table.
grant usage
    on schema public
    to peal_system, peal_tenant;
grant select, insert, update, delete
    on all tables in schema public
    to peal_system, peal_tenant;
grant usage
    on all sequences in schema public
    to peal_system, peal_tenant;
alter default privileges in schema public
    grant select, insert, update, delete on tables
    to peal_system, peal_tenant;
alter default privileges in schema public
    grant usage on sequences
    to peal_system, peal_tenant;

-- The organisation that the transaction is bound to.
create function tenant() returns uuid
    language sql stable parallel safe
    return nullif(current_setting('peal.org', true), '')::uuid;

-- Turns on row-level security for a table: tenants read and write the rows for which `mine` holds,
-- the platform all rows.
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
