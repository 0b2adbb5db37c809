-- What does not add up. One branch per rule; its name says what should be true.
with entries as (
    select e.transaction_id, e.account_id, e.account_seq, e.entry_type, e.amount_micros as amount,
           e.balance_after_micros as balance_after, e.grant_id, a.kind, a.wallet_id
    from ledger_entries e
    join ledger_accounts a on a.id = e.account_id
),
by_transaction as (
    select transaction_id, sum(amount) as total,
           coalesce(sum(amount) filter (where kind = 'wallet'), 0) as wallets,
           coalesce(-sum(amount) filter (where kind = 'wallet' and amount < 0), 0) as paid,
           coalesce(sum(amount) filter (where kind = 'platform_revenue'), 0) as revenue,
           coalesce(sum(amount) filter (where entry_type = 'markup'), 0) as markup,
           coalesce(sum(amount) filter (where entry_type = 'commission'), 0) as commission
    from entries
    group by transaction_id
),
uses as (
    select transaction_id, sum(amount_micros) as total from grant_uses group by transaction_id
),
charged as (
    select transaction_id, sum(case when reverses_id is null then 1 else -1 end) as calls,
           sum(billed_seconds) as seconds, sum(base_micros) as base, sum(retail_micros) as retail,
           sum(markup_micros) as markup, sum(commission_micros) as commission
    from charges
    group by transaction_id
)
select 'transaction_sums_to_zero' as "rule!", transaction_id::text as "of!",
       jsonb_build_object('sum', total) as "found!"
from by_transaction
where total <> 0
union all
select 'transaction_has_entries', t.id::text, jsonb_build_object('kind', t.kind)
from ledger_transactions t
where not exists (select from ledger_entries e where e.transaction_id = t.id)
union all
select 'wallet_is_its_entries', w.id::text,
       jsonb_build_object('posted', w.posted_micros, 'sum', coalesce(e.total, 0), 'entries', w.entries,
                          'count', coalesce(e.count, 0), 'first', e.first, 'last', e.last)
from wallets w
left join (
    select account_id, sum(amount) as total, count(*) as count, min(account_seq) as first, max(account_seq) as last
    from entries
    group by account_id
) e on e.account_id = w.account_id
where w.posted_micros <> coalesce(e.total, 0)
   or w.entries <> coalesce(e.count, 0)
   or e.first <> 1
   or e.last <> e.count
union all
select 'entries_carry_the_balance', account_id::text,
       jsonb_build_object('entry', account_seq, 'balance_after', balance_after, 'sum', so_far)
from (
    select account_id, account_seq, balance_after, sum(amount) over (partition by account_id order by account_seq) as so_far
    from entries
    where kind = 'wallet'
) running
where balance_after is distinct from so_far
union all
select 'wallet_holds_its_holds', w.id::text,
       jsonb_build_object('held', w.held_micros, 'sum', coalesce(h.total, 0))
from wallets w
left join (
    select wallet_id, sum(amount_micros) as total from holds where state = 'open' group by wallet_id
) h on h.wallet_id = w.id
where w.held_micros <> coalesce(h.total, 0)
union all
select 'wallet_counts_its_month', w.id::text,
       jsonb_build_object('cap_held', w.cap_held_micros, 'held', coalesce(h.held, 0),
                          'cap_spent', w.cap_spent_micros, 'spent', coalesce(h.spent, 0))
from wallets w
left join (
    select h.wallet_id, h.cap_month, sum(h.amount_micros) filter (where h.state = 'open') as held,
           sum(k.retail) as spent
    from holds h
    left join (select call_id, sum(retail_micros) as retail from charges group by call_id) k on k.call_id = h.call_id
    group by h.wallet_id, h.cap_month
) h on h.wallet_id = w.id and h.cap_month = w.cap_month
where w.cap_held_micros <> coalesce(h.held, 0)
   or w.cap_spent_micros <> coalesce(h.spent, 0)
union all
select 'grant_is_its_uses', g.id::text,
       jsonb_build_object('amount', g.amount_micros, 'remaining', g.remaining_micros, 'used', coalesce(u.total, 0))
from grants g
left join (
    select grant_id, sum(amount_micros) as total from grant_uses group by grant_id
) u on u.grant_id = g.id
where g.amount_micros - g.remaining_micros <> coalesce(u.total, 0)
union all
select 'grant_pins_its_holds', g.id::text,
       jsonb_build_object('pinned', g.pinned_micros, 'sum', coalesce(p.total, 0))
from grants g
left join (
    select p."grant", sum(p.micros) as total
    from holds h
    cross join lateral jsonb_to_recordset(h.pins) as p ("grant" uuid, micros bigint)
    where h.state = 'open'
    group by p."grant"
) p on p."grant" = g.id
where g.pinned_micros <> coalesce(p.total, 0)
union all
select 'grant_was_posted', g.id::text,
       jsonb_build_object('amount', g.amount_micros, 'posted', e.amount)
from grants g
left join (
    select grant_id, transaction_id, wallet_id, sum(amount) as amount
    from entries
    where entry_type in ('grant', 'transfer_in')
    group by grant_id, transaction_id, wallet_id
) e on e.grant_id = g.id and e.transaction_id = g.transaction_id and e.wallet_id = g.wallet_id
where e.amount is distinct from g.amount_micros
union all
select 'grants_pay_no_more_than_was_paid', t.id::text,
       jsonb_build_object('kind', t.kind, 'wallets', b.wallets, 'uses', coalesce(u.total, 0))
from ledger_transactions t
join by_transaction b on b.transaction_id = t.id
left join uses u on u.transaction_id = t.id
where case t.kind
          when 'reversal' then coalesce(u.total, 0) not between -b.wallets and 0
          when 'expiry' then coalesce(u.total, 0) <> b.paid
          else coalesce(u.total, 0) not between 0 and b.paid
      end
union all
select 'charges_are_their_transaction', t.id::text,
       jsonb_build_object('calls', t.calls, 'charged_calls', k.calls, 'seconds', t.billed_seconds,
                          'charged_seconds', k.seconds, 'retail', t.retail_micros, 'charged', k.retail,
                          'base', t.base_micros, 'charged_base', k.base)
from ledger_transactions t
left join charged k on k.transaction_id = t.id
where (t.calls, t.billed_seconds, t.base_micros, t.retail_micros, t.markup_micros, t.commission_micros)
      is distinct from
      (coalesce(k.calls, 0), coalesce(k.seconds, 0), coalesce(k.base, 0), coalesce(k.retail, 0),
       coalesce(k.markup, 0), coalesce(k.commission, 0))
union all
select 'shares_are_the_retail_price', t.id::text,
       jsonb_build_object('retail', t.retail_micros, 'paid', -b.wallets, 'platform', b.revenue, 'markup', b.markup,
                          'commission', b.commission)
from ledger_transactions t
join by_transaction b on b.transaction_id = t.id
where t.kind in ('usage', 'reversal')
  and (t.retail_micros, t.retail_micros, t.markup_micros, t.commission_micros)
      is distinct from
      (-b.wallets, b.revenue + b.markup + b.commission, b.markup, b.commission)
union all
select 'charges_are_numbered', call_id::text, jsonb_build_object('charges', count(*), 'last', max(version))
from charges
group by call_id
having count(*) <> max(version)
union all
select 'hold_ends_with_its_call', h.call_id::text,
       jsonb_build_object('hold', h.state, 'call', c.status, 'outcome', c.outcome, 'charged', k.version is not null,
                          'due_since', d.since)
from holds h
join calls c on c.id = h.call_id
left join (select call_id, max(version) as version from charges group by call_id) k on k.call_id = h.call_id
left join (select call_id, min(since) as since from charges_due group by call_id) d on d.call_id = h.call_id
where h.state = 'open' and c.status = 'final' and (d.since is null or d.since < now() - interval '10 minutes')
   or h.state <> 'open' and c.status <> 'final'
   or h.state = 'captured' and k.version is null
union all
select 'calls_hold_money', c.id::text, jsonb_build_object('status', c.status)
from calls c
where c.created_at > (select min(created_at) from wallets)
  and not exists (select from holds h where h.call_id = c.id)
