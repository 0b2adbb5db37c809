//! Earnings of resellers, to the micro-dollar.

use peal_api::cli::admin::AdminRole;
use reqwest::Method;
use rust_decimal::{Decimal, RoundingStrategy};
use serde_json::{Value, json};
use sqlx::Row;

use crate::auth::login::{SessionUser, without_workers};
use crate::harness::app::{App, Tenant, phone_number, send_request};
use crate::harness::members::audited_actions;
use crate::purse::{
    WALLETS_PATH, grant_credit, set_timezones_to_noon, super_admin, wait_until_charged,
};

const EARNINGS: &str = "/api/v1/earnings";

async fn set_reseller_pricing(
    root: &SessionUser<'_>,
    org: &str,
    model: &str,
    commission: &str,
    markup: &str,
) {
    for (verb, body) in [
        ("business-model", json!({"org_type": model})),
        ("commission", json!({"percentage": commission})),
        ("markup", json!({"percentage": markup, "currency": "USD"})),
    ] {
        let path = format!("/api/v1/orgs/{org}/{verb}");
        root.send(Method::POST, &path, body).await.expect(200);
    }
}

/// Creates a customer of the app's tenant.
async fn create_customer(app: &App, name: &str) -> Tenant {
    let tenant = app.create_tenant(name).await;
    sqlx::query("update organizations set parent_org_id = $1 where id = $2")
        .bind(app.tenant.org)
        .bind(tenant.org)
        .execute(&app.context.pool)
        .await
        .expect("a customer");
    tenant
}

/// Gives a tenant credit and calls this many people as that tenant.
async fn place_paid_calls(app: &App, root: &SessionUser<'_>, tenant: &Tenant, people: u32) {
    set_timezones_to_noon(app).await;
    let mine =
        send_request(app.request_as(tenant, Method::GET, &format!("{WALLETS_PATH}/me"))).await;
    grant_credit(root, mine.expect(200)["id"].as_str().expect("an id"), "50").await;
    for n in 0..people {
        let path = format!(
            "/api/call/create_call?phoneNumber={}&agent_id={}",
            phone_number(n).replace('+', "%2B"),
            tenant.agent
        );
        send_request(app.request_as(tenant, Method::POST, &path).json(&json!({})))
            .await
            .expect(202);
    }
    wait_until_charged(app).await;
}

/// Amounts for an organisation's calls, computed independently from their durations.
struct ExpectedEarnings {
    base: i64,
    retail: i64,
    commission: i64,
    calls: i64,
}

fn round_to_micros(dollars: Decimal) -> i64 {
    let micros = (dollars * Decimal::from(1_000_000))
        .round_dp_with_strategy(0, RoundingStrategy::MidpointNearestEven);
    micros.to_string().parse().expect("a whole number")
}

async fn expected_earnings(
    app: &App,
    org: &Tenant,
    commission: i64,
    markup: i64,
) -> ExpectedEarnings {
    let rows = sqlx::query(
        "select duration_seconds from calls where org_id = $1 and duration_seconds > 0",
    )
    .bind(org.org)
    .fetch_all(&app.context.pool)
    .await
    .expect("calls");

    let factor = Decimal::ONE + Decimal::new(markup, 2);
    let mut worked = ExpectedEarnings {
        base: 0,
        retail: 0,
        commission: 0,
        calls: 0,
    };

    for row in rows {
        let seconds: i32 = row.get(0);
        let whole = (seconds + 59) / 60 * 60;

        let mut base = 0;
        for (quantity, rate) in [
            (whole, "0.014"),
            (seconds, "0.02"),
            (seconds, "0.01"),
            (seconds, "0.01"),
        ] {
            let rate: Decimal = rate.parse().expect("a rate");
            let exact = Decimal::from(quantity) * rate;
            base += round_to_micros(exact / Decimal::from(60));
            worked.retail += round_to_micros(exact * factor / Decimal::from(60));
        }

        worked.base += base;
        worked.commission += round_to_micros(Decimal::new(base, 6) * Decimal::new(commission, 2));
        worked.calls += 1;
    }
    worked
}

fn format_usd(micros: i64) -> Value {
    let part = format!("{:06}", micros % 1_000_000);
    let shown = part.trim_end_matches('0').len().max(2);
    json!(format!("{}.{}", micros / 1_000_000, &part[..shown]))
}

async fn sum_reseller_entries(app: &App) -> i64 {
    app.count(
        "select coalesce(sum(e.amount_micros), 0)::bigint
         from ledger_entries e
         join ledger_accounts a on a.id = e.account_id
         where a.kind = 'reseller_earnings'",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distributor_earns_its_markup_and_its_commission() {
    let app = App::start().await;
    let root = super_admin(&app).await;
    let ada = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let org = app.tenant.org.to_string();
    set_reseller_pricing(&root, &org, "distributor", "10", "25").await;

    let customer = create_customer(&app, "Customer").await;
    place_paid_calls(&app, &root, &customer, 6).await;

    let worked = expected_earnings(&app, &customer, 10, 25).await;
    assert_eq!(worked.calls, 6);
    let markup = worked.retail - worked.base;

    for period in ["day", "week", "month", "year", "all"] {
        let earned = ada
            .get(&format!("{EARNINGS}/me?period={period}"))
            .await
            .expect(200);
        assert_eq!(
            earned["base_cost_usd"],
            format_usd(worked.base),
            "{period}: {earned}"
        );
        assert_eq!(
            earned["retail_revenue_usd"],
            format_usd(worked.retail),
            "{period}"
        );
        assert_eq!(earned["markup_earned_usd"], format_usd(markup), "{period}");
        assert_eq!(
            earned["commission_earned_usd"],
            format_usd(worked.commission),
            "{period}"
        );
        assert_eq!(
            earned["total_earned_usd"],
            format_usd(markup + worked.commission),
            "{period}"
        );

        assert_eq!(earned["calls"], 6);
        assert_eq!(earned["org_type"], "distributor");

        let path = format!("{EARNINGS}/me/breakdown?period={period}");
        let parts = ada.get(&path).await.expect(200);
        assert_eq!(parts["total_earned_usd"], earned["total_earned_usd"]);
        let buckets = parts["buckets"].as_array().expect("buckets");
        let calls: i64 = buckets.iter().filter_map(|one| one["calls"].as_i64()).sum();
        assert_eq!(calls, 6, "{period}");

        let path = format!("{EARNINGS}/orgs/{org}?period={period}");
        let seen = root.get(&path).await.expect(200);
        assert_eq!(seen["total_earned_usd"], earned["total_earned_usd"]);
    }
    assert_eq!(
        sum_reseller_entries(&app).await,
        markup + worked.commission,
        "the ledger agrees"
    );

    // The customer sees its price, but not the markup.
    let usage =
        send_request(app.request_as(&customer, Method::GET, "/billing/usage/overview")).await;
    let usage = usage.expect(200);
    assert_eq!(usage["total"]["cost_usd"], format_usd(worked.retail));
    assert!(usage["total"].get("base_cost_usd").is_none() && !usage.to_string().contains("markup"));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_partner_earns_its_commission_and_no_markup() {
    let app = App::start().await;
    let root = super_admin(&app).await;
    let ada = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let org = app.tenant.org.to_string();
    set_reseller_pricing(&root, &org, "channel_partner", "12.5", "25").await;

    let customer = create_customer(&app, "Customer").await;
    place_paid_calls(&app, &root, &customer, 4).await;
    // Its own calls count as well.
    place_paid_calls(&app, &root, &app.tenant, 3).await;

    let (theirs, own) = (
        expected_commission(&app, &customer).await,
        expected_commission(&app, &app.tenant).await,
    );

    let earned = ada.get(&format!("{EARNINGS}/me")).await.expect(200);
    assert_eq!(earned["period"], "month");
    assert_eq!(earned["calls"], 7);
    assert_eq!(earned["markup_earned_usd"], "0.00");
    assert_eq!(earned["base_cost_usd"], earned["retail_revenue_usd"]);
    assert_eq!(earned["commission_earned_usd"], format_usd(theirs + own));
    assert_eq!(earned["total_earned_usd"], format_usd(theirs + own));
    assert_eq!(sum_reseller_entries(&app).await, theirs + own);
    app.finish().await;
}

/// Commission of an eighth of each call's base cost.
async fn expected_commission(app: &App, tenant: &Tenant) -> i64 {
    let rows = sqlx::query("select base_micros from charges where org_id = $1 and version = 1")
        .bind(tenant.org)
        .fetch_all(&app.context.pool)
        .await
        .expect("charges");
    let eighth = |row: &sqlx::postgres::PgRow| {
        let base: i64 = row.get(0);
        round_to_micros(Decimal::new(base, 6) / Decimal::from(8))
    };
    rows.iter().map(eighth).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_of_resellers_see_earnings() {
    let app = without_workers().await;
    let root = super_admin(&app).await;
    let ada = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let org = app.tenant.org.to_string();

    for path in ["me", "me/breakdown"] {
        let refused = ada.get(&format!("{EARNINGS}/{path}")).await.expect(403);
        assert_eq!(
            refused["detail"],
            "Forbidden: not a reseller org or not org_admin"
        );
    }

    set_reseller_pricing(&root, &org, "channel_partner", "5", "0").await;
    let nothing = ada
        .get(&format!("{EARNINGS}/me?period=all"))
        .await
        .expect(200);
    assert_eq!(nothing["total_earned_usd"], "0.00");

    bob.get(&format!("{EARNINGS}/me")).await.expect(403);
    app.get(&format!("{EARNINGS}/me")).await.expect(403);
    ada.get(&format!("{EARNINGS}/orgs/{org}")).await.expect(403);
    root.get(&format!("{EARNINGS}/orgs/{org}"))
        .await
        .expect(200);
    root.get(&format!("{EARNINGS}/orgs/{}", uuid::Uuid::new_v4()))
        .await
        .expect(404);

    for wrong in ["decade", "4months"] {
        ada.get(&format!("{EARNINGS}/me?period={wrong}"))
            .await
            .expect(422);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn super_admins_create_resellers_and_resellers_set_their_markup() {
    let app = without_workers().await;
    let root = super_admin(&app).await;
    let ada = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let eve = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;
    let org = app.tenant.org.to_string();

    let set = async |who: &SessionUser<'_>, verb: &str, body: Value| {
        let path = format!("/api/v1/orgs/{org}/{verb}");
        who.send(Method::POST, &path, body).await
    };

    let markup = json!({"percentage": 20});
    let refused = set(&ada, "markup", markup.clone()).await.expect(403);
    assert_eq!(
        refused["detail"],
        "Forbidden: not a reseller org or not org_admin"
    );
    assert_eq!(
        set(&root, "commission", markup.clone()).await.expect(409)["code"],
        "not_a_reseller"
    );

    for who in [&ada, &bob, &eve] {
        set(who, "business-model", json!({"org_type": "distributor"}))
            .await
            .expect(403);
        set(who, "commission", markup.clone()).await.expect(403);
    }

    let made = set(&root, "business-model", json!({"org_type": "distributor"})).await;
    assert_eq!(made.expect(200)["pricing"]["org_type"], "distributor");
    let marked = set(&ada, "markup", json!({"percentage": "12.345678"}))
        .await
        .expect(200);
    assert_eq!(marked["pricing"]["markup_percent"], "12.345678");

    set(&eve, "markup", markup.clone()).await.expect(404);
    set(&bob, "markup", markup).await.expect(403);

    for wrong in [
        json!({"percentage": -1}),
        json!({"percentage": 1001}),
        json!({"percentage": "0.0000001"}),
        json!({"percentage": 1, "currency": "EUR"}),
        json!({}),
    ] {
        set(&ada, "markup", wrong).await.expect(422);
    }

    set(&root, "commission", json!({"percentage": 101}))
        .await
        .expect(422);
    set(&root, "business-model", json!({"org_type": "club"}))
        .await
        .expect(422);

    let actions = ["organization.set_business_model", "organization.set_markup"];
    assert_eq!(audited_actions(&app, &org).await, actions);
    app.finish().await;
}
