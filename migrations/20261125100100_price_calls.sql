-- What a call costs: prices, what an organisation adds and earns, the hold that a call is made
-- under and the charge that it ends in.

create table service_prices (
    id             uuid primary key,
    service        text not null check (service in (
                       'telephony', 'model', 'speech', 'platform', 'attempt')),
    -- Telephony: the digits that a number begins with, the longest match counts, '' is every
    -- number. Model and speech: the name in the agent's configuration, '' is every other.
    match          text not null default '' check (length(match) <= 200),
    -- Of telephony; the others cost the same in both.
    direction      text not null default 'outbound' check (direction in ('outbound', 'inbound')),
    -- Per minute; of `attempt`, per call that the carrier took.
    price_usd      numeric(20, 10) not null check (price_usd >= 0),
    -- A call is billed in steps of so many seconds.
    increment_secs integer not null default 60 check (increment_secs between 1 and 3600),
    valid_from     timestamptz not null,
    -- Null while no later price of the same thing is known.
    valid_until    timestamptz,
    created_by     uuid,
    created_at     timestamptz not null default now(),
    constraint prices_are_valid_for_a_time check (valid_until > valid_from),
    constraint price_begins_once unique (service, match, direction, valid_from),
    constraint telephony_prices_match_digits check (service <> 'telephony' or match ~ '^[0-9]{0,15}$'),
    constraint flat_prices_match_everything check (service not in ('platform', 'attempt') or match = '')
);

-- The platform's catalogue: everybody reads it, nobody but the platform writes it.
alter table service_prices enable row level security;
alter table service_prices force row level security;
create policy tenant_sees on service_prices for select to peal_tenant using (true);
create policy system on service_prices to peal_system using (true) with check (true);

alter table organizations
    add column org_type text not null default 'internal'
        check (org_type in ('internal', 'channel_partner', 'distributor')),
    add column commission_percent numeric(9, 6) not null default 0
        check (commission_percent between 0 and 100),
    add column markup_percent numeric(9, 6) not null default 0
        check (markup_percent between 0 and 1000),
    add column markup_currency text not null default 'USD' check (markup_currency = 'USD');

-- Who earns from what an organisation spends, and on which terms: a reseller from its own calls
-- and from those of its customers. Runs as peal_system, because nobody in an organisation may
-- look at the one above it, and the owner of the tables is behind the wall as well.
create function reseller_terms(org uuid)
    returns table (reseller_org_id uuid, org_type text, markup_percent numeric, commission_percent numeric)
    language sql stable security definer set search_path = public
as $$
    select r.id, r.org_type, case when r.org_type = 'distributor' then r.markup_percent else 0 end,
           r.commission_percent
    from organizations o
    join organizations r on r.id = case when o.org_type = 'internal' then o.parent_org_id else o.id end
    where o.id = org
      and r.org_type <> 'internal'
$$;
grant create on schema public to peal_system;
alter function reseller_terms(uuid) owner to peal_system;
revoke create on schema public from peal_system;

-- The prices of a call, frozen when it was claimed. Equal ones of an organisation are one row.
create table price_snapshots (
    id                 uuid primary key,
    org_id             uuid not null references organizations (id),
    digest             bytea not null,
    -- [{service, match, price_usd, increment_secs}]
    rates              jsonb not null,
    reseller_org_id    uuid references organizations (id),
    org_type           text not null,
    markup_percent     numeric(9, 6) not null,
    commission_percent numeric(9, 6) not null,
    created_at         timestamptz not null default now(),
    unique (org_id, id),
    constraint price_snapshot_exists unique (org_id, digest)
);
create trigger price_snapshots_are_append_only before update or delete on price_snapshots
    for each row execute function refuse_change();

-- open -> captured   the call was charged, for whatever it cost
-- open -> voided     nothing is billed
create table holds (
    call_id           uuid primary key,
    org_id            uuid not null,
    wallet_id         uuid not null,
    price_snapshot_id uuid not null,
    amount_micros     bigint not null check (amount_micros >= 0),
    -- What of it is taken from which grants: [{"grant": id, "micros": n}]; the rest is not.
    pins              jsonb not null default '[]',
    -- The month of the wallet's cap that it counts in.
    cap_month         date not null,
    state             text not null default 'open' check (state in ('open', 'captured', 'voided')),
    created_at        timestamptz not null default now(),
    ended_at          timestamptz,
    unique (org_id, call_id),
    foreign key (org_id, call_id) references calls (org_id, id),
    foreign key (org_id, wallet_id) references wallets (org_id, id),
    foreign key (org_id, price_snapshot_id) references price_snapshots (org_id, id),
    constraint ended_holds_have_an_end check ((state = 'open') = (ended_at is null))
) with (fillfactor = 80);

create index holds_open on holds (wallet_id) where state = 'open';

-- Calls whose charge is to be made or looked at again. Appended by whoever ends or refines a
-- call, removed by the settlement: an insert here waits for nobody.
create table charges_due (
    id      bigint generated always as identity primary key,
    call_id uuid not null,
    since   timestamptz not null default now(),
    -- Later than that where the database refused to settle the call.
    look_at timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- What a call cost. A correction is a row that takes the one before back, and a row of its own.
create table charges (
    id                uuid primary key,
    org_id            uuid not null,
    user_id           uuid not null,
    wallet_id         uuid not null,
    call_id           uuid not null,
    -- 1, 2, ...: 2 takes 1 back, 3 is the corrected charge, and so on.
    version           integer not null check (version > 0),
    reverses_id       uuid unique references charges (id),
    transaction_id    uuid not null,
    price_snapshot_id uuid not null,
    billed_seconds    integer not null,
    -- Usage lines: [{service, match, quantity, unit, price_usd, base_micros, retail_micros}]
    lines             jsonb not null,
    -- What of it was taken from which grants, negative when given back: [{"grant": id, "micros": n}].
    grants            jsonb not null default '[]',
    base_micros       bigint not null,
    retail_micros     bigint not null,
    markup_micros     bigint not null default 0,
    commission_micros bigint not null default 0,
    -- What the carrier says it cost us.
    carrier_price     numeric(12, 6),
    carrier_currency  text,
    created_at        timestamptz not null default now(),
    -- Not the call itself: a reference would lock its row, for which settling must not wait.
    foreign key (org_id, call_id) references holds (org_id, call_id),
    foreign key (org_id, wallet_id) references wallets (org_id, id),
    foreign key (org_id, transaction_id) references ledger_transactions (org_id, id),
    foreign key (org_id, price_snapshot_id) references price_snapshots (org_id, id),
    constraint call_is_charged_once unique (call_id, version),
    constraint retail_is_split check (
        abs(markup_micros) + abs(commission_micros) <= abs(retail_micros))
);

create index charges_by_user on charges (org_id, user_id, created_at desc, id desc);
create index charges_by_transaction on charges (transaction_id);
create trigger charges_are_append_only before update or delete on charges
    for each row execute function refuse_change();
create trigger charges_are_never_emptied before truncate on charges
    for each statement execute function refuse_change();

-- A batch that found no money waits, and is paused when that lasts.
alter table call_batches
    add column auto_resume boolean not null default false,
    add column starved_since timestamptz,
    add column starved_reason text check (starved_reason in ('insufficient_credits', 'monthly_cap_reached')),
    -- Until when the claim does not look at it again.
    add column starved_until timestamptz,
    add constraint starved_batches_have_a_reason check (
        (starved_since is null) = (starved_reason is null) and (starved_since is null) = (starved_until is null));

create index call_batches_starved on call_batches (starved_since) where starved_since is not null;

do $$
declare
    walled text;
begin
    foreach walled in array array['price_snapshots', 'holds', 'charges'] loop
        perform wall(walled::regclass);
    end loop;
end
$$;
alter table charges_due enable row level security;
alter table charges_due force row level security;
create policy system on charges_due to peal_system using (true) with check (true);

-- Prices to begin with: they cover what carriers usually ask, and are meant to be replaced.
insert into service_prices (id, service, match, direction, price_usd, increment_secs, valid_from)
select gen_random_uuid(), service, match, direction, price_usd, increment_secs, timestamptz '2020-01-01 00:00:00Z'
from (values
    ('telephony', '', 'outbound', 0.25, 60),
    ('telephony', '1', 'outbound', 0.014, 60),
    ('telephony', '33', 'outbound', 0.02, 60),
    ('telephony', '336', 'outbound', 0.04, 60),
    ('telephony', '337', 'outbound', 0.04, 60),
    ('telephony', '34', 'outbound', 0.02, 60),
    ('telephony', '346', 'outbound', 0.04, 60),
    ('telephony', '39', 'outbound', 0.022, 60),
    ('telephony', '393', 'outbound', 0.05, 60),
    ('telephony', '44', 'outbound', 0.016, 60),
    ('telephony', '447', 'outbound', 0.032, 60),
    ('telephony', '49', 'outbound', 0.018, 60),
    ('telephony', '491', 'outbound', 0.04, 60),
    ('telephony', '52', 'outbound', 0.02, 60),
    ('telephony', '55', 'outbound', 0.04, 60),
    ('telephony', '61', 'outbound', 0.025, 60),
    ('telephony', '614', 'outbound', 0.07, 60),
    ('telephony', '65', 'outbound', 0.03, 60),
    ('telephony', '81', 'outbound', 0.08, 60),
    ('telephony', '86', 'outbound', 0.03, 60),
    ('telephony', '91', 'outbound', 0.04, 60),
    ('telephony', '971', 'outbound', 0.2, 60),
    ('telephony', '', 'inbound', 0.01, 60),
    ('model', '', 'outbound', 0.02, 1),
    ('speech', '', 'outbound', 0.01, 1),
    ('platform', '', 'outbound', 0.01, 1),
    ('attempt', '', 'outbound', 0, 1)
) as p (service, match, direction, price_usd, increment_secs);
