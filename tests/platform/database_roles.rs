//! Database roles of the programs, which row-level security must bind.

use reqwest::Method;
use sqlx::{Connection as _, PgConnection};

use crate::auth::login::without_workers;
use crate::harness::app::{ApiClient, TEST_TIMEOUT, send_request};
use crate::harness::eventually;

async fn readiness(client: &ApiClient) -> (u16, String) {
    let health = send_request(client.anonymous(Method::GET, "/health/ready")).await;
    let role = health.json()["database_role"]
        .as_str()
        .expect("a role")
        .to_owned();
    (health.status.as_u16(), role)
}

/// Waits until an API with a restricted role is ready: its first connection may take longer than
/// one readiness check.
async fn wait_until_ready(client: &ApiClient) {
    let restricted = || async { readiness(client).await == (200, "restricted".to_owned()) };
    eventually("the API is ready", TEST_TIMEOUT, restricted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_with_a_role_that_bypasses_row_level_security_is_not_ready() {
    let mut app = without_workers().await;
    wait_until_ready(&app).await;

    let (owner, admin) = (app.database_url().to_owned(), app.database_url().to_owned());
    let (special, _) = app
        .start_api(|settings| settings.database_url = Some(admin))
        .await;
    let (status, role) = readiness(&special).await;
    assert_eq!(status, 503);
    assert_eq!(
        role, "superuser",
        "the response must not show the role's name"
    );

    let mut owner = PgConnection::connect(&owner).await.expect("a connection");
    sqlx::query("alter table batch_data owner to peal_system")
        .execute(&mut owner)
        .await
        .expect("another owner");
    let (owning, _) = app.start_api(|_| {}).await;
    let (status, role) = readiness(&owning).await;
    assert_eq!(status, 503);
    assert_eq!(role, "owns tables");
    // The role is checked once at startup, so the first API stays ready.
    wait_until_ready(&app).await;
    app.finish().await;
}
