//! Calls under HIPAA: what they were told is used, shown to nobody, and not recorded; and that
//! stays so.

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

const BATCHES: &str = "/api/v1/batch-call";
/// What somebody is told that nobody else may read.
const CANARY: &str = "Canary";
/// Where people's values are, and what was said to them.
const KEPT: [&str; 3] = ["batch_data", "calls", "call_turns"];

/// Ways to ask: by key, and in a session of either kind of administrator.
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

/// Everything that can be read of a batch and a call, by path: whether it was read, and whether
/// the canary is in it.
async fn read_everything(app: &App, things: &[(&str, String)]) -> Vec<(String, bool, bool)> {
    let document = Document::current();
    let viewers = viewers(app).await;
    let mut read = Vec::new();
    for operation in document.operations() {
        if operation.method != Method::GET {
            continue;
        }
        let mut path = operation.path.to_owned();
        for (name, value) in things {
            path = path.replace(&format!("{{{name}}}"), value);
        }
        if path.contains('{') {
            continue;
        }
        let queries = operation.parameters("query").into_iter();
        let queries = queries.filter_map(|parameter| {
            let name = parameter["name"].as_str()?;
            things.iter().find(|(known, _)| *known == name)
        });
        let queries: Vec<_> = queries.collect();
        for (header, value) in &viewers {
            let request = app.anonymous(Method::GET, &path).header(*header, value);
            let told = send_request(request.query(&queries)).await;
            assert_ne!(told.status, StatusCode::INTERNAL_SERVER_ERROR, "{path}");
            let holds = told.text.contains(CANARY);
            read.push((operation.path.to_owned(), told.status == 200, holds));
        }
    }
    read
}

async fn is_hidden(app: &App, things: &[(&str, String)]) {
    let read = read_everything(app, things).await;
    let shown: Vec<&String> = read
        .iter()
        .filter(|(_, _, holds)| *holds)
        .map(|(path, ..)| path)
        .collect();
    assert!(shown.is_empty(), "{shown:?} tell it");
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
            read.iter().any(|(read, done, _)| *done && read == path),
            "{path} was not read"
        );
    }
}

/// Calls three people of a batch, and one directly, all of whom are told the canary; one line of
/// the file is refused.
async fn campaign(app: &App, first: u32) -> Vec<(&'static str, String)> {
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
    // Then its last callbacks are on their way.
    app.drain().await;
    let me = app.get("/api/v1/me").await.expect(200);
    let user = me["user_id"].as_str().expect("an id").to_owned();
    let (export, token) = export(app, &user).await;
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

/// A usage export that is there, and the token of its link.
async fn export(app: &App, user: &str) -> (String, String) {
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

/// Of the carrier's calls from the `n`-th on: how many were answered, and how many were recorded
/// and told so.
fn at_the_carrier(app: &App, from: usize) -> (usize, usize) {
    let creates = app.carrier.creates();
    let calls = creates[from..]
        .iter()
        .filter_map(|call| call.sid.as_deref());
    let kinds: Vec<String> = calls
        .flat_map(|sid| app.carrier.callbacks(sid))
        .filter(|told| told.kind != "answer" || told.response_body.contains(CANARY))
        .map(|told| told.kind)
        .collect();
    let of = |kind: &str| kinds.iter().filter(|known| *known == kind).count();
    (of("answer"), of("recording"))
}

/// The tables besides those that keep people's values in which the canary is.
async fn spilled(app: &App) -> Vec<String> {
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
        .filter(|table| !KEPT.contains(&table.as_str()))
    {
        let sql = format!("select exists (select from {table} t where t::text like '%{CANARY}%')");
        let found: bool = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&app.context.pool)
            .await
            .expect("a look");
        if found {
            spilled.push(table.clone());
        }
    }
    spilled
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_under_hipaa_was_told_is_shown_to_nobody_ever() {
    let mut carrier = carrier_where_all_answer();
    // Whoever answers hears all of it.
    carrier.behavior.talk_secs = SecondsRange::new(3600.0, 3600.0).expect("a span");
    let app = App::start_with(AppOptions {
        recording: true,
        carrier,
        ..AppOptions::default()
    })
    .await;
    set_agents_flag(&app, true).await;
    let private = campaign(&app, 0).await;
    let flagged = "select count(*) from calls where hipaa_compliance and outcome = 'completed'";
    assert_eq!(app.count(flagged).await, 4);
    is_hidden(&app, &private).await;
    assert_eq!(spilled(&app).await, Vec::<String>::new());
    // The people heard it, and the carrier was not asked to record.
    assert_eq!(at_the_carrier(&app, 0), (4, 0));
    let call = format!("/api/call/{}", private[2].1);
    let call = app.get(&call).await.expect(200);
    assert_eq!(
        (&call["hipaa_compliance"], &call["variable_values"]),
        (&json!(true), &json!({}))
    );

    set_agents_flag(&app, false).await;
    is_hidden(&app, &private).await;
    let rows = app
        .get(&format!("{BATCHES}/{}/data", private[0].1))
        .await
        .expect(200);
    for row in rows["data"].as_array().expect("rows") {
        assert_eq!(
            (&row["hipaa_compliance"], &row["variable_values"]),
            (&json!(true), &json!({})),
            "{row}"
        );
    }

    // Without the flag all of it is told: what was looked for can be found.
    let before = app.carrier.creates().len();
    let open = campaign(&app, 10).await;
    let read = read_everything(&app, &open).await;
    for path in [
        "/api/call/{call_id}",
        "/api/v1/batch-call/{batch_id}/data",
        "/api/v1/batch-call/{batch_id}/ingests/{ingest_id}",
        "/api/v1/batch-call/{batch_id}/ingests/{ingest_id}/errors",
    ] {
        let told = read
            .iter()
            .filter(|(read, _, holds)| *holds && read == path);
        assert_eq!(told.count(), 3, "{path}");
    }
    assert_eq!(at_the_carrier(&app, before), (4, 4));
    // A flag that comes later covers rows and rejects, and no call of before.
    set_agents_flag(&app, true).await;
    let read = read_everything(&app, &open).await;
    let told = read.into_iter().filter(|(_, _, holds)| *holds);
    let told: Vec<String> = told.map(|(path, ..)| path).collect();
    assert_eq!(told, vec!["/api/call/{call_id}"; 3]);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organizations_flag_is_enough_and_hides_no_row_from_a_change() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    let path = format!("{BATCHES}/{batch}/data");
    let upsert = |items: Value| {
        let path = format!("{path}/upsert");
        let app = &app;
        async move { app.post(&path, json!({ "items": items })).await.expect(200) }
    };
    let told = json!({"name": format!("{CANARY}Row")});
    upsert(json!([{"to_phonenumber": phone_number(1), "variable_values": told}])).await;
    let first = || async { app.get(&path).await.expect(200)["data"][0].clone() };
    let row = first().await;
    assert_eq!(
        (&row["hipaa_compliance"], &row["variable_values"]),
        (&json!(false), &told)
    );

    set_organizations_flag(&app, true).await;
    let hidden = first().await;
    assert_eq!(
        (&hidden["hipaa_compliance"], &hidden["variable_values"]),
        (&json!(true), &json!({}))
    );
    // A row that goes back as it was read keeps what nobody sees.
    let back = json!({
        "id": hidden["id"], "to_phonenumber": phone_number(2), "variable_values": hidden["variable_values"],
    });
    assert_eq!(upsert(json!([back])).await["data"]["updated"], 1);
    let kept = "select count(*) from batch_data where variable_values ->> 'name' = 'CanaryRow'";
    assert_eq!(app.count(kept).await, 1);

    let to = phone_number(4).replace('+', "%2B");
    let create = format!(
        "/api/call/create_call?phoneNumber={to}&agent_id={}",
        app.tenant.agent
    );
    let body = json!({ "variable_values": told });
    let call = app.post(&create, body).await.expect(202);
    let call = format!(
        "/api/call/{}",
        call["call_session_id"].as_str().expect("an id")
    );
    set_organizations_flag(&app, false).await;
    // No call was made of the row; the direct call stays what it was made.
    assert_eq!(first().await["variable_values"], told);
    let call = app.get(&call).await.expect(200);
    assert_eq!(
        (&call["hipaa_compliance"], &call["variable_values"]),
        (&json!(true), &json!({}))
    );
    app.drop_calls().await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_under_hipaa_does_not_repeat_what_was_sent() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let batch = app.create_batch(json!({})).await;
    let long = format!("{CANARY}{}", "x".repeat(2000));
    let records = json!({"records": [{"to_phonenumber": phone_number(3), "name": long}]});
    let path = format!("{BATCHES}/upload-json/{batch}");
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
