//! Money of people in tests: whose wallet is whose, and how it comes in.

use chrono::Timelike as _;
use peal_api::cli::admin::AdminRole;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::login::Person;
use crate::harness::app::{ApiResponse, App, TEST_TIMEOUT, send_request};
use crate::harness::eventually;

/// Where wallets live.
pub const WALLETS: &str = "/api/v1/wallets";

/// Somebody of the platform.
pub async fn root(app: &App) -> Person<'_> {
    Person::new(app, "root@example.com", "Platform", AdminRole::SuperAdmin).await
}

/// Puts everybody where it is noon, so that no test passes midnight.
pub async fn at_noon(app: &App) {
    let hour = i64::from(app.context.clock.now().hour());
    sqlx::query("update organizations set timezone = $1")
        .bind(format!("Etc/GMT{:+}", hour - 12))
        .execute(&app.context.pool)
        .await
        .expect("a zone");
}

/// The id of a person's own wallet.
pub async fn wallet_of(person: &Person<'_>) -> String {
    let wallet = person.get(&format!("{WALLETS}/me")).await.expect(200);
    wallet["id"].as_str().expect("an id").to_owned()
}

/// The wallet of the tenant's own user, whose key the tests call with.
pub async fn tenants_wallet(app: &App) -> String {
    let wallet = app.get(&format!("{WALLETS}/me")).await.expect(200);
    wallet["id"].as_str().expect("an id").to_owned()
}

/// The wallet of an organisation.
pub async fn org_wallet(person: &Person<'_>, org: &str) -> String {
    let path = format!("{WALLETS}/orgs/{org}/members");
    let members = person.get(&path).await.expect(200);
    let id = &members["organization_wallet"]["id"];
    id.as_str().expect("an id").to_owned()
}

/// Sends a body that moves money, under a key of its own.
pub async fn move_money(person: &Person<'_>, path: &str, body: Value) -> ApiResponse {
    let key = Uuid::new_v4().to_string();
    move_under(person, path, &key, body).await
}

/// Sends a body that moves money, under a key.
pub async fn move_under(person: &Person<'_>, path: &str, key: &str, body: Value) -> ApiResponse {
    let request = person
        .app
        .anonymous(Method::POST, path)
        .bearer_auth(&person.token)
        .header("idempotency-key", key)
        .json(&body);
    send_request(request).await
}

/// Gives credit to a wallet, and answers what the API said.
pub async fn give(person: &Person<'_>, wallet: &str, amount: &str) -> Value {
    let path = format!("{WALLETS}/{wallet}/grants");
    move_money(person, &path, json!({"amount_usd": amount}))
        .await
        .expect(201)
}

/// What a wallet may spend.
pub async fn available(person: &Person<'_>, wallet: &str) -> String {
    let wallet = person.get(&format!("{WALLETS}/{wallet}")).await.expect(200);
    let available = &wallet["available_balance_usd"];
    available.as_str().expect("an amount").to_owned()
}

/// Waits until every call that has ended is charged.
pub async fn settled(app: &App) {
    app.drain().await;
    let all = || async {
        let left = "select (select count(*) from charges_due) + (select count(*) from holds where state = 'open')";
        app.count(left).await == 0
    };
    eventually("everything is settled", TEST_TIMEOUT, all).await;
}
