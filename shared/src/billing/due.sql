-- Calls that have ended, what was held for them and what was charged last.
select c.id as "call_id!: CallId", c.org_id as "org_id!: OrgId", c.user_id as "user_id!: UserId",
       c.duration_seconds, c.carrier_call_id is not null as "attempted!", c.carrier_price, c.carrier_currency,
       h.wallet_id as "wallet_id!: WalletId", h.price_snapshot_id as "snapshot_id!: SnapshotId",
       h.amount_micros as "held!: Usd", h.pins as "pins!", h.cap_month as "cap_month!", h.state = 'open' as "open!",
       k.id as "charge_id?: ChargeId", k.version as "version?", k.transaction_id as "transaction_id?: TransactionId",
       k.billed_seconds as "billed_seconds?", k.lines as "lines?", k.grants as "grants?",
       k.base_micros as "base?: Usd", k.retail_micros as "retail?: Usd", k.markup_micros as "markup?: Usd",
       k.commission_micros as "commission?: Usd"
from calls c
join holds h on h.call_id = c.id
left join lateral (
    select *
    from charges k
    where k.call_id = c.id
    order by k.version desc
    limit 1
) k on true
where c.id = any ($1)
  and c.status = 'final'
order by h.wallet_id, c.id
