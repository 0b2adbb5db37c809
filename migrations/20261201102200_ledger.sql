-- Money: wallets, the double-entry ledger under them, and grants.
--
-- Amounts are whole micro-dollars (1e-6 USD). The ledger keeps every movement for ever: a
-- transaction's entries sum to zero and nothing there is changed or removed. Wallets and grants
-- are projections of it that are locked and changed; `peal-api admin ledger verify` recomputes
-- them.

-- Places where money is. `mint`, `expiry`, `adjustment` and `platform_revenue` are the platform's
-- sides of an organisation's money; they have no running balance, so that no statement locks them.
create table ledger_accounts (
    id        uuid primary key,
    org_id    uuid not null references organizations (id),
    kind      text not null check (kind in (
                  'wallet', 'mint', 'expiry', 'adjustment', 'platform_revenue', 'reseller_earnings')),
    wallet_id uuid,
    currency  text not null default 'USD' check (currency = 'USD'),
    unique (org_id, id),
    constraint wallet_accounts_have_a_wallet
        check ((kind = 'wallet') = (wallet_id is not null)),
    constraint ledger_account_exists
        unique nulls not distinct (org_id, kind, wallet_id, currency)
);

create trigger ledger_accounts_are_append_only
    before update or delete on ledger_accounts
    for each row execute function refuse_change();

select wall('ledger_accounts');

-- Wallets: one per user and one per organisation, made with them by a trigger below.
create table wallets (
    id               uuid primary key,
    org_id           uuid not null references organizations (id),
    -- Null for the organisation's own wallet.
    user_id          uuid,
    account_id       uuid not null unique,
    -- Sum of the entries, and of the open holds.
    posted_micros    bigint not null default 0,
    held_micros      bigint not null default 0 constraint held_is_not_negative check (held_micros >= 0),
    -- Number of entries: the next one's account_seq is one more.
    entries          bigint not null default 0 check (entries >= 0),
    -- The most that may be spent in a month; null is no limit.
    cap_micros       bigint constraint cap_is_not_negative check (cap_micros >= 0),
    -- The month, in the organisation's time zone, that the two numbers below are about.
    cap_month        date not null default date '1970-01-01',
    cap_spent_micros bigint not null default 0,
    cap_held_micros  bigint not null default 0 check (cap_held_micros >= 0),
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    unique (org_id, id),
    constraint wallet_exists
        unique nulls not distinct (org_id, user_id),
    foreign key (org_id, user_id) references users (org_id, id),
    foreign key (org_id, account_id) references ledger_accounts (org_id, id)
        deferrable initially deferred
) with (fillfactor = 50);

-- Holds refer to wallets and are checked in sets, which needs wallets that stay as they are.
create trigger wallets_are_never_removed
    before delete on wallets
    for each row execute function refuse_change();
create trigger wallets_are_never_emptied
    before truncate on wallets
    for each statement execute function refuse_change();
create trigger wallets_stay_whose_they_are
    before update of id, org_id, user_id, account_id on wallets
    for each row execute function refuse_change();

select wall('wallets');

create table ledger_transactions (
    id                uuid primary key,
    -- Owner of the money.
    org_id            uuid not null references organizations (id),
    kind              text not null check (kind in (
                          'grant', 'transfer', 'usage', 'adjustment', 'expiry', 'reversal')),
    -- The same thing posted twice is one transaction.
    idem_key          text not null check (length(idem_key) between 1 and 200),
    -- A reversal may take back a part: one call of the many that were folded into a transaction.
    reverses_id       uuid references ledger_transactions (id),
    -- Null when the platform itself moved the money.
    actor_user_id     uuid,
    reason            text,
    -- Sums over the calls that were folded into usage; negative in its reversal.
    calls             integer not null default 0,
    billed_seconds    bigint not null default 0,
    base_micros       bigint not null default 0,
    retail_micros     bigint not null default 0,
    -- The reseller who earns from it, and the amounts.
    reseller_org_id   uuid references organizations (id),
    markup_micros     bigint not null default 0,
    commission_micros bigint not null default 0,
    created_at        timestamptz not null default clock_timestamp(),
    unique (org_id, id),
    constraint ledger_transaction_exists
        unique (org_id, kind, idem_key),
    constraint reversals_reverse_something
        check ((kind = 'reversal') = (reverses_id is not null)),
    constraint adjustments_have_a_reason
        check (kind <> 'adjustment' or length(reason) > 0),
    constraint only_resellers_earn
        check (reseller_org_id is not null or (markup_micros = 0 and commission_micros = 0))
);

create index ledger_transactions_by_reseller
    on ledger_transactions (reseller_org_id, created_at)
    where reseller_org_id is not null;

create trigger ledger_transactions_are_append_only
    before update or delete on ledger_transactions
    for each row execute function refuse_change();
create trigger ledger_transactions_are_never_emptied
    before truncate on ledger_transactions
    for each statement execute function refuse_change();

select wall('ledger_transactions');

-- Resellers read their earnings from customers, and nothing else of the customers'.
create policy reseller_sees
    on ledger_transactions
    for select
    to peal_tenant
    using (reseller_org_id = (select tenant()));

create table ledger_entries (
    id                   bigint generated always as identity primary key,
    -- Owner of the account.
    org_id               uuid not null,
    transaction_id       uuid not null references ledger_transactions (id),
    account_id           uuid not null,
    entry_type           text not null check (entry_type in (
                             'grant', 'transfer_in', 'transfer_out', 'usage', 'overage', 'adjustment',
                             'expiry', 'reversal', 'revenue', 'markup', 'commission', 'mint')),
    amount_micros        bigint not null constraint entries_move_something check (amount_micros <> 0),
    grant_id             uuid,
    -- Balance behind this entry and its number in the wallet, without gaps; null for other accounts.
    balance_after_micros bigint,
    account_seq          bigint check (account_seq > 0),
    created_at           timestamptz not null default clock_timestamp(),
    foreign key (org_id, account_id) references ledger_accounts (org_id, id),
    constraint ledger_entry_has_its_number
        unique (account_id, account_seq)
);

create index ledger_entries_by_transaction
    on ledger_entries (transaction_id);
create index ledger_entries_by_account
    on ledger_entries (account_id, id);

create trigger ledger_entries_are_append_only
    before update or delete on ledger_entries
    for each row execute function refuse_change();
create trigger ledger_entries_are_never_emptied
    before truncate on ledger_entries
    for each statement execute function refuse_change();

create function refuse_unbalanced() returns trigger
    language plpgsql
as $$
begin
    if (select sum(amount_micros) from ledger_entries where transaction_id = new.transaction_id) <> 0 then
        raise exception 'ledger transaction % does not sum to zero', new.transaction_id
            using errcode = 'check_violation', constraint = 'ledger_transaction_sums_to_zero';
    end if;
    return null;
end
$$;

create constraint trigger ledger_transaction_sums_to_zero
    after insert on ledger_entries
    deferrable initially deferred
    for each row execute function refuse_unbalanced();

select wall('ledger_entries');

-- Money given for a purpose or a time. Spent by priority, then earliest expiry, then age; the rest
-- of a wallet (adjustments, less overage) never expires and is spent last.
create table grants (
    id               uuid primary key,
    org_id           uuid not null,
    wallet_id        uuid not null,
    source           text not null check (source in ('mint', 'transfer')),
    amount_micros    bigint not null check (amount_micros > 0),
    remaining_micros bigint not null,
    -- Part of the remainder that open holds have taken.
    pinned_micros    bigint not null default 0,
    priority         smallint not null default 50 check (priority between 0 and 100),
    expires_at       timestamptz,
    locked           boolean not null default false,
    note             text,
    transaction_id   uuid not null references ledger_transactions (id),
    granted_by       uuid,
    -- Number of times that some of it expired: part of the key of each expiry.
    expiries         integer not null default 0,
    created_at       timestamptz not null default now(),
    unique (org_id, id),
    foreign key (org_id, wallet_id) references wallets (org_id, id),
    constraint grants_hold_what_they_say
        check (0 <= pinned_micros and pinned_micros <= remaining_micros and remaining_micros <= amount_micros)
) with (fillfactor = 70);

create index grants_to_spend
    on grants (wallet_id, priority, expires_at, created_at, id)
    where remaining_micros > 0;
create index grants_of_wallet
    on grants (wallet_id, created_at desc);
create index grants_to_expire
    on grants (expires_at)
    where remaining_micros > 0;

select wall('grants');

-- Amounts that a transaction took from a grant; negative when given back. The ledger's view of
-- grants.
create table grant_uses (
    transaction_id uuid not null references ledger_transactions (id),
    grant_id       uuid not null references grants (id),
    org_id         uuid not null,
    amount_micros  bigint not null check (amount_micros <> 0),
    primary key (transaction_id, grant_id)
);

create index grant_uses_by_grant
    on grant_uses (grant_id);

create trigger grant_uses_are_append_only
    before update or delete on grant_uses
    for each row execute function refuse_change();
create trigger grant_uses_are_never_emptied
    before truncate on grant_uses
    for each statement execute function refuse_change();

select wall('grant_uses');

-- Wallets come with their owners, so that none lacks one.
create function open_wallet() returns trigger
    language plpgsql
as $$
declare
    wallet  uuid := gen_random_uuid();
    account uuid := gen_random_uuid();
    org     uuid;
    person  uuid;
begin
    if tg_table_name = 'users' then
        org := new.org_id;
        person := new.id;
    else
        org := new.id;
    end if;
    insert into ledger_accounts (id, org_id, kind, wallet_id) values (account, org, 'wallet', wallet);
    insert into wallets (id, org_id, user_id, account_id) values (wallet, org, person, account);
    return null;
end
$$;

create trigger organizations_open_a_wallet
    after insert on organizations
    for each row execute function open_wallet();
create trigger users_open_a_wallet
    after insert on users
    for each row execute function open_wallet();
