//! Calls under HIPAA: their variables are used in the call, but never shown or recorded, even after
//! the flag is removed.

use peal_shared::access::Role;
use peal_simulator::SecondsRange;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::harness::app::{
    App, AppOptions, TEST_TIMEOUT, carrier_where_all_answer, phone_number, send_request,
};
use crate::harness::document::Document;
use crate::harness::eventually;
use crate::harness::members::{create_member, jwt_for_email, send_as};

const BATCHES_PATH: &str = "/api/v1/batch-call";
/// Marker inside private values.
const CANARY: &str = "Canary";
/// Tables that may hold private values.
const PRIVATE_TABLES: [&str; 3] = ["batch_data", "calls", "call_turns"];

/// Credentials of viewers: an API key, and sessions of both kinds of administrator.
async fn viewers(app: &App) -> Vec<(&'static str, String)> {
    let mut viewers = vec![("x-api-key", app.tenant.api_key.clone())];
    for (email, role) in [
        ("admin@example.com", Role::OrgAdmin),
        ("root@example.com", Role::SuperAdmin),
    ] {
        create_member(app, email, role).await;
        let token = jwt_for_email(app, email).await;
        viewers.push(("authorization", format!("Bearer {token}")));
    }
    viewers
}

/// Reads every GET operation of a batch and a call; returns the path, true when it was readable, and
/// true when the response contains the canary.
async fn read_everything(app: &App, path_ids: &[(&str, String)]) -> Vec<(String, bool, bool)> {
    let document = Document::current();
    let viewers = viewers(app).await;

    let mut read = Vec::new();
    for operation in document.operations() {
        if operation.method != Method::GET {
            continue;
        }
        let mut path = operation.path.to_owned();
        for (name, value) in path_ids {
            path = path.replace(&format!("{{{name}}}"), value);
        }
        if path.contains('{') {
            continue;
        }

        let queries = operation.parameters("query").into_iter();
        let queries = queries.filter_map(|parameter| {
            let name = parameter["name"].as_str()?;
            path_ids.iter().find(|(known, _)| *known == name)
        });
        let queries: Vec<_> = queries.collect();
        for (header, value) in &viewers {
            let request = app.anonymous(Method::GET, &path).header(*header, value);
            let response = send_request(request.query(&queries)).await;
            assert_ne!(response.status, StatusCode::INTERNAL_SERVER_ERROR, "{path}");
            let has_canary = response.text.contains(CANARY);
            read.push((
                operation.path.to_owned(),
                response.status == 200,
                has_canary,
            ));
        }
    }

    read
}

async fn assert_hidden(app: &App, path_ids: &[(&str, String)]) {
    let read = read_everything(app, path_ids).await;
    let shown: Vec<&String> = read
        .iter()
        .filter(|(_, _, has_canary)| *has_canary)
        .map(|(path, ..)| path)
        .collect();
    assert!(shown.is_empty(), "{shown:?} show it");
    for path in [
        "/api/call/{call_id}",
        "/api/v1/batch-call/{batch_id}/data",
        "/api/v1/batch-call/{batch_id}/events",
        "/api/v1/batch-call/{batch_id}/ingests/{ingest_id}",
        "/api/v1/batch-call/{batch_id}/ingests/{ingest_id}/errors",
        "/api/v1/billing/usage/records",
        "/api/v1/billing/usage/sessions/{session_id}",
        "/api/v1/billing/exports/{export_id}/download",
    ] {
        assert!(
            read.iter()
                .any(|(read, readable, _)| *readable && read == path),
            "{path} was not read"
        );
    }
}

/// Places three calls of a batch and a direct one, all with the canary in a variable; one line of the
/// file is rejected.
async fn run_private_campaign(app: &App, first: u32) -> Vec<(&'static str, String)> {
    let batch = app.create_batch(json!({})).await;
    let mut csv = String::from("to_phonenumber,name\n");
    for n in first..first + 3 {
        csv.push_str(&format!("{},{CANARY}{n}\n", phone_number(n)));
    }
    csv.push_str(&format!(
        "{},{CANARY}Long,{CANARY}Surplus\n",
        phone_number(first + 3)
    ));
    let uploaded = app.upload(&batch, &csv).await;
    assert_eq!(uploaded["failed"], 1, "{uploaded}");

    app.start_batch(&batch).await;
    let to = phone_number(first + 4).replace('+', "%2B");
    let path = format!(
        "/api/call/create_call?phoneNumber={to}&agent_id={}",
        app.tenant.agent
    );
    let body = json!({"variable_values": {"name": format!("{CANARY}Direct")}});
    let call = app.post(&path, body).await.expect(202);
    let call = call["call_session_id"].as_str().expect("an id").to_owned();
    app.wait_for_status(&batch, "completed").await;
    let path = format!("/api/call/{call}");
    let over = || async { app.get(&path).await.expect(200)["status"] == "final" };
    eventually("the direct call is over", TEST_TIMEOUT, over).await;

    // Applies the last callbacks.
    app.drain().await;
    let me = app.get("/api/v1/me").await.expect(200);
    let user = me["user_id"].as_str().expect("an id").to_owned();
    let (export, token) = create_export(app, &user).await;
    let ingest = uploaded["ingest_id"]
        .as_str()
        .expect("an ingest")
        .to_owned();

    vec![
        ("batch_id", batch),
        ("ingest_id", ingest),
        ("call_id", call.clone()),
        ("session_id", call.clone()),
        ("request_id", call),
        ("agent_id", app.tenant.agent.to_string()),
        ("user_id", user),
        ("export_id", export),
        ("token", token),
    ]
}

/// Creates a usage export; returns its id and the token of its link.
async fn create_export(app: &App, user: &str) -> (String, String) {
    let asked = app.get("/api/v1/billing/usage/export").await.expect(202);
    let export = asked["export_id"].as_str().expect("an id").to_owned();
    let written = || async {
        app.count("select count(*) from usage_exports where finished_at is null")
            .await
            == 0
    };
    eventually("the export is written", TEST_TIMEOUT, written).await;
    let keys = &app.context.config.keys;
    let token = keys.export_token(
        export.parse().expect("an id"),
        app.tenant.org,
        user.parse().expect("an id"),
    );
    (export, token)
}

async fn set_agents_flag(app: &App, on: bool) {
    let path = format!("/api/v1/agents/{}?force_update=true", app.tenant.agent);
    let body = json!({"agent": {"hipaa_compliance": on}});
    let changed = send_as(app, &app.tenant, Method::PUT, &path, body)
        .await
        .expect(200);
    assert_eq!(changed["agent"]["hipaa_compliance"], on);
    let shown = app
        .get(&format!("/api/v1/agents/{}", app.tenant.agent))
        .await;
    assert_eq!(shown.expect(200)["agent"]["hipaa_compliance"], on);
}

async fn set_organizations_flag(app: &App, on: bool) {
    sqlx::query("update organizations set hipaa_compliance = $2 where id = $1")
        .bind(app.tenant.org)
        .bind(on)
        .execute(&app.context.pool)
        .await
        .expect("a flag");
}

/// Counts, among the carrier's calls after the first `from`, the answers that contain the canary and
/// the recordings.
fn count_carrier_callbacks(app: &App, from: usize) -> (usize, usize) {
    let creates = app.carrier.creates();
    let calls = creates[from..]
        .iter()
        .filter_map(|call| call.sid.as_deref());
    let kinds: Vec<String> = calls
        .flat_map(|sid| app.carrier.callbacks(sid))
        .filter(|callback| callback.kind != "answer" || callback.response_body.contains(CANARY))
        .map(|callback| callback.kind)
        .collect();
    let count = |kind: &str| kinds.iter().filter(|known| *known == kind).count();
    (count("answer"), count("recording"))
}

/// Tables outside [`KEPT`] that contain the canary.
async fn tables_with_canary(app: &App) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables
         where table_schema = 'public' and table_type = 'BASE TABLE'",
    )
    .fetch_all(&app.context.pool)
    .await
    .expect("tables");

    let mut spilled = Vec::new();
    for table in tables
        .iter()
        .filter(|table| !PRIVATE_TABLES.contains(&table.as_str()))
    {
        let sql = format!("select exists (select from {table} t where t::text like '%{CANARY}%')");
        let found: bool = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&app.context.pool)
            .await
            .expect("a result");
        if found {
            spilled.push(table.clone());
        }
    }
    spilled
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_of_a_hipaa_call_are_never_shown() {
    let mut carrier = carrier_where_all_answer();
    // Calls last long enough for the whole message.
    carrier.behavior.talk_secs = SecondsRange::new(3600.0, 3600.0).expect("a span");
    let app = App::start_with(AppOptions {
        recording: true,
        carrier,
        ..AppOptions::default()
    })
    .await;
    set_agents_flag(&app, true).await;

    let private = run_private_campaign(&app, 0).await;
    let flagged = "select count(*) from calls where hipaa_compliance and outcome = 'completed'";
    assert_eq!(app.count(flagged).await, 4);
    assert_hidden(&app, &private).await;
    assert_eq!(tables_with_canary(&app).await, Vec::<String>::new());
    // The message was spoken, and the call was not recorded.
    assert_eq!(count_carrier_callbacks(&app, 0), (4, 0));

    let call = format!("/api/call/{}", private[2].1);
    let call = app.get(&call).await.expect(200);
    assert_eq!(
        (&call["hipaa_compliance"], &call["variable_values"]),
        (&json!(true), &json!({}))
    );

    set_agents_flag(&app, false).await;
    assert_hidden(&app, &private).await;
    let rows = app
        .get(&format!("{BATCHES_PATH}/{}/data", private[0].1))
        .await
        .expect(200);
    for row in rows["data"].as_array().expect("rows") {
        assert_eq!(
            (&row["hipaa_compliance"], &row["variable_values"]),
            (&json!(true), &json!({})),
            "{row}"
        );
    }

    // Without the flag the canary is found, which proves the search.
    let before = app.carrier.creates().len();
    let open = run_private_campaign(&app, 10).await;
    let read = read_everything(&app, &open).await;
    for path in [
        "/api/call/{call_id}",
        "/api/v1/batch-call/{batch_id}/data",
        "/api/v1/batch-call/{batch_id}/ingests/{ingest_id}",
        "/api/v1/batch-call/{batch_id}/ingests/{ingest_id}/errors",
    ] {
        let shown = read
            .iter()
            .filter(|(read, _, has_canary)| *has_canary && read == path);
        assert_eq!(shown.count(), 3, "{path}");
    }
    assert_eq!(count_carrier_callbacks(&app, before), (4, 4));

    // A later flag covers rows and rejects, but no earlier call.
    set_agents_flag(&app, true).await;
    let read = read_everything(&app, &open).await;
    let shown = read.into_iter().filter(|(_, _, has_canary)| *has_canary);
    let shown: Vec<String> = shown.map(|(path, ..)| path).collect();
    assert_eq!(shown, vec!["/api/call/{call_id}"; 3]);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_organizations_flag_hides_values_and_an_update_keeps_them() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    let path = format!("{BATCHES_PATH}/{batch}/data");
    let upsert = |items: Value| {
        let path = format!("{path}/upsert");
        let app = &app;
        async move { app.post(&path, json!({ "items": items })).await.expect(200) }
    };
    let values = json!({"name": format!("{CANARY}Row")});
    upsert(json!([{"to_phonenumber": phone_number(1), "variable_values": values}])).await;
    let first = || async { app.get(&path).await.expect(200)["data"][0].clone() };

    let row = first().await;
    assert_eq!(
        (&row["hipaa_compliance"], &row["variable_values"]),
        (&json!(false), &values)
    );

    set_organizations_flag(&app, true).await;
    let hidden = first().await;
    assert_eq!(
        (&hidden["hipaa_compliance"], &hidden["variable_values"]),
        (&json!(true), &json!({}))
    );

    // An update with the hidden values of a read keeps the stored values.
    let unchanged = json!({
        "id": hidden["id"], "to_phonenumber": phone_number(2), "variable_values": hidden["variable_values"],
    });
    assert_eq!(upsert(json!([unchanged])).await["data"]["updated"], 1);
    let kept = "select count(*) from batch_data where variable_values ->> 'name' = 'CanaryRow'";
    assert_eq!(app.count(kept).await, 1);

    let to = phone_number(4).replace('+', "%2B");
    let create = format!(
        "/api/call/create_call?phoneNumber={to}&agent_id={}",
        app.tenant.agent
    );
    let body = json!({ "variable_values": values });
    let call = app.post(&create, body).await.expect(202);
    let call = format!(
        "/api/call/{}",
        call["call_session_id"].as_str().expect("an id")
    );
    set_organizations_flag(&app, false).await;

    // The row was not called, so its values show again; the direct call stays private.
    assert_eq!(first().await["variable_values"], values);
    let call = app.get(&call).await.expect(200);
    assert_eq!(
        (&call["hipaa_compliance"], &call["variable_values"]),
        (&json!(true), &json!({}))
    );
    app.drop_calls().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_row_under_hipaa_shows_no_value() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    let long = format!("{CANARY}{}", "x".repeat(2000));
    let records = json!({"records": [{"to_phonenumber": phone_number(3), "name": long}]});
    let path = format!("{BATCHES_PATH}/upload-json/{batch}");
    for (flag, value) in [(true, ""), (false, &long[..200])] {
        set_organizations_flag(&app, flag).await;
        let refused = app.post(&path, records.clone()).await.expect(200);
        let data = &refused["data"];
        assert_eq!(
            (&data["failed"], &data["errors"][0]["value"]),
            (&json!(1), &json!(value))
        );
    }
    app.finish().await;
}
