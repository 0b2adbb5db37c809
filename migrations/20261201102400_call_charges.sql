-- Cost of a call: the prices it is made at, the hold it is made under and the charge it ends in.

-- Prices of a call, frozen when it was claimed. Equal ones of an organisation are one row.
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
    constraint price_snapshot_exists
        unique (org_id, digest)
);

create trigger price_snapshots_are_append_only
    before update or delete on price_snapshots
    for each row execute function refuse_change();
create trigger price_snapshots_are_never_emptied
    before truncate on price_snapshots
    for each statement execute function refuse_change();

select wall('price_snapshots');

-- open -> captured   the call was charged, whatever it cost
-- open -> voided     nothing is billed
create table holds (
    call_id           uuid primary key,
    org_id            uuid not null,
    wallet_id         uuid not null,
    price_snapshot_id uuid not null,
    amount_micros     bigint not null check (amount_micros >= 0),
    -- Parts taken from grants: [{"grant": id, "micros": n}]; the rest comes from no grant.
    pins              jsonb not null default '[]',
    -- Month of the wallet's cap that the hold counts in.
    cap_month         date not null,
    -- Stands in no index, so that ending a hold updates its row in place.
    state             text not null default 'open' check (state in ('open', 'captured', 'voided')),
    created_at        timestamptz not null default now(),
    ended_at          timestamptz,
    foreign key (org_id, call_id) references calls (org_id, id),
    -- Target of the charges' reference.
    constraint hold_is_charged_as_it_was_made
        unique (org_id, call_id, wallet_id, price_snapshot_id),
    constraint ended_holds_have_an_end
        check ((state = 'open') = (ended_at is null))
) with (fillfactor = 80);

-- References to wallets and prices, which are never removed or changed, are checked once for all
-- rows of a statement: that is cheaper than a foreign key, which is checked row by row.
create function refuse_strange_holds() returns trigger
    language plpgsql
as $$
begin
    if exists (select from made m
               where not exists (select from wallets w where w.org_id = m.org_id and w.id = m.wallet_id)
                  or not exists (select from price_snapshots s
                                 where s.org_id = m.org_id and s.id = m.price_snapshot_id)) then
        raise exception 'a hold is of a wallet or of prices that its organisation does not have'
            using errcode = 'foreign_key_violation', constraint = 'holds_are_of_their_organisation';
    end if;
    return null;
end
$$;

create trigger holds_are_of_their_organisation
    after insert on holds
    referencing new table as made
    for each statement execute function refuse_strange_holds();

-- Updates are not checked that way, so they may not change a reference.
create function refuse_moved_holds() returns trigger
    language plpgsql
as $$
begin
    raise exception 'a hold keeps its call, its wallet and its prices'
        using errcode = 'check_violation', constraint = 'holds_keep_their_sides';
end
$$;

create trigger holds_keep_their_sides
    before update of call_id, org_id, wallet_id, price_snapshot_id on holds
    for each row execute function refuse_moved_holds();

select wall('holds');

-- Calls whose charge is to be made or looked at again. Appended when a call ends or is refined,
-- removed by the settlement: an insert here waits for no lock.
create table charges_due (
    id      bigint generated always as identity primary key,
    call_id uuid not null,
    since   timestamptz not null default now(),
    -- Moved on when the database refused to settle the call.
    look_at timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Settlement is for the platform alone.
alter table charges_due enable row level security;
alter table charges_due force row level security;
create policy system
    on charges_due
    to peal_system
    using (true)
    with check (true);

-- Charges of calls. A correction is a row that takes the one before back, and a row of its own.
create table charges (
    id                uuid primary key,
    org_id            uuid not null,
    user_id           uuid not null,
    wallet_id         uuid not null,
    call_id           uuid not null,
    -- Counts from 1: 2 takes 1 back, 3 is the corrected charge, and so on.
    version           integer not null check (version > 0),
    reverses_id       uuid references charges (id),
    transaction_id    uuid not null,
    price_snapshot_id uuid not null,
    billed_seconds    integer not null,
    -- Usage lines: [{service, match, quantity, unit, price_usd, base_micros, retail_micros}]
    lines             jsonb not null,
    -- Parts taken from grants, negative when given back: [{"grant": id, "micros": n}].
    grants            jsonb not null default '[]',
    base_micros       bigint not null,
    retail_micros     bigint not null,
    markup_micros     bigint not null default 0,
    commission_micros bigint not null default 0,
    -- The carrier's price of the call.
    carrier_price     numeric(12, 6),
    carrier_currency  text,
    created_at        timestamptz not null default now(),
    -- The hold's wallet and prices, in one reference. The call itself is not referred to: that
    -- would lock its row, for which settling must not wait.
    constraint charge_is_of_its_hold
        foreign key (org_id, call_id, wallet_id, price_snapshot_id)
        references holds (org_id, call_id, wallet_id, price_snapshot_id),
    constraint call_is_charged_once
        unique (call_id, version),
    constraint retail_is_split
        check (abs(markup_micros) + abs(commission_micros) <= abs(retail_micros))
);

create index charges_by_user
    on charges (org_id, user_id, created_at desc, id desc);
create index charges_by_transaction
    on charges (transaction_id);
-- Most charges take nothing back and need no place in this index.
create unique index charge_is_taken_back_once
    on charges (reverses_id)
    where reverses_id is not null;

create trigger charges_are_append_only
    before update or delete on charges
    for each row execute function refuse_change();
create trigger charges_are_never_emptied
    before truncate on charges
    for each statement execute function refuse_change();

-- References to transactions are checked in sets as well.
create function refuse_strange_charges() returns trigger
    language plpgsql
as $$
begin
    if exists (select from made m
               where not exists (select from ledger_transactions t
                                 where t.org_id = m.org_id and t.id = m.transaction_id)) then
        raise exception 'a charge is of a transaction that its organisation does not have'
            using errcode = 'foreign_key_violation', constraint = 'charges_are_of_their_transaction';
    end if;
    return null;
end
$$;

create trigger charges_are_of_their_transaction
    after insert on charges
    referencing new table as made
    for each statement execute function refuse_strange_charges();

select wall('charges');
