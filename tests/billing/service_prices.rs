//! Prices: each is valid from a moment on, and a price that was in force cannot be changed.

use chrono::{DateTime, TimeDelta, Utc};
use peal_api::cli::admin::AdminRole;
use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::login::{SessionUser, without_workers};
use crate::harness::app::App;
use crate::harness::members::audited_actions;
use crate::purse::super_admin;

const PRICES_PATH: &str = "/api/v1/service-prices";

async fn list_prices(caller: &SessionUser<'_>, query: &str) -> Vec<Value> {
    let response = caller
        .get(&format!("{PRICES_PATH}?{query}"))
        .await
        .expect(200);
    response["prices"].as_array().expect("prices").clone()
}

async fn make_distributor(app: &App, percent: i32) {
    let sql =
        "update organizations set org_type = 'distributor', markup_percent = $2 where id = $1";
    sqlx::query(sql)
        .bind(app.tenant.org)
        .bind(percent)
        .execute(&app.context.pool)
        .await
        .expect("a reseller");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_ends_where_the_next_one_begins() {
    let app = without_workers().await;
    let root = super_admin(&app).await;
    let seeded = list_prices(&root, "service=telephony&match=91&in_force=true").await;
    assert_eq!(seeded[0]["price_usd"], "0.04");
    let add = async |body: Value| root.send(Method::POST, PRICES_PATH, body).await;
    let body = json!({"service": "telephony", "match": "91", "price_usd": "0.035"});
    let at_once = add(body.clone()).await.expect(201);
    assert_eq!(at_once["in_force"], true);
    assert_eq!(at_once["increment_secs"], 60);

    let before = root
        .get(&format!(
            "{PRICES_PATH}/{}",
            seeded[0]["id"].as_str().unwrap()
        ))
        .await;
    let before = before.expect(200);
    assert_eq!(before["valid_until"], at_once["valid_from"]);
    assert_eq!(before["in_force"], false);

    let in_days = |days| (Utc::now() + TimeDelta::days(days)).to_rfc3339();
    let body_from = |at: String| json!({"service": "telephony", "match": "91", "price_usd": 0.03, "valid_from": at});
    let third = add(body_from(in_days(9))).await.expect(201);
    let second = add(body_from(in_days(5))).await.expect(201);
    assert_eq!(second["valid_until"], third["valid_from"]);
    let duplicate = json!({"service": "telephony", "match": "91", "price_usd": 1, "valid_from": second["valid_from"]});
    assert_eq!(add(duplicate).await.expect(409)["code"], "price_exists");

    let path = |price: &Value| format!("{PRICES_PATH}/{}", price["id"].as_str().expect("an id"));
    let moved = json!({"valid_from": in_days(12), "price_usd": "0.02"});
    let moved = root
        .send(Method::PATCH, &path(&second), moved)
        .await
        .expect(200);
    assert_eq!(moved["valid_until"], Value::Null);
    let third = root.get(&path(&third)).await.expect(200);
    assert_eq!(third["valid_until"], moved["valid_from"]);
    root.delete(&path(&third)).await.expect(200);
    let at_once = root.get(&path(&at_once)).await.expect(200);
    assert_eq!(at_once["valid_until"], moved["valid_from"]);
    root.get(&path(&third)).await.expect(404);

    for price in [&before, &at_once] {
        let change = json!({"price_usd": "9"});
        let refused = root
            .send(Method::PATCH, &path(price), change)
            .await
            .expect(409);
        assert_eq!(refused["code"], "price_was_in_force");
        let detail = refused["detail"].as_str().expect("a text");
        assert!(detail.contains("add one that begins later"), "{detail}");
        root.delete(&path(price)).await.expect(409);
    }
    let id = moved["id"].as_str().expect("an id");
    let actions = ["service_price.create", "service_price.update"];
    assert_eq!(audited_actions(&app, id).await, actions);
    let from: DateTime<Utc> = moved["valid_from"].as_str().unwrap().parse().unwrap();
    assert!(from > Utc::now() + TimeDelta::days(11));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_price_is_refused() {
    let app = without_workers().await;
    let root = super_admin(&app).await;

    for (wrong, field) in [
        (
            json!({"service": "telephony", "match": "+91", "price_usd": 1}),
            "match",
        ),
        (
            json!({"service": "platform", "match": "x", "price_usd": 1}),
            "match",
        ),
        (json!({"service": "model", "price_usd": "-1"}), "price_usd"),
        (
            json!({"service": "model", "price_usd": "0.00000000001"}),
            "price_usd",
        ),
        (
            json!({"service": "model", "price_usd": 1, "increment_secs": 0}),
            "increment_secs",
        ),
        (
            json!({"service": "model", "price_usd": 1, "direction": "inbound"}),
            "direction",
        ),
        (
            json!({"service": "model", "price_usd": 1, "valid_from": "2020-01-01T00:00:00Z"}),
            "valid_from",
        ),
        (json!({"service": "lunch", "price_usd": 1}), "service"),
        (json!({"service": "model", "price_usd": 1, "id": 1}), "id"),
    ] {
        let response = root
            .send(Method::POST, PRICES_PATH, wrong.clone())
            .await
            .expect(422);
        assert_eq!(
            response["errors"][0]["loc"][1], field,
            "{wrong}: {response}"
        );
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_read_their_prices_and_only_the_platform_sets_them() {
    let app = without_workers().await;
    let root = super_admin(&app).await;
    let ada = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let query = "service=telephony&match=1&direction=outbound";
    assert_eq!(list_prices(&bob, query).await[0]["price_usd"], "0.014");

    // The organisation's own markup applies, and that of its reseller.
    make_distributor(&app, 50).await;
    assert_eq!(list_prices(&bob, query).await[0]["price_usd"], "0.021");

    let cat = SessionUser::new(&app, "cat@example.com", "Customer", AdminRole::User).await;
    assert_eq!(list_prices(&cat, query).await[0]["price_usd"], "0.014");

    sqlx::query("update organizations set parent_org_id = $1 where name = 'Customer'")
        .bind(app.tenant.org)
        .execute(&app.context.pool)
        .await
        .expect("a customer");
    assert_eq!(list_prices(&cat, query).await[0]["price_usd"], "0.021");
    assert_eq!(list_prices(&root, query).await[0]["price_usd"], "0.014");

    let id = list_prices(&root, query).await[0]["id"].clone();
    let path = format!("{PRICES_PATH}/{}", id.as_str().expect("an id"));
    assert_eq!(cat.get(&path).await.expect(200)["price_usd"], "0.021");
    assert_eq!(app.get(&path).await.expect(200)["price_usd"], "0.021");

    for who in [&ada, &bob] {
        let body = json!({"service": "model", "price_usd": 1});
        who.send(Method::POST, PRICES_PATH, body.clone())
            .await
            .expect(403);
        who.send(Method::PATCH, &path, json!({"price_usd": 1}))
            .await
            .expect(403);
        who.delete(&path).await.expect(403);
    }

    let paged = bob
        .get(&format!("{PRICES_PATH}?page_size=5&page=2"))
        .await
        .expect(200);
    assert_eq!(paged["prices"].as_array().map(Vec::len), Some(5));
    assert!(paged["total"].as_i64() > Some(20));
    app.finish().await;
}
