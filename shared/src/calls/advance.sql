-- Moves the trunk's clock and everybody's turns. A batch that found no money is not looked at
-- again for two seconds; one that found some is not starved any more.
with org_turns as (
    insert into dial_shares (trunk_id, org_id, turn, direct_turn)
    select $1, o.org_id, o.turn, coalesce(d.turn, 0)
    from unnest($4::uuid[], $5::bigint[]) as o (org_id, turn)
    left join unnest($8::uuid[], $9::bigint[]) as d (org_id, turn) on d.org_id = o.org_id
    on conflict (trunk_id, org_id) do update
    set turn = excluded.turn,
        direct_turn = greatest(dial_shares.direct_turn, excluded.direct_turn)
),
batch_turns as (
    update call_batches b
    set turn = n.turn,
        starved_since = case when n.starved is not null then coalesce(b.starved_since, now())
                             when not n.fed then b.starved_since end,
        starved_reason = case when n.starved is not null then n.starved
                              when not n.fed then b.starved_reason end,
        starved_until = case when n.starved is not null then now() + interval '2 seconds'
                             when not n.fed then b.starved_until end
    from unnest($6::uuid[], $7::bigint[], $11::boolean[], $12::text[]) as n (id, turn, fed, starved)
    where b.id = n.id
)
update pacers
set next_slot = case when $10 then $2 else next_slot end,
    turn = $3
where trunk_id = $1
returning clock_timestamp() as "now!"
