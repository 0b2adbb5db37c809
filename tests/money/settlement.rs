//! A call is charged once, for what its carrier says it was.

use std::collections::HashMap;

use peal_shared::billing::settle::settle_due_unscoped;
use peal_shared::platform::ids::CallId;
use peal_shared::platform::money::Usd;
use peal_simulator::{FaultChance, Faults, OutcomeMix};
use reqwest::Method;
use serde_json::{Value, json};

use super::{amount, charge, end, idle_app, run, top_up};
use crate::harness::app::{
    ACCOUNT, AUTH_TOKEN, App, AppOptions, carrier_where_all_answer, phone_number, send_request,
};

const SPENT: &str = "select coalesce(sum(retail_micros), 0)::bigint from charges";
const POSTED: &str = "select posted_micros from wallets where user_id is not null and entries > 0";

async fn call(app: &App, n: u32) -> CallId {
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

/// Says once more that a call is to be settled.
async fn due_again(app: &App, call: CallId) {
    run(
        app,
        &format!("insert into charges_due (call_id) values ('{call}')"),
    )
    .await;
}

/// Learns that a call was answered for another time than was thought.
async fn correct(app: &App, call: CallId, seconds: i32) {
    run(
        app,
        &format!("update calls set duration_seconds = {seconds} where id = '{call}'"),
    )
    .await;
    due_again(app, call).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_often_is_charged_once() {
    let app = idle_app(Usd::dollars(10)).await;
    charge(&app, "0", "0.6").await;
    let call = call(&app, 0).await;
    end(&app, call, 30).await;
    for _ in 0..20 {
        due_again(&app, call).await;
    }
    let context = &app.context;
    let settlers = (0..8).map(|_| settle_due_unscoped(&context.pool, 3, context.clock.now()));
    for settled in futures::future::join_all(settlers).await {
        settled.expect("settled");
    }
    app.settle().await;
    assert_eq!(app.count("select count(*) from charges").await, 1);
    assert_eq!(amount(&app, SPENT).await, Usd(300_000));
    assert_eq!(amount(&app, POSTED).await, Usd(9_700_000));
    due_again(&app, call).await;
    app.settle().await;
    assert_eq!(app.count("select count(*) from charges").await, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_takes_the_charge_back_and_charges_anew() {
    let app = idle_app(Usd::dollars(10)).await;
    charge(&app, "0", "0.6").await;
    let call = call(&app, 0).await;
    end(&app, call, 30).await;
    app.settle().await;
    for (seconds, charges, micros) in [
        (31, 3, 310_000),
        (31, 3, 310_000),
        (5, 5, 50_000),
        // Longer than what was held for it.
        (200, 7, 2_000_000),
        (0, 8, 0),
        (60, 9, 600_000),
    ] {
        correct(&app, call, seconds).await;
        app.settle().await;
        assert_eq!(
            app.count("select count(*) from charges").await,
            charges,
            "{seconds}"
        );
        assert_eq!(amount(&app, SPENT).await, Usd(micros), "{seconds}");
        assert_eq!(
            amount(&app, POSTED).await,
            Usd(10_000_000 - micros),
            "{seconds}"
        );
        app.verify().await;
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_longer_than_its_hold_is_charged_and_the_next_hold_is_refused() {
    let app = idle_app(Usd::dollars(2)).await;
    charge(&app, "0", "0.6").await;
    let call = call(&app, 0).await;
    end(&app, call, 300).await;
    app.settle().await;
    let overage =
        "select sum(amount_micros)::bigint from ledger_entries where entry_type = 'overage'";
    assert_eq!(amount(&app, overage).await, Usd(-1_200_000));
    assert_eq!(amount(&app, POSTED).await, Usd::dollars(-1));
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
        phone_number(1).trim_start_matches('+'),
        app.tenant.agent
    );
    let ask = async || send_request(app.request(Method::POST, &path).json(&json!({}))).await;
    assert_eq!(ask().await.expect(402)["code"], "insufficient_credits");
    // What is owed is taken first.
    top_up(&app, Usd(2_700_000)).await;
    assert_eq!(ask().await.expect(402)["code"], "insufficient_credits");
    top_up(&app, Usd(100_000)).await;
    ask().await.expect(202);
    app.finish().await;
}

/// The carrier's own account of its calls: seconds by sid.
async fn log(app: &App) -> HashMap<String, i64> {
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

/// What a call to the United States costs by the catalogue as it is seeded: in whole integers,
/// and by another way than Peal's.
fn cost(seconds: i64) -> i64 {
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
    // Silence is made older, as in the campaign's tests.
    let silence = async || {
        run(
            &app,
            "update calls set changed_at = changed_at - interval '10 minutes', check_at = null
             where status in ('accepted', 'dialing', 'ringing', 'in_progress') and changed_at > now() - interval '5 minutes'
               and changed_at < now() - interval '3 seconds'",
        )
        .await;
    };
    app.wait_for_status_while(&batch, "completed", silence)
        .await;
    app.drain().await;
    let log = log(&app).await;
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
        assert_eq!(charged.get(sid), Some(&cost(*seconds)), "{seconds} s");
    }
    let sum: i64 = log.values().map(|seconds| cost(*seconds)).sum();
    assert!(sum > 0 && log.values().any(|seconds| *seconds == 0));
    assert_eq!(amount(&app, SPENT).await, Usd(sum));
    let faults = app.carrier.oracle().callbacks;
    assert!(faults.lost > 0 && faults.duplicated > 0 && faults.reordered > 0);
    app.finish().await;
}
