//! Wallets over HTTP: grants, transfers, caps and adjustments, their permissions, and the ledger.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use peal_api::cli::admin::AdminRole;
use peal_shared::api_keys;
use rand::RngExt;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::login::{SessionUser, without_workers};
use crate::harness::app::{ApiResponse, App, AppOptions, send_request};
use crate::harness::members::audited_actions;
use crate::purse::{
    WALLETS_PATH, available_balance, grant_credit, move_money, move_money_with_key, org_wallet_id,
    super_admin, tenant_wallet_id, wallet_id,
};

async fn org_admin(app: &App) -> SessionUser<'_> {
    SessionUser::new(app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await
}

async fn org_user(app: &App) -> SessionUser<'_> {
    SessionUser::new(app, "bob@example.com", "Acme", AdminRole::User).await
}

fn grants_path(wallet: &str) -> String {
    format!("{WALLETS_PATH}/{wallet}/grants")
}

/// Parses a timestamp of the API.
fn parse_timestamp(value: &Value) -> DateTime<Utc> {
    value.as_str().expect("a moment").parse().expect("a moment")
}

/// Fails when a wallet differs from its ledger entries.
async fn assert_ledger_adds_up(app: &App) {
    let drifted = app
        .count(
            "select count(*)
             from wallets w
             where w.posted_micros <> (select coalesce(sum(amount_micros), 0) from ledger_entries e
                                       where e.account_id = w.account_id)
                or w.entries <> (select count(*) from ledger_entries e where e.account_id = w.account_id)",
        )
        .await;
    assert_eq!(drifted, 0, "wallets have drifted from their entries");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_mints_credit_and_administrators_transfer_it() {
    let app = without_workers().await;
    let (root, ada, bob) = (
        super_admin(&app).await,
        org_admin(&app).await,
        org_user(&app).await,
    );
    let org = app.tenant.org.to_string();
    let (company, bobs) = (org_wallet_id(&ada, &org).await, wallet_id(&bob).await);
    let minted = grant_credit(&root, &company, "100").await;
    assert_eq!(minted["message"], "credit granted");
    assert_eq!(minted["grant"]["source"], "mint");
    assert_eq!(minted["wallet"]["available_balance_usd"], "100.00");
    assert_eq!(minted["wallet"]["owner"], "organization");

    let body = json!({"amount_usd": 12.5, "note": "for November"});
    let moved = move_money(&ada, &grants_path(&bobs), body)
        .await
        .expect(201);
    assert_eq!(moved["message"], "credit transferred");
    assert_eq!(moved["grant"]["source"], "transfer");
    assert_eq!(moved["grant"]["amount_usd"], "12.50");
    assert_eq!(moved["grant"]["granted_by"], json!(ada.id));
    assert_eq!(available_balance(&bob, &bobs).await, "12.50");
    assert_eq!(available_balance(&ada, &company).await, "87.50");

    let entry =
        &bob.get(&format!("{WALLETS_PATH}/{bobs}")).await.expect(200)["ledger"]["entries"][0];
    assert_eq!(entry["id"], moved["ledger_entry_id"]);
    assert_eq!(entry["entry_type"], "transfer_in");
    assert_eq!(entry["balance_after_usd"], "12.50");
    assert_eq!(entry["note"], "for November");
    assert_eq!(entry["reference_id"], moved["grant"]["id"]);

    let more = json!({"amount_usd": "87.500001"});
    let refused = move_money(&ada, &grants_path(&bobs), more)
        .await
        .expect(402);
    assert_eq!(refused["code"], "insufficient_credits");

    let back = json!({"amount_usd": "1"});
    let own = move_money(&ada, &grants_path(&company), back.clone()).await;
    assert_eq!(own.expect(400)["code"], "not_a_members_wallet");
    move_money(&bob, &grants_path(&bobs), back)
        .await
        .expect(403);
    for wrong in [
        json!({"amount_usd": 0}),
        json!({"amount_usd": "-1"}),
        json!({"amount_usd": "0.0000001"}),
        json!({"amount_usd": "1", "expires_at": "2020-01-01T00:00:00Z"}),
        json!({"amount_usd": "1", "priority": 101}),
        json!({"amount_usd": "1", "source": "mint"}),
        json!({}),
    ] {
        move_money(&root, &grants_path(&bobs), wrong)
            .await
            .expect(422);
    }
    assert_eq!(audited_actions(&app, &bobs).await, ["wallet.grant"]);
    assert_ledger_adds_up(&app).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transferred_credit_expires_no_later_than_its_grant() {
    let app = without_workers().await;
    let (root, ada, bob) = (
        super_admin(&app).await,
        org_admin(&app).await,
        org_user(&app).await,
    );
    let company = org_wallet_id(&ada, &app.tenant.org.to_string()).await;
    let bobs = wallet_id(&bob).await;
    let in_days = |days| (Utc::now() + TimeDelta::days(days)).to_rfc3339();
    for (amount, days) in [("5", 30), ("5", 10)] {
        let body = json!({"amount_usd": amount, "expires_at": in_days(days)});
        move_money(&root, &grants_path(&company), body)
            .await
            .expect(201);
    }
    grant_credit(&root, &company, "5").await;

    let body = |amount: &str| json!({"amount_usd": amount, "expires_at": in_days(60)});
    let near = move_money(&ada, &grants_path(&bobs), body("4"))
        .await
        .expect(201);
    let until = parse_timestamp(&near["grant"]["expires_at"]);
    assert!(until < Utc::now() + TimeDelta::days(11), "{near}");

    // The rest of the first grant, all of the second, and part of the one without expiry.
    let rest = move_money(&ada, &grants_path(&bobs), body("8"))
        .await
        .expect(201);
    assert!(parse_timestamp(&rest["grant"]["expires_at"]) < Utc::now() + TimeDelta::days(11));
    let last = move_money(&ada, &grants_path(&bobs), json!({"amount_usd": "3"})).await;
    assert_eq!(last.expect(201)["grant"]["expires_at"], Value::Null);

    // Administrators may shorten, but not extend, transferred grants; minted ones they may not change.
    let patch = async |caller: &SessionUser<'_>, id: &Value, body: Value| {
        let path = format!("{WALLETS_PATH}/grants/{}", id.as_str().expect("an id"));
        caller.send(Method::PATCH, &path, body).await
    };

    let id = &near["grant"]["id"];
    let longer = json!({"expires_at": in_days(90)});
    patch(&ada, id, longer.clone()).await.expect(403);
    patch(&ada, id, json!({"expires_at": null}))
        .await
        .expect(403);
    patch(&bob, id, json!({"locked": false})).await.expect(403);
    patch(&ada, id, json!({"expires_at": in_days(1)}))
        .await
        .expect(200);
    patch(&ada, id, json!({"expires_at": "2020-01-01T00:00:00Z"}))
        .await
        .expect(422);
    patch(&root, id, longer).await.expect(200);

    let detail = ada
        .get(&format!("{WALLETS_PATH}/{company}"))
        .await
        .expect(200);
    let minted = &detail["grants"][0]["id"];
    patch(&ada, minted, json!({"locked": true}))
        .await
        .expect(403);

    let outsider = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;
    patch(&outsider, id, json!({"locked": true}))
        .await
        .expect(404);
    assert_ledger_adds_up(&app).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_are_listed_in_spending_order_and_expire_on_time() {
    let app = without_workers().await;
    let (root, bob) = (super_admin(&app).await, org_user(&app).await);
    let bobs = wallet_id(&bob).await;
    let soon = Utc::now() + TimeDelta::days(2);
    let later = (Utc::now() + TimeDelta::days(20)).to_rfc3339();
    for body in [
        json!({"amount_usd": "1", "note": "fourth"}),
        json!({"amount_usd": "2", "note": "third", "expires_at": later}),
        json!({"amount_usd": "3", "note": "second", "expires_at": soon.to_rfc3339()}),
        json!({"amount_usd": "4", "note": "first", "priority": 10}),
        json!({"amount_usd": "5", "note": "locked", "priority": 1}),
    ] {
        move_money(&root, &grants_path(&bobs), body)
            .await
            .expect(201);
    }
    let show = async || bob.get(&format!("{WALLETS_PATH}/{bobs}")).await.expect(200);

    let locked = show().await["grants"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let path = format!("{WALLETS_PATH}/grants/{locked}");
    let response = root
        .send(Method::PATCH, &path, json!({"locked": true}))
        .await;
    assert_eq!(response.expect(200)["state"], "locked");

    let wallet = show().await;
    let notes = |wallet: &Value| -> Vec<String> {
        let grants = wallet["grants"].as_array().expect("grants");
        grants
            .iter()
            .map(|grant| grant["note"].as_str().expect("a note").to_owned())
            .collect()
    };
    assert_eq!(
        notes(&wallet),
        ["first", "second", "third", "fourth", "locked"]
    );
    assert_eq!(wallet["available_balance_usd"], "10.00");
    assert_eq!(wallet["posted_usd"], "15.00");
    let expiring = wallet["upcoming_expiry"].as_array().expect("a list");
    let amounts: Vec<&Value> = expiring.iter().map(|one| &one["amount_usd"]).collect();
    assert_eq!(amounts, ["3.00", "2.00"]);

    app.context.clock.shift(TimeDelta::days(3));
    // Sessions have expired; a key still reads its user's own wallet.
    app.get(&format!("{WALLETS_PATH}/{bobs}")).await.expect(404);

    let key = {
        let keys = &app.context.config.keys;
        let (org, bob) = (app.tenant.org, bob.id.parse().expect("an id"));
        let mut db = app.context.pool.acquire().await.expect("a connection");
        api_keys::create_unscoped(&mut db, keys, org, bob, "tests")
            .await
            .expect("a key")
    };

    let own = app.anonymous(Method::GET, &format!("{WALLETS_PATH}/{bobs}"));
    let wallet = send_request(own.header("x-api-key", key)).await.expect(200);
    assert_eq!(wallet["available_balance_usd"], "7.00");
    assert_eq!(
        notes(&wallet),
        ["first", "third", "fourth", "locked", "second"]
    );
    assert_eq!(wallet["grants"][4]["state"], "expired");
    assert_ledger_adds_up(&app).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_under_one_key_move_money_once() {
    let app = without_workers().await;
    let (root, bob) = (super_admin(&app).await, org_user(&app).await);
    let bobs = wallet_id(&bob).await;
    let path = grants_path(&bobs);
    let body = json!({"amount_usd": "7"});
    let all = (0..100).map(|_| move_money_with_key(&root, &path, "november", body.clone()));
    let answers = join_all(all).await;
    let mut entries: Vec<Value> = Vec::new();
    for response in answers {
        match response.status.as_u16() {
            201 => entries.push(response.json()["ledger_entry_id"].clone()),
            // In progress or overloaded: no money was moved.
            409 | 503 => {}
            _ => panic!("{} {}", response.status, response.text),
        }
    }

    entries.dedup();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(available_balance(&bob, &bobs).await, "7.00");

    let again = move_money_with_key(&root, &path, "november", body).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.expect(201)["ledger_entry_id"], entries[0]);
    let other = move_money_with_key(&root, &path, "november", json!({"amount_usd": "8"})).await;
    other.expect(422);
    let given = "select count(*) from grants where amount_micros = 7000000";
    assert_eq!(app.count(given).await, 1);

    // The ledger refuses the key even after the stored response is deleted.
    sqlx::query("delete from idempotency_keys")
        .execute(&app.context.pool)
        .await
        .expect("forget");
    let late = move_money_with_key(&root, &path, "november", json!({"amount_usd": "7"})).await;
    assert_eq!(late.expect(409)["code"], "posted_already");
    assert_eq!(available_balance(&bob, &bobs).await, "7.00");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_money_requires_an_idempotency_key() {
    let app = without_workers().await;
    let (root, bob) = (super_admin(&app).await, org_user(&app).await);

    let bobs = wallet_id(&bob).await;
    for (action, body) in [
        ("grants", json!({"amount_usd": "2"})),
        ("adjust", json!({"delta_usd": "2", "reason": "a gift"})),
    ] {
        let path = format!("{WALLETS_PATH}/{bobs}/{action}");
        let without_key = root
            .send(Method::POST, &path, body.clone())
            .await
            .expect(422);
        assert_eq!(
            without_key["errors"][0]["loc"],
            json!(["header", "Idempotency-Key"])
        );
        let detail = without_key["detail"].as_str().expect("a text");
        assert!(detail.contains("idempotency_key"), "{detail}");

        let mut with_key = body.clone();
        with_key["idempotency_key"] = json!(format!("by body {action}"));
        let first = root.send(Method::POST, &path, with_key.clone()).await;
        assert!(first.status.is_success(), "{}", first.text);
        let second = root.send(Method::POST, &path, with_key.clone()).await;
        assert_eq!(second.headers["idempotent-replayed"], "true");
        assert_eq!(second.json(), first.json());

        let both = move_money_with_key(&root, &path, "by header", with_key.clone()).await;
        both.expect(422);
        with_key["idempotency_key"] = json!("\n");
        root.send(Method::POST, &path, with_key).await.expect(422);
    }

    assert_eq!(available_balance(&bob, &bobs).await, "4.00");
    app.finish().await;
}

/// Repeats a transfer under one key until it is not shed.
async fn move_money_with_retries(person: &SessionUser<'_>, path: &str, body: Value) -> ApiResponse {
    let key = Uuid::new_v4().to_string();
    loop {
        let response = move_money_with_key(person, path, &key, body.clone()).await;
        if response.status != 503 {
            return response;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_transfers_conserve_money() {
    let app = App::start_with(AppOptions {
        workers: 0,
        settings: |settings| settings.database_pool = "30".to_owned(),
        ..AppOptions::default()
    })
    .await;
    let (root, ada) = (super_admin(&app).await, org_admin(&app).await);
    let company = org_wallet_id(&ada, &app.tenant.org.to_string()).await;
    let minted = "select sum(-e.amount_micros)::bigint from ledger_entries e
                  join ledger_accounts a on a.id = e.account_id and a.kind = 'mint'";
    let before = app.count(minted).await;
    for _ in 0..5 {
        grant_credit(&root, &company, "20").await;
    }

    let mut wallets = Vec::new();
    for name in ["bob", "cyd", "dan", "eli"] {
        let email = format!("{name}@example.com");
        let person = SessionUser::new(&app, &email, "Acme", AdminRole::User).await;
        wallets.push(wallet_id(&person).await);
    }

    let mut rng = rand::rng();
    let moves: Vec<(usize, u32, bool)> = (0..100)
        .map(|_| {
            (
                rng.random_range(0..4),
                rng.random_range(1..3_000_000),
                rng.random_range(0..4) == 0,
            )
        })
        .collect();

    let all = moves.iter().map(async |(to, micros, is_adjustment)| {
        let amount = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
        match is_adjustment {
            // The platform adjusts the same wallets concurrently.
            true => {
                let path = format!("{WALLETS_PATH}/{}/adjust", wallets[*to]);
                let body = json!({"delta_usd": format!("-{amount}"), "reason": "test"});
                move_money_with_retries(&root, &path, body).await
            }
            false => {
                let body = json!({"amount_usd": amount});
                move_money_with_retries(&ada, &grants_path(&wallets[*to]), body).await
            }
        }
    });

    for response in join_all(all).await {
        let expected = matches!(response.status.as_u16(), 200 | 201 | 402 | 409);
        assert!(expected, "{} {}", response.status, response.text);
    }

    assert_ledger_adds_up(&app).await;
    let all = "select coalesce(sum(w.posted_micros), 0)::bigint
               - (select coalesce(sum(-e.amount_micros), 0) from ledger_entries e
                  join ledger_accounts a on a.id = e.account_id and a.kind in ('mint', 'adjustment'))::bigint
               from wallets w";
    assert_eq!(app.count(all).await, 0, "money appeared or vanished");
    assert_eq!(app.count(minted).await - before, 100_000_000);

    let grants = "select count(*) from grants g
                  where g.amount_micros - g.remaining_micros <> coalesce(
                      (select sum(u.amount_micros) from grant_uses u where u.grant_id = g.id), 0)";
    assert_eq!(
        app.count(grants).await,
        0,
        "grants have drifted from their uses"
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adjustment_needs_a_reason_and_keeps_the_balance_positive() {
    let app = without_workers().await;
    let (root, ada, bob) = (
        super_admin(&app).await,
        org_admin(&app).await,
        org_user(&app).await,
    );
    let bobs = wallet_id(&bob).await;
    grant_credit(&root, &bobs, "5").await;
    let path = format!("{WALLETS_PATH}/{bobs}/adjust");
    let adjust = async |body: Value| move_money(&root, &path, body).await;
    let more = adjust(json!({"delta_usd": "2.25", "reason": "a bad line"}))
        .await
        .expect(200);
    assert_eq!(more["wallet"]["available_balance_usd"], "7.25");

    let detail = bob.get(&format!("{WALLETS_PATH}/{bobs}")).await.expect(200);
    assert_eq!(
        detail["grants"].as_array().map(Vec::len),
        Some(1),
        "no grant is made"
    );
    assert_eq!(detail["ledger"]["entries"][0]["note"], "a bad line");
    assert_eq!(detail["ledger"]["entries"][0]["entry_type"], "adjustment");

    let below = json!({"delta_usd": "-7.250001", "reason": "too much"});
    let refused = adjust(below.clone()).await.expect(409);
    assert_eq!(refused["code"], "balance_would_be_negative");

    let mut allowed = below;
    allowed["allow_negative"] = json!(true);
    assert_eq!(
        adjust(allowed).await.expect(200)["wallet"]["available_balance_usd"],
        "-0.000001"
    );

    for wrong in [
        json!({"delta_usd": 0, "reason": "nothing"}),
        json!({"delta_usd": 1, "reason": " "}),
        json!({"delta_usd": 1}),
    ] {
        adjust(wrong).await.expect(422);
    }

    let body = json!({"delta_usd": "1", "reason": "mine"});
    move_money(&ada, &path, body.clone()).await.expect(403);
    move_money(&bob, &path, body).await.expect(403);
    assert_eq!(
        audited_actions(&app, &bobs).await,
        ["wallet.grant", "wallet.adjust", "wallet.adjust"]
    );

    assert_ledger_adds_up(&app).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_set_and_clear_a_cap() {
    let app = without_workers().await;
    let (root, ada, bob) = (
        super_admin(&app).await,
        org_admin(&app).await,
        org_user(&app).await,
    );
    let bobs = wallet_id(&bob).await;
    let path = format!("{WALLETS_PATH}/{bobs}/cap");
    let set = async |caller: &SessionUser<'_>, cap: Value| {
        caller
            .send(Method::POST, &path, json!({"monthly_cap_usd": cap}))
            .await
    };
    let capped = set(&ada, json!("40")).await.expect(200);
    assert_eq!(capped["wallet"]["monthly_cap_usd"], "40.00");
    assert_eq!(capped["wallet"]["cap_remaining_usd"], "40.00");

    let balance = bob.get("/api/v1/billing/credit-balance").await.expect(200);
    assert_eq!(balance["monthly_cap_usd"], "40.00");
    assert_eq!(balance["month_spend_usd"], "0.00");
    assert_eq!(balance["wallet_id"], json!(bobs));

    let cleared = set(&root, Value::Null).await.expect(200);
    assert_eq!(cleared["message"], "cap cleared");
    assert_eq!(cleared["wallet"]["cap_remaining_usd"], Value::Null);
    assert_eq!(
        set(&root, json!(0)).await.expect(200)["wallet"]["monthly_cap_usd"],
        "0.00"
    );

    set(&ada, json!(-1)).await.expect(422);
    set(&bob, json!(10)).await.expect(403);
    ada.send(Method::POST, &path, json!({})).await.expect(422);
    let outsider = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;
    set(&outsider, json!(1)).await.expect(404);
    assert_eq!(audited_actions(&app, &bobs).await.len(), 3);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_is_visible_to_its_owner_administrators_and_the_platform() {
    let app = without_workers().await;
    let (root, ada, bob) = (
        super_admin(&app).await,
        org_admin(&app).await,
        org_user(&app).await,
    );
    let org = app.tenant.org.to_string();

    let (bobs, company) = (wallet_id(&bob).await, org_wallet_id(&ada, &org).await);
    let eve = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;
    for (caller, wallet, status) in [
        (&bob, &bobs, 200),
        (&ada, &bobs, 200),
        (&root, &bobs, 200),
        (&eve, &bobs, 404),
        (&bob, &company, 404),
        (&ada, &company, 200),
    ] {
        let response = caller.get(&format!("{WALLETS_PATH}/{wallet}")).await;
        assert_eq!(response.status, status, "{}", response.text);
    }

    let members = format!("{WALLETS_PATH}/orgs/{org}/members");
    let response = ada.get(&members).await.expect(200);
    assert_eq!(response["total"], 3, "{response}");
    assert_eq!(root.get(&members).await.expect(200)["total"], 3);

    eve.get(&members).await.expect(404);
    bob.get(&members).await.expect(403);

    for (list, total) in [("users", 5), ("orgs", 3)] {
        let path = format!("{WALLETS_PATH}/{list}");
        let response = root.get(&path).await.expect(200);
        assert_eq!(response["total"], total, "{response}");
        let page = root
            .get(&format!("{path}?page=2&page_size=2"))
            .await
            .expect(200);
        assert!(!page["wallets"].as_array().expect("wallets").is_empty());
        ada.get(&path).await.expect(403);
        root.get(&format!("{path}?page_size=0")).await.expect(422);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_is_read_page_by_page() {
    let app = without_workers().await;
    let (root, bob) = (super_admin(&app).await, org_user(&app).await);
    let bobs = wallet_id(&bob).await;
    for _ in 0..7 {
        grant_credit(&root, &bobs, "1").await;
    }

    let (mut after, mut numbers) = (String::new(), Vec::new());
    loop {
        let path = format!("{WALLETS_PATH}/{bobs}?limit=3{after}");
        let page = bob.get(&path).await.expect(200)["ledger"].clone();
        let entries = page["entries"].as_array().expect("entries");
        numbers.extend(
            entries
                .iter()
                .map(|entry| entry["number"].as_i64().expect("a number")),
        );
        match page["next"].as_i64() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }

    assert_eq!(numbers, [7, 6, 5, 4, 3, 2, 1]);
    bob.get(&format!("{WALLETS_PATH}/{bobs}?limit=201"))
        .await
        .expect(422);
    bob.get(&format!("{WALLETS_PATH}/{bobs}?after=x"))
        .await
        .expect(422);
    app.finish().await;
}

/// Paths that move or price money, with lookalikes.
fn money_paths(org: &str, wallet: &str) -> Vec<String> {
    let mut paths = vec![
        format!("/api/v1/orgs/{org}/business-model"),
        format!("/api/v1/orgs/{org}/commission"),
        format!("/api/v1/orgs/{org}/markup"),
        "/api/v1/service-prices".to_owned(),
    ];

    for base in ["/api/v1", ""] {
        for rest in [
            "grants",
            "cap",
            "adjust",
            "grants/",
            "grants%2F",
            "../wallets",
        ] {
            paths.push(format!("{base}/wallets/{wallet}/{rest}"));
        }
        for rest in [
            "usage/records",
            "usage/export",
            "credit-balance",
            "usage-records/",
        ] {
            paths.push(format!("{base}/billing/{rest}"));
        }
    }

    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_can_read_but_not_move_money() {
    let app = without_workers().await;
    let root = super_admin(&app).await;
    let wallet = tenant_wallet_id(&app).await;
    grant_credit(&root, &wallet, "5").await;

    // The key of a super admin.
    sqlx::query("update users set role = 'super_admin' where org_id = $1")
        .bind(app.tenant.org)
        .execute(&app.context.pool)
        .await
        .expect("promote");
    tokio::time::sleep(Duration::from_millis(600)).await;
    let org = app.tenant.org;
    let body = json!({"amount_usd": "1", "delta_usd": "1", "reason": "x", "idempotency_key": "k"});
    let digest = "select count(*) + sum(posted_micros)::bigint from wallets";

    let before = app.count(digest).await;
    let paths = money_paths(&org.to_string(), &wallet);
    for path in &paths {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let response = send_request(app.request(method.clone(), path).json(&body)).await;
            let refused = matches!(response.status.as_u16(), 403..=405);
            assert!(
                refused,
                "{method} {path}: {} {}",
                response.status, response.text
            );
        }
        for method in [Method::GET, Method::HEAD] {
            let overridden = app
                .request(method, path)
                .header("x-http-method-override", "POST")
                .json(&body);
            let response = send_request(overridden).await;
            assert!(
                !response.status.is_server_error(),
                "{path}: {}",
                response.status
            );
        }
    }

    // Reading the export queues a job, and no worker runs here.
    app.drop_jobs().await;
    assert_eq!(app.count(digest).await, before, "a key has moved money");

    for base in ["/api/v1/billing", "/billing"] {
        for path in [
            "usage-records",
            "usage/records",
            "usage/summary",
            "usage/overview",
            "credit-balance",
        ] {
            for method in [Method::GET, Method::HEAD] {
                let response = send_request(app.request(method, &format!("{base}/{path}"))).await;
                assert_eq!(response.status, 200, "{base}/{path} {}", response.text);
            }
        }
    }

    assert_eq!(
        app.get(&format!("{WALLETS_PATH}/{wallet}")).await.status,
        200
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_removed_assign_credits_route_returns_410() {
    let app = without_workers().await;
    for base in ["/api/v1", ""] {
        let path = format!(
            "{base}/organizations/{}/billing/assign-credits",
            app.tenant.org
        );
        let response = app.post(&path, json!({"amount": 5})).await.expect(410);
        assert_eq!(response["code"], "gone");
        let detail = response["detail"].as_str().expect("a text");
        assert!(
            detail.contains("POST /api/v1/wallets/{wallet_id}/grants"),
            "{detail}"
        );
    }
    app.finish().await;
}
