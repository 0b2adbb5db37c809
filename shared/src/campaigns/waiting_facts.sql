-- Everything that can stand between a batch's rows and their calls.
select b.launched_at is not null as "launched!",
       b.starved_reason as "starved: Refusal",
       coalesce(t.status = 'active', false) as "trunk_active!",
       t.status_reason as "trunk_reason?",
       p.trunk_id is not null as "has_pacer!",
       (select count(*) from calls c where c.trunk_id = b.trunk_id and c.live) as "trunk_live!",
       t.max_concurrent as "trunk_limit?",
       (select count(*) from calls c where c.org_id = b.org_id and c.live) as "org_live!",
       o.max_concurrent_calls as org_limit,
       (select count(*) from calls c where c.trunk_id = b.trunk_id and c.live and c.batch_id = b.id) as "batch_live!",
       (select count(*) from calls c
        where c.trunk_id = b.trunk_id and c.live and c.batch_id = b.id and c.status <> 'deferred') as "under_way!",
       (select min(c.check_at) from calls c
        where c.trunk_id = b.trunk_id and c.live and c.batch_id = b.id and c.status = 'deferred') as deferred_until,
       exists (select from batch_data d where d.batch_id = b.id and d.status = 'not_started') as "rows_left!",
       exists (select from batch_data d
               where d.batch_id = b.id and d.status = 'not_started' and d.due_at <= now()) as "due!",
       (select min(d.due_at) from batch_data d where d.batch_id = b.id and d.status = 'not_started') as next_due,
       not exists (select from batch_data d
                   where d.batch_id = b.id and d.status = 'not_started' and d.due_at <= now()
                     and not exists (select from calls c
                                     where c.org_id = d.org_id and c.to_number = d.to_phonenumber and c.live))
           as "busy!",
       -- As the pacer reckons it; a power that is too small for a number would be an error.
       case when p.slowed_at is null then 1
            else 1 + (p.slowdown - 1)
                     * power(0.5, least(greatest(extract(epoch from now() - p.slowed_at), 0), 600)::double precision / 10)
       end as "slowdown?",
       p.next_slot as "next_slot?",
       -- The clock of a trunk stands still while nobody takes its slots.
       coalesce(p.next_slot > clock_timestamp() - interval '5 seconds', false) as "pace_used!"
from call_batches b
join organizations o on o.id = b.org_id
left join trunks t on t.id = b.trunk_id
left join pacers p on p.trunk_id = b.trunk_id
where b.id = $1
