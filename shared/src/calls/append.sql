-- Writes events of calls that exist and that are not known yet; answers which calls exist.
with incoming as (
    select *
    from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::text[], $11::integer[], $12::text[], $13::integer[], $14::numeric[], $15::text[],
                $16::text[], $17::timestamptz[]) with ordinality as i (
        call_id, trunk_id, source, dedup_key, carrier_call_id, status, outcome, reason, carrier_status,
        carrier_code, sip_code, answered_by, duration_seconds, price, currency, recording_url, occurred_at, n)
),
known as (
    select i.*, c.org_id
    from incoming i
    join calls c on c.id = i.call_id and c.trunk_id = i.trunk_id
),
written as (
    insert into call_events (org_id, call_id, source, dedup_key, carrier_call_id, status, outcome, reason,
                             carrier_status, carrier_code, sip_code, answered_by, duration_seconds, price,
                             currency, recording_url, occurred_at)
    select k.org_id, k.call_id, k.source, k.dedup_key, k.carrier_call_id, k.status, k.outcome, k.reason,
           k.carrier_status, k.carrier_code, k.sip_code, k.answered_by, k.duration_seconds, k.price,
           k.currency, k.recording_url, k.occurred_at
    from known k
    order by k.n
    on conflict (call_id, dedup_key) do nothing
)
select k.n as "n!" from known k
