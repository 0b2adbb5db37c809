//! The audit log over HTTP.

use peal_api::admin::AdminRole;
use serde_json::json;

use crate::sign_in::{Person, quiet};

const LOG: &str = "/api/v1/audit-log";

#[tokio::test(flavor = "multi_thread")]
async fn administrators_read_who_changed_what_page_by_page() {
    let app = quiet().await;
    let admin = Person::new(&app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
    let bob = Person::new(&app, "bob@example.com", "Acme", AdminRole::User).await;
    let eve = Person::new(&app, "eve@example.com", "Other", AdminRole::OrgAdmin).await;
    let mut batches = Vec::new();
    for n in 0..3 {
        let named = json!({"batch_name": format!("Batch {n}")});
        batches.push(app.create_batch(named).await);
    }
    let first = admin
        .get(&format!("{LOG}?action=batch.create&limit=2"))
        .await
        .expect(200);
    assert_eq!(first["entries"][0]["subject_id"], batches[2]);
    assert_eq!(first["entries"][0]["actor_kind"], "api_key");
    assert_eq!(first["entries"][0]["ip"], "127.0.0.1");
    assert_eq!(first["entries"].as_array().map(Vec::len), Some(2));
    let next = first["next"].as_str().expect("another page");
    let second = format!("{LOG}?action=batch.create&limit=2&before={next}");
    let second = admin.get(&second).await.expect(200);
    assert_eq!(second["entries"][0]["subject_id"], batches[0]);
    assert!(second["next"].is_null());

    let one = admin
        .get(&format!("{LOG}?subject_id={}", batches[1]))
        .await
        .expect(200);
    assert_eq!(one["entries"].as_array().map(Vec::len), Some(1));
    let own = admin
        .get(&format!("{LOG}?actor_user_id={}", admin.id))
        .await
        .expect(200);
    assert_eq!(own["entries"][0]["action"], "session.open");
    let none = admin
        .get(&format!("{LOG}?to_date=2020-01-01T00:00:00Z"))
        .await
        .expect(200);
    assert_eq!(none["entries"], json!([]));
    let theirs = eve.get(LOG).await.expect(200);
    assert_eq!(
        theirs["entries"].as_array().map(Vec::len),
        Some(1),
        "{theirs}"
    );
    let foreign = format!("{LOG}?organization_id={}", app.tenant.org);
    assert_eq!(eve.get(&foreign).await.expect(200)["entries"], json!([]));
    bob.get(LOG).await.expect(403);
    for wrong in ["limit=0", "limit=201", "actor_user_id=x", "colour=red"] {
        admin.get(&format!("{LOG}?{wrong}")).await.expect(422);
    }
    app.finish().await;
}
