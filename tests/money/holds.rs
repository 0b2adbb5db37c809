//! Money is held before a call is dialled, and never more than there is.

use futures::stream;
use futures::stream::StreamExt as _;
use peal_shared::platform::money::Usd;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{amount, charge, idle_app, payer, run};
use crate::harness::app::{App, TEST_TIMEOUT, phone_number, send_request};
use crate::harness::eventually;

const HELD: &str = "select coalesce(sum(amount_micros), 0)::bigint from holds where state = 'open'";

/// Asks for so many direct calls at once; answers with how many were taken, and the refusals.
async fn call_at_once(app: &App, calls: u32) -> (usize, Vec<Value>) {
    // No more at once than may wait for their turn.
    let requests = stream::iter(0..calls).map(async |n| {
        let path = format!(
            "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
            phone_number(n).trim_start_matches('+'),
            app.tenant.agent
        );
        loop {
            let answer = send_request(app.request(Method::POST, &path).json(&json!({}))).await;
            // Whoever was turned away because too many ask comes again.
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
async fn two_hundred_holds_at_once_never_pass_what_the_wallet_has() {
    let app = idle_app(Usd::dollars(10)).await;
    // Three minutes of 0.054 a minute: 61 of them are 9.882.
    let (taken, refused) = call_at_once(&app, 200).await;
    assert_eq!((taken, refused.len()), (61, 139));
    assert!(
        refused
            .iter()
            .all(|why| why["code"] == "insufficient_credits")
    );
    assert_eq!(amount(&app, HELD).await, Usd(9_882_000));
    app.verify().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_holds_at_once_never_pass_the_monthly_cap() {
    let app = idle_app(Usd::dollars(1000)).await;
    charge(&app, "0.2", "0").await;
    let (_, wallet) = payer(&app).await;
    run(
        &app,
        &format!("update wallets set cap_micros = 50000000 where id = '{wallet}'"),
    )
    .await;
    let (taken, refused) = call_at_once(&app, 500).await;
    assert_eq!((taken, refused.len()), (250, 250));
    assert!(
        refused
            .iter()
            .all(|why| why["code"] == "monthly_cap_reached")
    );
    assert_eq!(amount(&app, HELD).await, Usd::dollars(50));
    // A month later there is a whole cap again; what was held counts in its own month.
    run(
        &app,
        "update wallets set cap_month = cap_month - interval '1 month'",
    )
    .await;
    run(
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
    assert_eq!(amount(&app, counted).await, Usd(200_000));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_never_sent_gives_its_money_back() {
    let app = App::start().await;
    // No slot comes up for it.
    run(&app, "update organizations set max_concurrent_calls = 0").await;
    let (taken, _) = call_at_once(&app, 2).await;
    assert_eq!(taken, 2);
    assert_eq!(amount(&app, HELD).await, Usd(324_000));
    run(
        &app,
        "update calls set created_at = created_at - interval '16 minutes'",
    )
    .await;
    let free = || async { amount(&app, HELD).await.is_zero() };
    eventually("the holds are void", TEST_TIMEOUT, free).await;
    assert_eq!(app.count("select count(*) from charges").await, 0);
    let voided = "select count(*) from holds where state = 'voided'";
    assert_eq!(app.count(voided).await, 2);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_call_is_priced_on_its_resellers_terms() {
    let app = idle_app(Usd::dollars(10)).await;
    charge(&app, "0.1", "0").await;
    let reseller = app.create_tenant("Reseller").await;
    run(
        &app,
        &format!(
            "update organizations
             set org_type = 'distributor', markup_percent = 50, commission_percent = 10
             where id = '{}'",
            reseller.org
        ),
    )
    .await;
    run(
        &app,
        &format!(
            "update organizations set parent_org_id = '{}' where id = '{}'",
            reseller.org, app.tenant.org
        ),
    )
    .await;
    // The request's transaction is bound to the customer, who may not see the reseller.
    let (taken, _) = call_at_once(&app, 1).await;
    assert_eq!(taken, 1);
    assert_eq!(amount(&app, HELD).await, Usd(150_000));
    let call = sqlx::query_scalar("select call_id from holds")
        .fetch_one(&app.context.pool)
        .await
        .unwrap();
    super::end(&app, call, 10).await;
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
