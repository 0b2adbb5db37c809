-- Writes holds down. The conditions on the wallet hold already, because it is locked and was
-- looked at: they stand here so that no mistake above can ever spend what is not there.
with taken as (
    update wallets w
    set held_micros = w.held_micros + t.amount,
        cap_held_micros = t.amount + case when w.cap_month = t.month then w.cap_held_micros else 0 end,
        cap_spent_micros = case when w.cap_month = t.month then w.cap_spent_micros else 0 end,
        cap_month = t.month,
        updated_at = now()
    from unnest($1::uuid[], $2::bigint[], $3::date[]) as t (id, amount, month)
    where w.id = t.id
      and (t.amount = 0
           or w.posted_micros - w.held_micros >= t.amount
              and (w.cap_micros is null
                   or t.amount + case when w.cap_month = t.month
                                      then w.cap_spent_micros + w.cap_held_micros else 0 end <= w.cap_micros))
    returning w.id
),
pinned as (
    update grants g
    set pinned_micros = g.pinned_micros + p.amount
    from unnest($4::uuid[], $5::bigint[]) as p (id, amount)
    where g.id = p.id
),
held as (
    insert into holds (call_id, org_id, wallet_id, price_snapshot_id, amount_micros, pins, cap_month)
    select *
    from unnest($6::uuid[], $7::uuid[], $8::uuid[], $9::uuid[], $10::bigint[], $11::jsonb[], $12::date[])
)
select count(*) as "n!" from taken
