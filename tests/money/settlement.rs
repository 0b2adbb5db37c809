//! Settlement: a call is charged once, for the duration that its carrier reports.

use std::collections::HashMap;

use peal_shared::billing::settle::settle_due_unscoped;
use peal_shared::platform::ids::CallId;
use peal_shared::platform::money::Usd;
use peal_simulator::{FaultChance, Faults, OutcomeMix};
use reqwest::Method;
use serde_json::{Value, json};

use super::{app_without_workers, end_call, execute_sql, query_amount, set_prices, top_up};
use crate::harness::app::{
    ACCOUNT, AUTH_TOKEN, App, AppOptions, carrier_where_all_answer, phone_number, send_request,
};

const SUM_CHARGED: &str = "select coalesce(sum(retail_micros), 0)::bigint from charges";
const WALLET_BALANCE: &str =
    "select posted_micros from wallets where user_id is not null and entries > 0";

async fn queue_direct_call(app: &App, n: u32) -> CallId {
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
        phone_number(n).trim_start_matches('+'),
        app.tenant.agent
    );
    let queued = send_request(app.request(Method::POST, &path).json(&json!({})))
        .await
        .expect(202);
    queued["call_session_id"]
        .as_str()
        .expect("an id")
        .parse()
        .expect("an id")
}

/// Queues a call for settlement again.
async fn requeue_settlement(app: &App, call: CallId) {
    execute_sql(
        app,
        &format!("insert into charges_due (call_id) values ('{call}')"),
    )
    .await;
}

/// Corrects the duration of a call and queues it for settlement.
async fn correct_duration(app: &App, call: CallId, seconds: i32) {
    execute_sql(
        app,
        &format!("update calls set duration_seconds = {seconds} where id = '{call}'"),
    )
    .await;
    requeue_settlement(app, call).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_final_events_charge_once() {
    let app = app_without_workers(Usd::dollars(10)).await;
    set_prices(&app, "0", "0.6").await;
    let call = queue_direct_call(&app, 0).await;
    end_call(&app, call, 30).await;
    for _ in 0..20 {
        requeue_settlement(&app, call).await;
    }
    let context = &app.context;
    let settlers = (0..8).map(|_| settle_due_unscoped(&context.pool, 3, context.clock.now()));
    for settled in futures::future::join_all(settlers).await {
        settled.expect("settled");
    }
    app.settle().await;
    assert_eq!(app.count("select count(*) from charges").await, 1);
    assert_eq!(query_amount(&app, SUM_CHARGED).await, Usd(300_000));
    assert_eq!(query_amount(&app, WALLET_BALANCE).await, Usd(9_700_000));
    requeue_settlement(&app, call).await;
    app.settle().await;
    assert_eq!(app.count("select count(*) from charges").await, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_reverses_the_charge_and_charges_again() {
    let app = app_without_workers(Usd::dollars(10)).await;
    set_prices(&app, "0", "0.6").await;
    let call = queue_direct_call(&app, 0).await;
    end_call(&app, call, 30).await;
    app.settle().await;

    for (seconds, charges, micros) in [
        (31, 3, 310_000),
        (31, 3, 310_000),
        (5, 5, 50_000),
        // Longer than its hold covers.
        (200, 7, 2_000_000),
        (0, 8, 0),
        (60, 9, 600_000),
    ] {
        correct_duration(&app, call, seconds).await;
        app.settle().await;
        assert_eq!(
            app.count("select count(*) from charges").await,
            charges,
            "{seconds}"
        );
        assert_eq!(
            query_amount(&app, SUM_CHARGED).await,
            Usd(micros),
            "{seconds}"
        );
        assert_eq!(
            query_amount(&app, WALLET_BALANCE).await,
            Usd(10_000_000 - micros),
            "{seconds}"
        );
        app.verify().await;
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_longer_than_its_hold_is_charged_and_the_next_hold_is_refused() {
    let app = app_without_workers(Usd::dollars(2)).await;
    set_prices(&app, "0", "0.6").await;
    let call = queue_direct_call(&app, 0).await;
    end_call(&app, call, 300).await;
    app.settle().await;
    let overage =
        "select sum(amount_micros)::bigint from ledger_entries where entry_type = 'overage'";
    assert_eq!(query_amount(&app, overage).await, Usd(-1_200_000));
    assert_eq!(query_amount(&app, WALLET_BALANCE).await, Usd::dollars(-1));
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
        phone_number(1).trim_start_matches('+'),
        app.tenant.agent
    );
    let ask = async || send_request(app.request(Method::POST, &path).json(&json!({}))).await;
    assert_eq!(ask().await.expect(402)["code"], "insufficient_credits");
    // New credit pays the debt first.
    top_up(&app, Usd(2_700_000)).await;
    assert_eq!(ask().await.expect(402)["code"], "insufficient_credits");
    top_up(&app, Usd(100_000)).await;
    ask().await.expect(202);
    app.finish().await;
}

/// The carrier's own call log: seconds by sid.
async fn carrier_log(app: &App) -> HashMap<String, i64> {
    let http = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("client");
    let mut next = Some(format!(
        "/2010-04-01/Accounts/{ACCOUNT}/Calls.json?PageSize=1000"
    ));

    let mut calls = HashMap::new();
    while let Some(path) = next {
        let page: Value = http
            .get(format!("{}{path}", app.carrier.url()))
            .basic_auth(ACCOUNT, Some(AUTH_TOKEN))
            .send()
            .await
            .expect("a page")
            .json()
            .await
            .expect("json");
        for call in page["calls"].as_array().expect("calls") {
            let seconds = call["duration"]
                .as_str()
                .expect("an end")
                .parse()
                .expect("seconds");
            calls.insert(call["sid"].as_str().expect("a sid").to_owned(), seconds);
        }
        next = page["next_page_uri"].as_str().map(str::to_owned);
    }

    calls
}

/// Price in micro-dollars of a call to the United States in the seeded catalogue, computed in
/// integers independently of Peal.
fn expected_cost(seconds: i64) -> i64 {
    let minutes = (seconds + 59) / 60;
    let by_second = |per_minute: i64| {
        let (whole, rest) = (per_minute * seconds / 60, per_minute * seconds % 60);
        match rest {
            31.. => whole + 1,
            30 => whole + whole % 2,
            _ => whole,
        }
    };
    minutes * 14_000 + by_second(20_000) + by_second(10_000) + by_second(10_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn charges_are_the_carriers_log_to_the_micro_dollar() {
    const CALLS: u32 = 10_000;
    let mut carrier = carrier_where_all_answer();
    carrier.speed = 500.0;
    carrier.behavior.mix = OutcomeMix::default();
    let app = App::start_with(AppOptions {
        cps: 2000,
        max_concurrent: 4000,
        carrier,
        ..AppOptions::default()
    })
    .await;
    app.carrier.set_faults(Faults {
        callbacks_lost: FaultChance::Rate(0.03),
        callbacks_duplicated: FaultChance::Rate(0.1),
        callbacks_reordered: FaultChance::Rate(0.1),
        early_callback: FaultChance::Rate(0.05),
        ..Faults::default()
    });
    let batch = app.create_batch(json!({"batch_size": 1000})).await;
    app.add_people(&batch, CALLS).await;
    app.start_batch(&batch).await;

    // Ages calls without callbacks, as in the campaign's tests.
    let age_calls = async || {
        execute_sql(
            &app,
            "update calls set changed_at = changed_at - interval '10 minutes', check_at = null
             where status in ('accepted', 'dialing', 'ringing', 'in_progress') and changed_at > now() - interval '5 minutes'
               and changed_at < now() - interval '3 seconds'",
        )
        .await;
    };

    app.wait_for_status_while(&batch, "completed", age_calls)
        .await;
    app.drain().await;
    let log = carrier_log(&app).await;
    assert_eq!(log.len(), usize::try_from(CALLS).expect("few"));

    let charged: HashMap<String, i64> = sqlx::query_as(
        "select c.carrier_call_id, coalesce(sum(k.retail_micros), 0)::bigint
         from calls c
         left join charges k on k.call_id = c.id
         group by c.carrier_call_id",
    )
    .fetch_all(&app.context.pool)
    .await
    .expect("charges")
    .into_iter()
    .collect();

    for (sid, seconds) in &log {
        assert_eq!(
            charged.get(sid),
            Some(&expected_cost(*seconds)),
            "{seconds} s"
        );
    }
    let sum: i64 = log.values().map(|seconds| expected_cost(*seconds)).sum();
    assert!(sum > 0 && log.values().any(|seconds| *seconds == 0));
    assert_eq!(query_amount(&app, SUM_CHARGED).await, Usd(sum));

    let faults = app.carrier.oracle().callbacks;
    assert!(faults.lost > 0 && faults.duplicated > 0 && faults.reordered > 0);
    app.finish().await;
}
