//! Wallets in tests: ids, credit and transfers.

use chrono::Timelike as _;
use peal_api::cli::admin::AdminRole;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::login::SessionUser;
use crate::harness::app::{ApiResponse, App, TEST_TIMEOUT, send_request};
use crate::harness::eventually;

/// Base path of wallets.
pub const WALLETS_PATH: &str = "/api/v1/wallets";

/// A super admin of the platform.
pub async fn super_admin(app: &App) -> SessionUser<'_> {
    SessionUser::new(app, "root@example.com", "Platform", AdminRole::SuperAdmin).await
}

/// Sets the time zone of all organisations to one where it is noon, so that no test passes midnight.
pub async fn set_timezones_to_noon(app: &App) {
    let hour = i64::from(app.context.clock.now().hour());
    sqlx::query("update organizations set timezone = $1")
        .bind(format!("Etc/GMT{:+}", hour - 12))
        .execute(&app.context.pool)
        .await
        .expect("a zone");
}

/// Id of a person's own wallet.
pub async fn wallet_id(person: &SessionUser<'_>) -> String {
    let wallet = person.get(&format!("{WALLETS_PATH}/me")).await.expect(200);
    wallet["id"].as_str().expect("an id").to_owned()
}

/// Id of the wallet of the tenant's own user.
pub async fn tenant_wallet_id(app: &App) -> String {
    let wallet = app.get(&format!("{WALLETS_PATH}/me")).await.expect(200);
    wallet["id"].as_str().expect("an id").to_owned()
}

/// Id of the wallet of an organisation.
pub async fn org_wallet_id(person: &SessionUser<'_>, org: &str) -> String {
    let path = format!("{WALLETS_PATH}/orgs/{org}/members");
    let members = person.get(&path).await.expect(200);
    let id = &members["organization_wallet"]["id"];
    id.as_str().expect("an id").to_owned()
}

/// Sends a request that moves money, with a new idempotency key.
pub async fn move_money(person: &SessionUser<'_>, path: &str, body: Value) -> ApiResponse {
    let key = Uuid::new_v4().to_string();
    move_money_with_key(person, path, &key, body).await
}

/// Sends a request that moves money, with an idempotency key.
pub async fn move_money_with_key(
    person: &SessionUser<'_>,
    path: &str,
    key: &str,
    body: Value,
) -> ApiResponse {
    let request = person
        .app
        .anonymous(Method::POST, path)
        .bearer_auth(&person.token)
        .header("idempotency-key", key)
        .json(&body);
    send_request(request).await
}

/// Grants credit to a wallet and returns the response.
pub async fn grant_credit(person: &SessionUser<'_>, wallet: &str, amount: &str) -> Value {
    let path = format!("{WALLETS_PATH}/{wallet}/grants");
    move_money(person, &path, json!({"amount_usd": amount}))
        .await
        .expect(201)
}

/// Available balance of a wallet, in USD.
pub async fn available_balance(person: &SessionUser<'_>, wallet: &str) -> String {
    let wallet = person
        .get(&format!("{WALLETS_PATH}/{wallet}"))
        .await
        .expect(200);
    let available = &wallet["available_balance_usd"];
    available.as_str().expect("an amount").to_owned()
}

/// Waits until all ended calls are charged.
pub async fn wait_until_charged(app: &App) {
    app.drain().await;
    let all = || async {
        let left = "select (select count(*) from charges_due) + (select count(*) from holds where state = 'open')";
        app.count(left).await == 0
    };
    eventually("everything is settled", TEST_TIMEOUT, all).await;
}
