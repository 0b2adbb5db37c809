-- Writes charges down.
insert into charges (id, org_id, user_id, wallet_id, call_id, version, reverses_id, transaction_id, price_snapshot_id,
                     billed_seconds, lines, grants, base_micros, retail_micros, markup_micros, commission_micros,
                     carrier_price, carrier_currency)
select id, org_id, user_id, wallet_id, call_id, version, reverses_id, transaction_id, price_snapshot_id,
       billed_seconds, lines, grants, base_micros, retail_micros, markup_micros, commission_micros,
       carrier_price, carrier_currency
from jsonb_to_recordset($1) as n (
    id uuid, org_id uuid, user_id uuid, wallet_id uuid, call_id uuid, version integer, reverses_id uuid,
    transaction_id uuid, price_snapshot_id uuid, billed_seconds integer, lines jsonb, grants jsonb,
    base_micros bigint, retail_micros bigint, markup_micros bigint, commission_micros bigint,
    carrier_price numeric, carrier_currency text)
