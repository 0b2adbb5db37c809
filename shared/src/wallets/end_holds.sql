-- Ends holds, frees what they had pinned, and counts what was spent against the running month.
with moved as (
    select m.id, sum(m.held) as held,
           coalesce(sum(m.held) filter (where m.month = w.cap_month), 0) as cap_held,
           coalesce(sum(m.spent) filter (where m.month = w.cap_month), 0) as cap_spent
    from unnest($1::uuid[], $2::date[], $3::bigint[], $4::bigint[]) as m (id, month, held, spent)
    join wallets w on w.id = m.id
    group by m.id
),
counted as (
    update wallets w
    set held_micros = w.held_micros - m.held,
        cap_held_micros = w.cap_held_micros - m.cap_held,
        cap_spent_micros = w.cap_spent_micros + m.cap_spent,
        updated_at = now()
    from moved m
    where w.id = m.id
),
freed as (
    update grants g
    set pinned_micros = g.pinned_micros - p.amount
    from unnest($5::uuid[], $6::bigint[]) as p (id, amount)
    where g.id = p.id
),
ended as (
    update holds h
    set state = case when e.captured then 'captured' else 'voided' end, ended_at = now()
    from unnest($7::uuid[], $8::boolean[]) as e (call_id, captured)
    where h.call_id = e.call_id
      and h.state = 'open'
    returning h.call_id
)
select count(*) as "n!" from ended
