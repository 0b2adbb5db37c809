//! Rows about money: charges of ended calls per second, and the cost of holds in a claim.
//!
//! Both run the workers' functions in this process, on the durable server, against prepared rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use peal_shared::billing::settle::settle_due_unscoped;
use peal_shared::billing::verify::verify_unscoped;
use peal_shared::calls::claim::{ClaimRequest, claim_unscoped};
use peal_shared::context::Context;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};

use crate::BenchScale;
use crate::harness::app::{AppOptions, Tenant, connect_with, create_tenant, test_settings};
use crate::harness::db::{TestDatabase, fresh_database};
use crate::harness::env_setting;
use crate::load::per_second;
use crate::machine::WatchedProcesses;
use crate::report::{BenchRow, ResultBound};

/// Required ratio of the rate of grouped charges to that of single charges.
const MIN_GROUPING_RATIO: f64 = 5.0;
/// Required ratio of the rate of claims with holds to that of claims without.
const MIN_CLAIM_RATIO: f64 = 0.8;
/// Concurrent clients of the limit.
const LIMIT_CLIENTS: u32 = 8;
/// Settlements in one transaction, as in the workers.
const SETTLE_GROUP_SIZE: i64 = 500;
/// Concurrent settlers of many wallets.
const SETTLERS: usize = 4;

/// Inserts `$calls` ended calls with holds, of `$wallets` users with a wallet each.
const INSERT_ENDED_CALLS: &str = "
    insert into users (id, org_id, email, role)
    select gen_random_uuid(), '$org', 'payer-' || n || '@example.com', 'user' from generate_series(1, $wallets) n;
    create temporary table payers as
        select w.id as wallet, w.user_id, w.account_id, gen_random_uuid() as grant_id, gen_random_uuid() as posting,
               row_number() over () as n
        from wallets w join users u on u.id = w.user_id where u.email like 'payer-%';
    insert into ledger_transactions (id, org_id, kind, idem_key) select posting, '$org', 'grant', posting::text from payers;
    insert into ledger_entries (org_id, transaction_id, account_id, entry_type, amount_micros, grant_id,
                                balance_after_micros, account_seq)
        select '$org'::uuid, posting, account_id, 'grant', 10000000000, grant_id, 10000000000, 1 from payers
        union all
        select '$org'::uuid, p.posting, a.id, 'mint', -10000000000, null, null, null
        from payers p, ledger_accounts a where a.org_id = '$org' and a.kind = 'mint';
    insert into grants (id, org_id, wallet_id, source, amount_micros, remaining_micros, transaction_id)
        select grant_id, '$org', wallet, 'mint', 10000000000, 10000000000, posting from payers;
    insert into price_snapshots (id, org_id, digest, rates, org_type, markup_percent, commission_percent)
        values ('$org', '$org', '', '[{\"service\":\"telephony\",\"match\":\"1\",\"price_usd\":\"0.014\",\"increment_secs\":60},
                                      {\"service\":\"model\",\"match\":\"\",\"price_usd\":\"0.02\",\"increment_secs\":1},
                                      {\"service\":\"platform\",\"match\":\"\",\"price_usd\":\"0.01\",\"increment_secs\":1}]',
                'internal', 0, 0);
    create temporary table made as
        select gen_random_uuid() as id, p.*, c
        from generate_series(1, $calls) c join payers p on p.n = c % $wallets + 1;
    insert into calls (id, org_id, user_id, agent_id, phone_id, trunk_id, from_number, to_number, status, outcome,
                       carrier_call_id, duration_seconds, ended_at)
        select id, '$org', user_id, '$agent', '$phone', '$trunk', '+12125550100', '+12125550123', 'final', 'completed',
               id::text, c % 90, now() from made;
    insert into holds (call_id, org_id, wallet_id, price_snapshot_id, amount_micros, pins, cap_month)
        select id, '$org', wallet, '$org', 132000, jsonb_build_array(jsonb_build_object('grant', grant_id, 'micros', 132000)),
               date_trunc('month', now())::date from made;
    update wallets w set posted_micros = 10000000000, entries = 1, held_micros = m.held, cap_held_micros = m.held,
                         cap_month = date_trunc('month', now())::date
        from (select wallet, count(*) * 132000 as held from made group by 1) m where w.id = m.wallet;
    update grants g set pinned_micros = m.held
        from (select grant_id, count(*) * 132000 as held from made group by 1) m where g.id = m.grant_id;
    insert into charges_due (call_id) select id from made order by random();
    drop table made; drop table payers;
    analyze";

/// Tables of single charges: a row that all of them update, and the rows that each inserts.
const CREATE_SINGLE_TABLES: &str = "
    create table single_wallet (id integer primary key, posted bigint not null) with (fillfactor = 50);
    insert into single_wallet values (1, 0);
    create table single_entries (id bigint generated always as identity primary key, wallet integer not null,
                                 amount bigint not null, created_at timestamptz not null default now());
    create table single_charges (id uuid primary key, retail bigint not null)";

struct MoneyBench {
    database: TestDatabase,
    context: Arc<Context>,
    tenant: Tenant,
}

impl MoneyBench {
    async fn open() -> anyhow::Result<Self> {
        let database = fresh_database().await;
        let redis_url = env_setting("PEAL_TEST_REDIS_URL");
        let directory = std::env::temp_dir().join(&database.name);
        let settings = test_settings(
            &database.program_url,
            &redis_url,
            "http://127.0.0.1:9",
            &directory,
        );
        let context = connect_with(settings).await;
        let options = AppOptions {
            cps: 10_000,
            max_concurrent: 100_000,
            ..AppOptions::default()
        };
        let tenant = create_tenant(&context, "Acme", "http://127.0.0.1:9", &options).await;
        sqlx::query("update organizations set max_concurrent_calls = 100000")
            .execute(&database.pool)
            .await?;
        Ok(Self {
            database,
            context,
            tenant,
        })
    }

    async fn run(&self, sql: &str) -> anyhow::Result<()> {
        let tenant = &self.tenant;
        let sql = sql
            .replace("$org", &tenant.org.to_string())
            .replace("$agent", &tenant.agent.to_string())
            .replace("$phone", &tenant.phone.to_string())
            .replace("$trunk", &tenant.trunk.to_string());
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&self.database.pool)
            .await?;
        Ok(())
    }

    /// Verifies the ledger and closes the pool.
    async fn close(self) -> anyhow::Result<()> {
        let offenders = verify_unscoped(&self.context.pool).await?;
        anyhow::ensure!(
            offenders.is_empty(),
            "the ledger does not add up: {offenders:?}"
        );
        self.context.pool.close().await;
        Ok(())
    }
}

/// Charged calls per second over `wallets` wallets, next to single charges on one row.
pub async fn settling(scale: &BenchScale, wallets: u32) -> anyhow::Result<BenchRow> {
    let bank = MoneyBench::open().await?;
    let calls = scale.campaign.saturating_mul(4);
    let seed = INSERT_ENDED_CALLS
        .replace("$wallets", &wallets.to_string())
        .replace("$calls", &calls.to_string());
    bank.run(&seed).await?;
    bank.run(CREATE_SINGLE_TABLES).await?;

    let single = single_charges(&bank.database.pool).await?;

    let meter = WatchedProcesses::default().meter();
    let begin = Instant::now();
    let settlers = match wallets {
        1 => 1,
        _ => SETTLERS,
    };
    let settling = (0..settlers).map(|_| settle_all(&bank.context));
    try_join_all(settling).await?;
    let rate = per_second(calls.into(), begin.elapsed());
    let spent = meter.read();
    bank.close().await?;

    // Charges of many wallets are grouped less, so that row has no bound.
    let (what, bounds) = match wallets {
        1 => (
            "settling, one wallet".to_owned(),
            vec![ResultBound::at_least(
                "ratio",
                rate / single,
                MIN_GROUPING_RATIO,
                "",
            )],
        ),
        _ => (format!("settling, {wallets} wallets"), Vec::new()),
    };
    Ok(BenchRow {
        label: what,
        measured: format!("{rate:.0} calls/s"),
        limit: Some(format!(
            "one UPDATE and two INSERTs a charge on one row, {LIMIT_CLIENTS} clients: {single:.0}/s"
        )),
        ratio: Some(rate / single),
        bounds,
        cpu: spent,
        details: json!({"calls": calls, "settlers": settlers, "group": SETTLE_GROUP_SIZE}),
    })
}

async fn settle_all(context: &Context) -> anyhow::Result<()> {
    loop {
        let settled = settle_due_unscoped(&context.pool, SETTLE_GROUP_SIZE, context.clock.now())
            .await
            .map_err(|refused| refused.error)?;
        if settled.processed == 0 {
            return Ok(());
        }
    }
}

/// Single charges per second of a ledger that locks its wallet for each charge.
async fn single_charges(pool: &PgPool) -> anyhow::Result<f64> {
    const SPAN: Duration = Duration::from_secs(5);
    let begin = Instant::now();
    let clients = (0..LIMIT_CLIENTS).map(async |_| {
        let mut db = pool.acquire().await?;
        let mut done = 0_u64;
        while begin.elapsed() < SPAN {
            for statement in [
                "begin",
                "update single_wallet set posted = posted - 5 where id = 1",
                "insert into single_entries (wallet, amount) values (1, -5)",
                "insert into single_charges values (gen_random_uuid(), 5)",
                "commit",
            ] {
                sqlx::query(statement).execute(&mut *db).await?;
            }
            done += 1;
        }
        anyhow::Ok(done)
    });
    let done: u64 = try_join_all(clients).await?.into_iter().sum();
    Ok(per_second(done, begin.elapsed()))
}

/// Claimed calls per second, next to the rate without prices and holds.
pub async fn claiming(scale: &BenchScale) -> anyhow::Result<BenchRow> {
    let bank = MoneyBench::open().await?;
    let calls = scale.campaign;
    bank.run(&format!(
        "insert into call_batches (id, org_id, user_id, agent_id, caller_phone_id, trunk_id, batch_name, status,
                                   batch_size, launched_at, started_at)
         select gen_random_uuid(), '$org', u.id, '$agent', '$phone', '$trunk', 'Claims', 'in_progress', 1000, now(), now()
         from users u, generate_series(1, {calls} / 1000 + 1) where u.org_id = '$org';
         insert into batch_data (id, org_id, batch_id, row_no, to_phonenumber)
         select gen_random_uuid(), '$org', b.id, n, '+1212' || (2000000 + n + 1000 * b.place)
         from (select id, row_number() over () as place from call_batches) b, generate_series(1, 1000) n;
         analyze"
    ))
    .await?;

    let meter = WatchedProcesses::default().meter();
    let (mut claimed, mut claims) = (0_u64, 0_u64);
    let (mut took, mut money) = (Duration::ZERO, Duration::ZERO);
    while claimed < u64::from(calls) {
        let ask = ClaimRequest {
            trunk: bank.tenant.trunk,
            worker: "bench",
            max_calls: 50,
            held_calls: 0,
            hold_max_secs: 600,
            price_cache: &bank.context.price_cache,
        };
        let begin = Instant::now();
        let claim = claim_unscoped(&bank.context.pool, ask).await?;
        if claim.calls.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        took += begin.elapsed();
        money += claim.funding_time;
        claims += 1;
        claimed += u64::try_from(claim.calls.len())?;
    }

    let spent = meter.read();
    let with = per_second(claimed, took);
    let without = per_second(claimed, took.saturating_sub(money));
    bank.close().await?;

    Ok(BenchRow {
        label: "claiming, money held for every call".to_owned(),
        measured: format!("{with:.0} calls/s"),
        limit: Some(format!("without prices and holds: {without:.0}/s")),
        ratio: Some(with / without),
        bounds: vec![ResultBound::at_least(
            "ratio",
            with / without,
            MIN_CLAIM_RATIO,
            "",
        )],
        cpu: spent,
        details: json!({"calls": claimed, "claims": claims}),
    })
}
