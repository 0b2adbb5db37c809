-- Writes charges down.
insert into charges (id, org_id, user_id, wallet_id, call_id, version, reverses_id, transaction_id, price_snapshot_id,
                     billed_seconds, lines, grants, base_micros, retail_micros, markup_micros, commission_micros,
                     carrier_price, carrier_currency)
select *
from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::integer[], $7::uuid[], $8::uuid[],
            $9::uuid[], $10::integer[], $11::jsonb[], $12::jsonb[], $13::bigint[], $14::bigint[], $15::bigint[],
            $16::bigint[], $17::numeric[], $18::text[])
