-- The platform's catalogue of prices. Tenants read it; only the platform writes it.

create table service_prices (
    id             uuid primary key,
    service        text not null check (service in (
                       'telephony', 'model', 'speech', 'platform', 'attempt')),
    -- Telephony: the digits that a number begins with, the longest match counts, '' is every
    -- number. Model and speech: the name in the agent's configuration, '' is every other.
    match          text not null default '' check (length(match) <= 200),
    -- Matters for telephony; other services cost the same in both.
    direction      text not null default 'outbound' check (direction in ('outbound', 'inbound')),
    -- Price of a minute; of `attempt`, of a call that the carrier took.
    price_usd      numeric(20, 10) not null check (price_usd >= 0),
    -- Seconds in a step of billing.
    increment_secs integer not null default 60 check (increment_secs between 1 and 3600),
    valid_from     timestamptz not null,
    -- Null while no later price of the same thing is known.
    valid_until    timestamptz,
    created_by     uuid,
    created_at     timestamptz not null default now(),
    constraint prices_are_valid_for_a_time
        check (valid_until > valid_from),
    constraint price_begins_once
        unique (service, match, direction, valid_from),
    constraint telephony_prices_match_digits
        check (service <> 'telephony' or match ~ '^[0-9]{0,15}$'),
    constraint flat_prices_match_everything
        check (service not in ('platform', 'attempt') or match = '')
);

alter table service_prices enable row level security;
alter table service_prices force row level security;
create policy tenant_sees
    on service_prices
    for select
    to peal_tenant
    using (true);
create policy system
    on service_prices
    to peal_system
    using (true)
    with check (true);

-- Edition of the catalogue, one row that every change of service_prices replaces. Workers that
-- read the prices of an edition keep them for as long as it stands, so that a claim need not read
-- prices. Random, because a restored database
-- would count up to a number again.
create table price_book (
    edition uuid not null default gen_random_uuid()
);

create unique index price_book_is_one
    on price_book ((true));

alter table price_book enable row level security;
alter table price_book force row level security;
create policy tenant_sees
    on price_book
    for select
    to peal_tenant
    using (true);
create policy system
    on price_book
    to peal_system
    using (true)
    with check (true);

-- Runs as peal_system, so that a change of prices replaces the edition whichever role made it.
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

-- Ownership can only go to a role that may create in the schema.
grant create on schema public to peal_system;
alter function make_edition() owner to peal_system;
revoke create on schema public from peal_system;

create trigger service_prices_make_editions
    after insert or update or delete or truncate on service_prices
    for each statement execute function make_edition();
