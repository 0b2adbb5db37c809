-- Writes folded calls back, and appends those to be settled.
with news as (
    select *
    from jsonb_to_recordset($1) as n (
        id uuid, status text, outcome text, reason text, error_message text, carrier_call_id text,
        carrier_status text, carrier_code text, sip_code integer, answered_by text, dialed_at timestamptz,
        ringing_at timestamptz, answered_at timestamptz, ended_at timestamptz, duration_seconds integer,
        price numeric, currency text, recording_url text, conflicts integer, check_at timestamptz, due boolean)
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
