-- Everything on a trunk that wants slots: its running batches, and each organisation's direct
-- calls. `due` is counted no further than the slots there are.
with lanes as (
    select b.org_id, b.id as batch_id, b.turn, b.batch_size::bigint as lane_limit,
           (select count(*) from calls c
            where c.trunk_id = $1 and c.live and c.org_id = b.org_id and c.batch_id = b.id) as lane_live,
           (select count(*) from (
                select from batch_data d
                where d.batch_id = b.id and d.status = 'not_started' and d.due_at <= now()
                -- One that found no money tries with a single row.
                limit case when b.starved_since is null then $2::bigint else 1 end) waiting) as due
    from call_batches b
    where b.trunk_id = $1
      and b.status = 'in_progress'
      and b.launched_at is not null
      and (b.starved_until is null or b.starved_until <= now())
      and b.org_id = any ($3)
    union all
    select q.org_id, null, 0, $2, 0, count(*)
    from calls q
    where q.trunk_id = $1
      and q.queued
      and q.org_id = any ($3)
    group by q.org_id
),
busy as (
    select c.org_id, count(*) as live
    from calls c
    where c.org_id = any ($3)
      and c.live
    group by c.org_id
)
select l.org_id as "org_id!", l.batch_id,
       case when l.batch_id is null then coalesce(s.direct_turn, 0) else l.turn end as "turn!",
       l.lane_limit as "lane_limit!", l.lane_live as "lane_live!", l.due as "due!",
       coalesce(s.turn, 0) as "org_turn!",
       o.max_concurrent_calls::bigint as "org_limit!",
       coalesce(u.live, 0) as "org_live!"
from lanes l
left join busy u on u.org_id = l.org_id
join organizations o on o.id = l.org_id
left join dial_shares s on s.trunk_id = $1 and s.org_id = l.org_id
where l.due > 0
