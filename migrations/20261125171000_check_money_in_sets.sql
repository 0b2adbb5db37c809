-- What a hold and a charge refer to, checked once for all rows of a statement instead of row by
-- row. A set can be checked that way where what is referred to is never removed or changed:
-- prices, transactions and wallets. Calls and holds are still referred to row by row.

create trigger wallets_are_never_removed before delete on wallets
    for each row execute function refuse_change();
create trigger wallets_are_never_emptied before truncate on wallets
    for each statement execute function refuse_change();
create trigger wallets_stay_whose_they_are before update of id, org_id, user_id, account_id on wallets
    for each row execute function refuse_change();
create trigger price_snapshots_are_never_emptied before truncate on price_snapshots
    for each statement execute function refuse_change();

-- A charge is of its hold's wallet and prices: one reference instead of three.
alter table holds add constraint hold_is_charged_as_it_was_made
    unique (org_id, call_id, wallet_id, price_snapshot_id);
alter table charges
    drop constraint charges_org_id_call_id_fkey,
    drop constraint charges_org_id_wallet_id_fkey,
    drop constraint charges_org_id_price_snapshot_id_fkey,
    drop constraint charges_org_id_transaction_id_fkey,
    add constraint charge_is_of_its_hold foreign key (org_id, call_id, wallet_id, price_snapshot_id)
        references holds (org_id, call_id, wallet_id, price_snapshot_id) not valid;
alter table holds
    drop constraint holds_org_id_call_id_key,
    drop constraint holds_org_id_wallet_id_fkey,
    drop constraint holds_org_id_price_snapshot_id_fkey;

-- Most charges take nothing back, and need no place in an index that says so.
alter table charges drop constraint charges_reverses_id_key;
create unique index charge_is_taken_back_once on charges (reverses_id) where reverses_id is not null;

-- A hold that ends stays where it is when no index has its state.
drop index holds_open;

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
create trigger holds_are_of_their_organisation after insert on holds
    referencing new table as made for each statement execute function refuse_strange_holds();

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
create trigger charges_are_of_their_transaction after insert on charges
    referencing new table as made for each statement execute function refuse_strange_charges();

-- Neither the sides of a hold nor those of a charge ever change.
create function refuse_moved_holds() returns trigger
    language plpgsql
as $$
begin
    raise exception 'a hold keeps its call, its wallet and its prices'
        using errcode = 'check_violation', constraint = 'holds_keep_their_sides';
end
$$;
create trigger holds_keep_their_sides before update of call_id, org_id, wallet_id, price_snapshot_id on holds
    for each row execute function refuse_moved_holds();
