-- Turns locked rows into calls. The call is inserted first and the row moves only if that
-- worked: a number that two batches share is on the phone once.
with chosen as (
    select * from unnest($3::uuid[], $4::uuid[], $5::boolean[]) as c (row_id, call_id, hipaa_compliance)
),
made as (
    insert into calls (id, org_id, user_id, agent_id, phone_id, trunk_id, batch_id, row_id, attempt_no,
                       from_number, to_number, variable_values, hipaa_compliance, status, worker, submit_count,
                       submitted_at)
    select c.call_id, d.org_id, b.user_id, b.agent_id, b.caller_phone_id, $1, d.batch_id, d.id, d.attempts + 1,
           p.phone_number, d.to_phonenumber, d.variable_values, c.hipaa_compliance, 'submitting', $2, 1, now()
    from batch_data d
    join chosen c on c.row_id = d.id
    join call_batches b on b.id = d.batch_id and b.status = 'in_progress'
    join phone_numbers p on p.id = b.caller_phone_id
    where d.id = any ($3)
    on conflict do nothing
    returning *
),
moved as (
    -- By id and not by join: a join is planned for a tenth of the whole table.
    update batch_data d
    set status = 'calling', attempts = d.attempts + 1, outcome = null, reason = null, error_message = null,
        updated_at = now()
    where d.id = any (array (select row_id from made))
)
select m.id as "id!", m.org_id as "org_id!", m.batch_id, m.to_number as "to_number!: E164",
       m.from_number as "from_number!: E164", m.submit_count as "submit_count!",
       t.ring_timeout_secs as "ring_timeout_secs!", a.session_timeout_secs as "session_timeout_secs!",
       a.recording_enabled and not m.hipaa_compliance as "recording_enabled!",
       a.machine_detection as "machine_detection!", clock_timestamp() as "claimed_at!"
from made m
join agents a on a.id = m.agent_id
join trunks t on t.id = $1
