//! Feature flags, which close routes to sessions and keys alike.

use peal_api::cli::admin::AdminRole;
use reqwest::Method;
use serde_json::json;

use crate::auth::login::{SessionUser, send_with_token, without_workers};
use crate::harness::app::TEST_TIMEOUT;
use crate::harness::eventually;

const FLAGS: &str = "/api/v1/feature-flags";

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_feature_is_closed_to_sessions_and_keys() {
    let mut app = without_workers().await;
    let (other, _) = app.start_api(|_| {}).await;
    let app = app;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;

    let all_on = json!({"outbound": true, "call_analytics": true, "call_logs": true});
    assert_eq!(bob.get(&format!("{FLAGS}/me")).await.expect(200), all_on);
    let bobs = format!("{FLAGS}/{}", bob.id);
    let off = admin
        .send(Method::PUT, &bobs, json!({"outbound": false}))
        .await;
    assert_eq!(off.expect(200)["outbound"], false);

    let mine = "/api/v1/batch-call/me";
    let refused = send_with_token(&other, &bob.token, Method::GET, mine, None)
        .await
        .expect(403);
    assert_eq!(
        refused["detail"],
        "Forbidden: the feature outbound is switched off for this user"
    );

    bob.send(
        Method::POST,
        "/api/call/create_call?phoneNumber=x",
        json!({}),
    )
    .await
    .expect(403);
    bob.get("/api/v1/me").await.expect(200);

    // The tenant's key belongs to acme@example.com.
    let acme: String =
        sqlx::query_scalar("select id::text from users where email = 'acme@example.com'")
            .fetch_one(&app.context.pool)
            .await
            .expect("a user");

    app.get(mine).await.expect(200);
    let acmes = format!("{FLAGS}/{acme}");
    admin
        .send(Method::PUT, &acmes, json!({"outbound": false}))
        .await
        .expect(200);

    let closed = || async { app.get(mine).await.status.as_u16() == 403 };
    eventually("the flag applies to the key", TEST_TIMEOUT, closed).await;

    admin
        .send(Method::PUT, &acmes, json!({"outbound": true}))
        .await
        .expect(200);
    let open = || async { app.get(mine).await.status.as_u16() == 200 };
    eventually("the route is open to the key again", TEST_TIMEOUT, open).await;

    assert_eq!(
        app.count("select count(*) from audit_log where action = 'feature_flags.update'")
            .await,
        3
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_set_flags_and_unknown_flags_are_refused() {
    let app = without_workers().await;
    let admin = SessionUser::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = SessionUser::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let eve = SessionUser::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;
    let root = SessionUser::new(&app, "root@example.com", "Platform", AdminRole::SuperAdmin).await;

    let bobs = format!("{FLAGS}/{}", bob.id);
    for wrong in [
        json!({"outbound": "yes"}),
        json!({"outbound": 1}),
        json!({"outbound": null}),
        json!({"markup": true}),
        json!({"outbound": false, "markup_percentage": 5}),
    ] {
        admin.send(Method::PUT, &bobs, wrong).await.expect(422);
    }

    let on = json!({"call_logs": true});
    admin
        .send(Method::PUT, &format!("{FLAGS}/{}", admin.id), on.clone())
        .await
        .expect(403);
    bob.send(Method::PUT, &bobs, on.clone()).await.expect(403);
    eve.send(Method::PUT, &bobs, on.clone()).await.expect(404);
    eve.get(&bobs).await.expect(404);

    let above = SessionUser::new(&app, "top@example.com", "Acme", AdminRole::SuperAdmin).await;
    let refused = admin
        .send(Method::PUT, &format!("{FLAGS}/{}", above.id), on.clone())
        .await
        .expect(403);
    assert_eq!(
        refused["detail"],
        "Forbidden: this user's role is above yours"
    );

    root.send(Method::PUT, &bobs, on.clone()).await.expect(200);
    bob.get(&bobs).await.expect(200);
    bob.get(&format!("{FLAGS}/{}", admin.id)).await.expect(403);

    let by_key = app.request(Method::PUT, &bobs).json(&on);
    crate::harness::app::send_request(by_key).await.expect(403);
    assert_eq!(app.count("select count(*) from feature_flags").await, 1);
    app.finish().await;
}
