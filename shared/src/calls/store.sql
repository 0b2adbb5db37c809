-- Writes folded calls back, and appends those to be settled.
with news as (
    select *
    from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::integer[], $10::text[], $11::timestamptz[], $12::timestamptz[], $13::timestamptz[],
                $14::timestamptz[], $15::integer[], $16::numeric[], $17::text[], $18::text[], $19::integer[],
                $20::timestamptz[], $21::boolean[]) as n (
        id, status, outcome, reason, error_message, carrier_call_id, carrier_status, carrier_code, sip_code,
        answered_by, dialed_at, ringing_at, answered_at, ended_at, duration_seconds, price, currency,
        recording_url, conflicts, check_at, due)
),
due as (
    insert into charges_due (call_id)
    select id
    from news
    where due
)
update calls c
set status = n.status,
    outcome = n.outcome,
    reason = n.reason,
    error_message = n.error_message,
    carrier_call_id = n.carrier_call_id,
    carrier_status = n.carrier_status,
    carrier_code = n.carrier_code,
    sip_code = n.sip_code,
    answered_by = n.answered_by,
    dialed_at = n.dialed_at,
    ringing_at = n.ringing_at,
    answered_at = n.answered_at,
    ended_at = n.ended_at,
    duration_seconds = n.duration_seconds,
    carrier_price = n.price,
    carrier_currency = n.currency,
    recording_url = n.recording_url,
    conflicts = n.conflicts,
    check_at = n.check_at,
    changed_at = now()
from news n
where c.id = n.id
