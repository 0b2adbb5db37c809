//! Holds: money is reserved before a call is dialled, within the balance and the monthly cap.

use futures::stream;
use futures::stream::StreamExt as _;
use peal_shared::platform::money::Usd;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{app_without_workers, execute_sql, paying_user, query_amount, set_prices};
use crate::harness::app::{App, TEST_TIMEOUT, phone_number, send_request};
use crate::harness::eventually;

const SUM_HELD: &str =
    "select coalesce(sum(amount_micros), 0)::bigint from holds where state = 'open'";

/// Requests direct calls concurrently; returns the number of accepted calls, and the refusals.
async fn request_calls_concurrently(app: &App, calls: u32) -> (usize, Vec<Value>) {
    // At most as many concurrent requests as the API queues.
    let requests = stream::iter(0..calls).map(async |n| {
        let path = format!(
            "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
            phone_number(n).trim_start_matches('+'),
            app.tenant.agent
        );
        loop {
            let answer = send_request(app.request(Method::POST, &path).json(&json!({}))).await;
            // A shed request is sent again.
            if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                return answer;
            }
        }
    });
    let answers: Vec<_> = requests.buffer_unordered(150).collect().await;
    let refused: Vec<Value> = answers
        .iter()
        .filter(|answer| answer.status != StatusCode::ACCEPTED)
        .map(|answer| answer.expect(402))
        .collect();
    (answers.len() - refused.len(), refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_holds_do_not_exceed_the_balance() {
    let app = app_without_workers(Usd::dollars(10)).await;
    // Three minutes of 0.054 a minute: 61 of them are 9.882.
    let (taken, refused) = request_calls_concurrently(&app, 200).await;
    assert_eq!((taken, refused.len()), (61, 139));
    assert!(
        refused
            .iter()
            .all(|refusal| refusal["code"] == "insufficient_credits")
    );
    assert_eq!(query_amount(&app, SUM_HELD).await, Usd(9_882_000));
    app.verify().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_holds_do_not_exceed_the_monthly_cap() {
    let app = app_without_workers(Usd::dollars(1000)).await;
    set_prices(&app, "0.2", "0").await;
    let (_, wallet) = paying_user(&app).await;
    execute_sql(
        &app,
        &format!("update wallets set cap_micros = 50000000 where id = '{wallet}'"),
    )
    .await;
    let (taken, refused) = request_calls_concurrently(&app, 500).await;
    assert_eq!((taken, refused.len()), (250, 250));
    assert!(
        refused
            .iter()
            .all(|refusal| refusal["code"] == "monthly_cap_reached")
    );
    assert_eq!(query_amount(&app, SUM_HELD).await, Usd::dollars(50));

    // A month later the cap is unused again; earlier holds count in their own month.
    execute_sql(
        &app,
        "update wallets set cap_month = cap_month - interval '1 month'",
    )
    .await;
    execute_sql(
        &app,
        "update holds set cap_month = cap_month - interval '1 month'",
    )
    .await;

    let path = format!(
        "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
        phone_number(600).trim_start_matches('+'),
        app.tenant.agent
    );
    send_request(app.request(Method::POST, &path).json(&json!({})))
        .await
        .expect(202);
    let counted = "select cap_held_micros from wallets where cap_held_micros > 0";
    assert_eq!(query_amount(&app, counted).await, Usd(200_000));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hold_of_an_unsent_call_is_voided() {
    let app = App::start().await;
    // No call can start.
    execute_sql(&app, "update organizations set max_concurrent_calls = 0").await;
    let (taken, _) = request_calls_concurrently(&app, 2).await;
    assert_eq!(taken, 2);
    assert_eq!(query_amount(&app, SUM_HELD).await, Usd(324_000));
    execute_sql(
        &app,
        "update calls set created_at = created_at - interval '16 minutes'",
    )
    .await;
    let free = || async { query_amount(&app, SUM_HELD).await.is_zero() };
    eventually("the holds are void", TEST_TIMEOUT, free).await;
    assert_eq!(app.count("select count(*) from charges").await, 0);
    let voided = "select count(*) from holds where state = 'voided'";
    assert_eq!(app.count(voided).await, 2);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_call_has_its_resellers_prices() {
    let app = app_without_workers(Usd::dollars(10)).await;
    set_prices(&app, "0.1", "0").await;
    let reseller = app.create_tenant("Reseller").await;
    execute_sql(
        &app,
        &format!(
            "update organizations
             set org_type = 'distributor', markup_percent = 50, commission_percent = 10
             where id = '{}'",
            reseller.org
        ),
    )
    .await;
    execute_sql(
        &app,
        &format!(
            "update organizations set parent_org_id = '{}' where id = '{}'",
            reseller.org, app.tenant.org
        ),
    )
    .await;

    // The request's transaction is bound to the customer, which may not read the reseller.
    let (taken, _) = request_calls_concurrently(&app, 1).await;
    assert_eq!(taken, 1);
    assert_eq!(query_amount(&app, SUM_HELD).await, Usd(150_000));

    let call = sqlx::query_scalar("select call_id from holds")
        .fetch_one(&app.context.pool)
        .await
        .unwrap();
    super::end_call(&app, call, 10).await;
    app.settle().await;
    let earned =
        "select coalesce(sum(amount_micros), 0)::bigint from ledger_entries where entry_type = ";

    for (entry, micros) in [
        ("markup", 50_000),
        ("commission", 10_000),
        ("revenue", 90_000),
    ] {
        let sql = format!("{earned}'{entry}'");
        let sum: Usd = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(&app.context.pool)
            .await
            .unwrap();
        assert_eq!(sum, Usd(micros), "{entry}");
    }
    app.finish().await;
}
