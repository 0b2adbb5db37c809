-- Locks due rows, with all that their price depends on. Rows that are locked are somebody
-- else's; a number that is on the phone waits. That is looked up row by row, hence the offset:
-- a join would read all calls that are under way for a handful of rows.
with wanted as materialized (
    select w.batch_id, w.n, w.place, b.org_id, u.id as wallet_id, a.session_timeout_secs,
           a.hipaa_compliance or o.hipaa_compliance as hipaa_compliance,
           a.model_config ->> 'model_name' as model, a.tts_config ->> 'tts_model_name' as speech,
           t.reseller_org_id, t.org_type, t.markup_percent, t.commission_percent
    from unnest($1::uuid[], $2::bigint[]) with ordinality as w (batch_id, n, place)
    join call_batches b on b.id = w.batch_id and b.status = 'in_progress'
    join agents a on a.id = b.agent_id
    join organizations o on o.id = b.org_id
    join wallets u on u.org_id = b.org_id and u.user_id = b.user_id
    left join earning_terms t on t.org_id = b.org_id
)
select r.id as "row_id!: RowId", r.to_phonenumber as "to!: E164", w.batch_id as "batch_id!: BatchId",
       w.org_id as "org_id!: OrgId", w.wallet_id as "wallet_id!: WalletId",
       w.session_timeout_secs as "session_timeout_secs!", w.hipaa_compliance as "hipaa_compliance!",
       w.model, w.speech,
       w.reseller_org_id as "reseller_org_id?: OrgId", w.org_type as "org_type?",
       w.markup_percent as "markup_percent?", w.commission_percent as "commission_percent?",
       (select edition from price_book) as "edition!"
from wanted w
cross join lateral (
    select d.id, d.to_phonenumber, d.due_at, d.row_no
    from batch_data d
    where d.batch_id = w.batch_id
      and d.status = 'not_started'
      and d.due_at <= now()
      and not exists (select from calls l
                      where l.org_id = d.org_id and l.to_number = d.to_phonenumber and l.live
                      offset 0)
    order by d.due_at, d.row_no
    limit w.n
    for update of d skip locked
) r
