//! Usage and its cost over HTTP: lists, sums and exports match the charges.

pub mod earnings;
pub mod service_prices;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chrono::TimeDelta;
use peal_api::cli::admin::AdminRole;
use peal_shared::platform::money::Usd;
use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::login::{SessionUser, without_workers};
use crate::harness::app::{ApiResponse, App, AppOptions, TEST_TIMEOUT, send_request};
use crate::harness::eventually;
use crate::purse::{
    grant_credit, set_timezones_to_noon, super_admin, tenant_wallet_id, wait_until_charged,
};

const BILLING: &str = "/api/v1/billing";
const SUM_RETAIL: &str = "select sum(retail_micros)::bigint from charges";
const SUM_BASE: &str = "select sum(base_micros)::bigint from charges";

/// An app whose tenant has no credit.
async fn app_without_credit() -> App {
    App::start_with(AppOptions {
        credit: Usd::ZERO,
        ..AppOptions::default()
    })
    .await
}

/// An app whose tenant has called this many people, with settled charges.
async fn app_with_charged_calls(people: u32) -> App {
    let app = app_without_credit().await;
    let root = super_admin(&app).await;
    set_timezones_to_noon(&app).await;
    grant_credit(&root, &tenant_wallet_id(&app).await, "50").await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, people).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    wait_until_charged(&app).await;
    let charged = app.count("select count(*) from charges").await;
    assert_eq!(
        charged,
        i64::from(people),
        "every call is answered and charged"
    );
    app
}

/// Parses an amount in dollars into micro-dollars.
fn parse_micros(amount: &Value) -> i64 {
    let amount = amount
        .as_str()
        .unwrap_or_else(|| panic!("{amount} is not an amount"));
    let (whole, part) = amount.split_once('.').expect("decimal places");
    let digits: i64 = format!("{whole}{part:0<6}").parse().expect("digits");
    digits
}

/// Fails unless a session's services add up to its cost and hide the platform's own price.
#[track_caller]
fn assert_session_adds_up(session: &Value) {
    let services = session["services"].as_array().expect("services");
    let parts: i64 = services
        .iter()
        .map(|one| parse_micros(&one["cost_usd"]))
        .sum();
    assert_eq!(parts, parse_micros(&session["cost_usd"]), "{session}");
    assert!(!session.to_string().contains("base_cost_usd"), "{session}");
    assert!(!session.to_string().contains("markup_usd"), "{session}");
}

/// Compares the totals and the buckets of a summary with seven charged calls.
fn assert_summary_adds_up(summary: &Value, retail: i64) {
    assert_eq!(
        parse_micros(&summary["totals"]["cost_usd"]),
        retail,
        "{summary}"
    );

    let buckets = summary["buckets"].as_array().expect("buckets");
    let costs = buckets.iter().map(|one| parse_micros(&one["cost_usd"]));
    assert_eq!(costs.sum::<i64>(), retail, "{summary}");
    let calls = buckets.iter().filter_map(|one| one["calls"].as_i64());
    assert_eq!(calls.sum::<i64>(), 7, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_sums_match_the_charges() {
    let app = app_with_charged_calls(7).await;
    let (retail, base) = (app.count(SUM_RETAIL).await, app.count(SUM_BASE).await);
    assert!(retail > 0);

    let root = existing_root(&app).await;

    for mount in [BILLING, "/billing"] {
        let records = app.get(&format!("{mount}/usage/records")).await.expect(200);
        assert_eq!(records["total"], 7);

        let sessions = records["grouped_sessions"].as_array().expect("sessions");
        let sum: i64 = sessions
            .iter()
            .map(|session| parse_micros(&session["cost_usd"]))
            .sum();
        assert_eq!(sum, retail, "the sessions of {mount}");
        for session in sessions {
            assert_session_adds_up(session);
        }

        let all = app.get(&format!("{mount}/usage-records")).await;
        assert!(!all.headers.contains_key("x-truncated"));
        assert_eq!(
            all.expect(200)["grouped_sessions"],
            records["grouped_sessions"]
        );

        let overview = app
            .get(&format!("{mount}/usage/overview"))
            .await
            .expect(200);
        for part in ["total", "this_month"] {
            assert_eq!(parse_micros(&overview[part]["cost_usd"]), retail, "{part}");
            assert_eq!(overview[part]["calls"], 7);
        }

        for period in ["day", "week", "month", "4months", "year", "all"] {
            let path = format!("{mount}/usage/summary?time_period={period}");
            let summary = app.get(&path).await.expect(200);
            assert_summary_adds_up(&summary, retail);

            let seen = root.get(&path).await.expect(200);
            let seen_base = parse_micros(&seen["totals"]["base_cost_usd"]);
            assert_eq!(seen_base, base, "{period}");
        }

        let one = sessions[0]["session_id"].as_str().expect("an id");
        let detail = app
            .get(&format!("{mount}/usage/sessions/{one}"))
            .await
            .expect(200);
        assert_eq!(detail["cost_usd"], sessions[0]["cost_usd"]);
        assert_eq!(detail["charges"][0]["version"], 1);
        assert_eq!(detail["held_usd"], "0.00");
    }

    let balance = app
        .get(&format!("{BILLING}/credit-balance"))
        .await
        .expect(200);
    assert_eq!(
        parse_micros(&balance["available_balance_usd"]),
        50_000_000 - retail
    );
    assert_eq!(
        balance["credit_balance_usd"],
        balance["available_balance_usd"]
    );
    assert_eq!(parse_micros(&balance["month_spend_usd"]), retail);
    app.finish().await;
}

/// The platform's super_admin that the app has already, with a session.
async fn existing_root(app: &App) -> SessionUser<'_> {
    let email = "root@example.com";
    let id: String = sqlx::query_scalar("select id::text from users where email = $1")
        .bind(email)
        .fetch_one(&app.context.pool)
        .await
        .expect("a user");
    let token = crate::auth::login::open_session(app, email).await;
    SessionUser { app, id, token }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_searched_and_paged() {
    let app = app_with_charged_calls(6).await;
    let get = async |query: &str| app.get(&format!("{BILLING}/usage/records?{query}")).await;

    let ids = |answer: ApiResponse| -> Vec<String> {
        let answer = answer.expect(200);
        let sessions = answer["grouped_sessions"]
            .as_array()
            .expect("sessions")
            .clone();
        sessions
            .iter()
            .map(|one| one["session_id"].as_str().expect("an id").to_owned())
            .collect()
    };

    let all = ids(get("").await);

    let mut paged = ids(get("limit=4").await);
    paged.extend(ids(get("limit=4&offset=4").await));
    assert_eq!(paged, all);
    let mut paged = ids(get("page=1&page_size=5").await);
    paged.extend(ids(get("page=2&page_size=5").await));
    assert_eq!(paged, all);

    assert_eq!(get("offset=100").await.expect(200)["total"], 6);

    for period in ["day", "week", "month", "4months", "year", "all"] {
        assert_eq!(ids(get(&format!("time_filter={period}")).await), all);
    }

    assert_eq!(ids(get("usage_type=calls").await), all);
    assert!(ids(get("usage_type=chat").await).is_empty());

    assert_eq!(
        ids(get(&format!("search={}", all[2])).await),
        [all[2].clone()]
    );
    assert_eq!(ids(get("search=ada").await), all, "the agent's name");
    assert_eq!(ids(get("search=%2B12122001003").await).len(), 1, "a number");
    assert!(ids(get("search=%25").await).is_empty(), "no wildcards");

    for wrong in [
        "limit=0",
        "limit=201",
        "offset=-1",
        "page=0",
        "time_filter=decade",
        "usage_type=x",
    ] {
        get(wrong).await.expect(422);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_visible_only_to_its_owner_and_administrators() {
    let app = app_with_charged_calls(6).await;
    let records = app
        .get(&format!("{BILLING}/usage/records"))
        .await
        .expect(200);
    let one = records["grouped_sessions"][0]["session_id"].clone();

    let root = existing_root(&app).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let ada = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let eve = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;

    let org = app.tenant.org;
    for (who, query, total) in [
        (&bob, String::new(), 0),
        (&ada, String::new(), 6),
        (&ada, "scope=mine".to_owned(), 0),
        (&eve, String::new(), 0),
        (&eve, format!("organization_ids={org}"), 0),
        (&root, format!("organization_ids={org}"), 6),
        (&root, format!("owner_user_ids={}", bob.id), 0),
        (&root, "platform_roles=user".to_owned(), 0),
        (&root, "platform_roles=org_admin".to_owned(), 6),
        (&root, "scope=mine".to_owned(), 0),
    ] {
        let usage = who
            .get(&format!("{BILLING}/usage/records?{query}"))
            .await
            .expect(200);
        assert_eq!(usage["total"], total, "{query}");

        let records = who
            .get(&format!("{BILLING}/usage-records?{query}"))
            .await
            .expect(200);
        assert_eq!(records["total"], total, "{query}");

        let summary = who
            .get(&format!("{BILLING}/usage/summary?{query}"))
            .await
            .expect(200);
        assert_eq!(summary["totals"]["calls"], total, "{query}");
    }

    let session = format!("{BILLING}/usage/sessions/{}", one.as_str().unwrap());
    for (who, status) in [(&bob, 404), (&ada, 200), (&eve, 404), (&root, 200)] {
        who.get(&session).await.expect(status);
    }

    let caller = app.get("/api/v1/me").await.expect(200)["user_id"].clone();
    let of = format!(
        "{BILLING}/usage/overview?user_id={}",
        caller.as_str().unwrap()
    );
    for (who, status) in [(&bob, 403), (&ada, 200), (&eve, 404), (&root, 200)] {
        who.get(&of).await.expect(status);
    }

    assert_eq!(ada.get(&of).await.expect(200)["total"]["calls"], 6);
    app.finish().await;
}

/// Files of complete messages.
fn complete_messages(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.expect("a file").path());
    paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "eml"))
        .collect()
}

/// Waits for the one message about an export and returns its decoded text.
async fn wait_for_mail(app: &App) -> String {
    let directory = app.directory().join("mail");
    let there = || async { complete_messages(&directory).len() == 1 };
    eventually("one mail is there", TEST_TIMEOUT, there).await;
    let text = std::fs::read_to_string(&complete_messages(&directory)[0]).expect("a mail");
    // Decodes quoted-printable: a line wrap is `=` at the end of a line, and `=` is `=3D`.
    text.replace("=\r\n", "")
        .replace("=\n", "")
        .replace("=3D", "=")
}

/// Path of the link in a message.
fn link_path(app: &App, mail: &str) -> String {
    let begin = mail.find(&app.url).expect("a link") + app.url.len();
    let rest = &mail[begin..];
    let end = rest.find(['\r', '\n', '\'', ' ']).unwrap_or(rest.len());
    rest[..end].to_owned()
}

/// Fails unless the file has five charged calls, and the agent's name, a formula, is made text.
#[track_caller]
fn assert_export_matches_charges(text: &str, retail: i64) {
    let lines: Vec<&str> = text.trim_end().split("\r\n").collect();
    assert_eq!(lines.len(), 6, "{}", text);
    assert!(
        lines[0].starts_with("session_id,charged_at,"),
        "{}",
        lines[0]
    );
    assert!(!lines[0].contains("base_cost_usd"), "{}", lines[0]);

    let column = lines[0]
        .split(',')
        .position(|name| name == "cost_usd")
        .expect("a cost");

    let costs = lines[1..].iter().map(|line| {
        // No cell has quotes or commas, so splitting at commas is enough.
        parse_micros(&json!(line.split(',').nth(column).expect("a cell")))
    });
    assert_eq!(costs.sum::<i64>(), retail);

    assert!(
        lines[1].contains(",'=cmd|"),
        "the name is made text: {}",
        lines[1]
    );
    assert!(
        lines[1].contains(",+1212"),
        "a number stays one: {}",
        lines[1]
    );

    let sessions: BTreeSet<&str> = lines[1..]
        .iter()
        .filter_map(|line| line.split(',').next())
        .collect();
    assert_eq!(sessions.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_usage_export_is_mailed_and_only_its_user_can_download_it() {
    let app = app_without_credit().await;
    sqlx::query("update agents set name = '=cmd|'' /C calc''!A0' where org_id = $1")
        .bind(app.tenant.org)
        .execute(&app.context.pool)
        .await
        .expect("a name");

    let root = super_admin(&app).await;
    grant_credit(&root, &tenant_wallet_id(&app).await, "50").await;

    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 5).await;
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    wait_until_charged(&app).await;

    let asked = app
        .get(&format!("{BILLING}/usage/export?session_types=outbound"))
        .await
        .expect(202);
    assert_eq!(asked["email"], "acme@example.com");

    let mail = wait_for_mail(&app).await;
    assert!(
        mail.contains("acme@example.com") && mail.contains("5 sessions"),
        "{mail}"
    );
    assert!(mail.contains("x-api-key: $PEAL_API_KEY"), "{mail}");
    let path = link_path(&app, &mail);
    assert!(
        path.contains(asked["export_id"].as_str().expect("an id")),
        "{path}"
    );

    let file = app.get(&path).await;
    assert_eq!(file.status, 200, "{}", file.text);
    assert_eq!(file.headers["content-type"], "text/csv; charset=utf-8");
    assert_export_matches_charges(&file.text, app.count(SUM_RETAIL).await);

    let eve = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;
    let ada = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    eve.get(&path).await.expect(404);
    ada.get(&path).await.expect(404);
    root.get(&path).await.expect(404);
    assert_eq!(
        send_request(app.anonymous(Method::GET, &path)).await.status,
        401
    );

    let forged = path.replace("token=", "token=A");
    app.get(&forged).await.expect(404);
    let (bare, _) = path.split_once('?').expect("a query");
    app.get(bare).await.expect(422);

    app.context.clock.shift(TimeDelta::hours(25));
    assert_eq!(app.get(&path).await.expect(410)["code"], "gone");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_cannot_download_an_export_requested_by_a_session() {
    let app = App::start().await;
    let ada = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let made = ada.send(Method::POST, "/api/v1/api-keys", json!({})).await;
    let key = made.expect(200)["api_key"]["api_key"].clone();
    let key = key.as_str().expect("a key");
    ada.get(&format!("{BILLING}/usage/export"))
        .await
        .expect(202);
    let mail = wait_for_mail(&app).await;
    assert!(!mail.contains("x-api-key"), "{mail}");
    assert!(mail.contains("Authorization: Bearer $PEAL_TOKEN"), "{mail}");
    let path = link_path(&app, &mail);
    let shown = app.anonymous(Method::GET, &path).header("x-api-key", key);
    send_request(shown).await.expect(404);
    assert_eq!(ada.get(&path).await.status, 200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_export_is_refused_and_head_starts_none() {
    let app = without_workers().await;

    let path = format!("{BILLING}/usage/export");
    for (query, code) in [
        ("from_date=2026-11-02&to_date=2026-11-01", "range_reversed"),
        ("from_date=2025-01-01&to_date=2026-01-02", "range_too_long"),
    ] {
        let refused = app.get(&format!("{path}?{query}")).await.expect(400);
        assert_eq!(refused["code"], code);
    }

    for wrong in [
        "session_types=phone",
        "agent_ids=x",
        "from_date=1.1.2026",
        "usage_type=x",
    ] {
        app.get(&format!("{path}?{wrong}")).await.expect(422);
    }

    let head = send_request(app.request(Method::HEAD, &path)).await;
    assert_eq!(head.status, 202);
    let jobs = "select count(*) from jobs where kind = 'export_usage'";
    assert_eq!(app.count(jobs).await, 0, "HEAD starts no export");

    sqlx::query("update users set email = 'nobody' where org_id = $1")
        .bind(app.tenant.org)
        .execute(&app.context.pool)
        .await
        .expect("no address");

    // The API caches a key's user for half a second.
    let refused = || async { app.get(&path).await.status == 400 };
    eventually("the account has no e-mail", TEST_TIMEOUT, refused).await;
    assert_eq!(app.get(&path).await.expect(400)["code"], "no_email");

    sqlx::query("update users set email = 'acme@example.com' where org_id = $1")
        .bind(app.tenant.org)
        .execute(&app.context.pool)
        .await
        .expect("an address");
    let taken = || async { app.get(&path).await.status == 202 };
    eventually("the account has an e-mail", TEST_TIMEOUT, taken).await;

    let first = app.get(&path).await.expect(202);
    let again = app.get(&path).await.expect(202);
    assert_eq!(
        first, again,
        "a request during an export returns the same export"
    );
    let exports = "select count(*) from usage_exports";
    assert_eq!(app.count(exports).await, 1);

    let download = format!(
        "{BILLING}/exports/{}/download?token={}",
        first["export_id"].as_str().unwrap(),
        export_token(&app, &first).await
    );
    assert_eq!(
        app.get(&download).await.expect(409)["code"],
        "export_not_ready"
    );

    sqlx::query("update jobs set state = 'done', finished_at = now() where kind = 'export_usage'")
        .execute(&app.context.pool)
        .await
        .expect("no jobs");
    app.finish().await;
}

/// Token in the link of an export.
async fn export_token(app: &App, asked: &Value) -> String {
    let me = app.get("/api/v1/me").await.expect(200);
    let export = asked["export_id"].as_str().unwrap().parse().unwrap();
    let user = me["user_id"].as_str().unwrap().parse().unwrap();
    let keys = &app.context.config.keys;
    keys.export_token(export, app.tenant.org, user)
}
