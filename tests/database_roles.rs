//! Database roles of the programs, which row-level security must bind.

use reqwest::Method;
use sqlx::{Connection as _, PgConnection};

use crate::harness::app::{Client, PATIENCE, answer};
use crate::harness::eventually;
use crate::sign_in::quiet;

async fn ready(client: &Client) -> (u16, String) {
    let health = answer(client.anonymous(Method::GET, "/health/ready")).await;
    let role = health.json()["database_role"]
        .as_str()
        .expect("a role")
        .to_owned();
    (health.status.as_u16(), role)
}

/// Waits until an API with a restricted role is ready: its first connection may take longer than
/// one readiness check.
async fn is_ready(client: &Client) {
    let restricted = || async { ready(client).await == (200, "restricted".to_owned()) };
    eventually("the API is ready", PATIENCE, restricted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_whom_row_level_security_does_not_bind_is_not_ready() {
    let mut app = quiet().await;
    is_ready(&app).await;

    let (owner, admin) = (app.database_url().to_owned(), app.database_url().to_owned());
    let (special, _) = app
        .start_api(|settings| settings.database_url = Some(admin))
        .await;
    let (status, role) = ready(&special).await;
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
    let (status, role) = ready(&owning).await;
    assert_eq!(status, 503);
    assert_eq!(role, "owns tables");
    // The role is checked once at startup, so the first API stays ready.
    is_ready(&app).await;
    app.finish().await;
}
