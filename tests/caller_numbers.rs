//! Caller numbers, their mappings to agents, and the number that a call is placed from.

use peal_shared::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{ACCOUNT, App, AppOptions, send_request};
use crate::harness::members::{audited_actions, create_member, send_as, with_session};

const NUMBERS_PATH: &str = "/api/v1/phone";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

/// Creates the platform's own trunk.
async fn create_platform_trunk(app: &App) -> String {
    sqlx::query_scalar(
        "insert into trunks (id, name, kind, account_id, credentials, cps, max_concurrent)
         values (gen_random_uuid(), 'Platform', 'twilio', $1, '', 1, 1)
         returning id::text",
    )
    .bind(ACCOUNT)
    .fetch_one(&app.context.pool)
    .await
    .expect("a trunk")
}

async fn add_number(app: &App, number: &str) -> String {
    let added = app
        .post(NUMBERS_PATH, json!({"phone_number": number}))
        .await
        .expect(201);
    added["phone_number"]["id"]
        .as_str()
        .expect("an id")
        .to_owned()
}

async fn delete_number(app: &App, id: &str) -> crate::harness::app::ApiResponse {
    send_as(
        app,
        &app.tenant,
        Method::DELETE,
        &format!("{NUMBERS_PATH}/{id}"),
        Value::Null,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_added_and_listed() {
    let app = without_workers().await;
    let body = json!({"phone_number": "+1 (212) 555-0177", "friendly_name": " Evening ", "country_code": "us",
                      "region": "NY", "is_active": false});
    let added = app.post(NUMBERS_PATH, body.clone()).await.expect(201);
    assert_eq!(added["success"], true);
    let phone = &added["phone_number"];
    assert_eq!(
        (
            &phone["phone_number"],
            &phone["friendly_name"],
            &phone["country_code"],
            &phone["is_active"]
        ),
        (
            &json!("+12125550177"),
            &json!("Evening"),
            &json!("US"),
            &json!(false)
        )
    );

    assert_eq!(phone["trunk_id"], json!(app.tenant.trunk));
    let taken = app.post(NUMBERS_PATH, body.clone()).await.expect(409);
    assert_eq!(taken["code"], "phone_number_taken");

    let numbers = |list: &Value| list["phone_numbers"].as_array().expect("a list").len();
    assert_eq!(numbers(&app.get(NUMBERS_PATH).await.expect(200)), 2);
    assert_eq!(
        numbers(&app.get(&format!("{NUMBERS_PATH}/active")).await.expect(200)),
        1
    );
    let page = app
        .get(&format!("{NUMBERS_PATH}/browse?page_size=1&page=2"))
        .await
        .expect(200);
    assert_eq!((numbers(&page), &page["total"]), (1, &json!(2)));
    let user = phone["user_id"].as_str().expect("an id");
    assert_eq!(
        numbers(
            &app.get(&format!("{NUMBERS_PATH}/user/{user}"))
                .await
                .expect(200)
        ),
        2
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_changed_deleted_and_added_again() {
    let app = without_workers().await;
    let body = json!({"phone_number": "+12125550177", "country_code": "us", "region": "NY", "is_active": false});
    let added = app.post(NUMBERS_PATH, body.clone()).await.expect(201);
    let id = added["phone_number"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();

    let path = format!("{NUMBERS_PATH}/{id}");
    let change = json!({"is_active": true, "region": "", "friendly_name": "Night"});
    let changed = send_as(&app, &app.tenant, Method::PUT, &path, change)
        .await
        .expect(200);
    let phone = &changed["phone_number"];
    assert_eq!(
        (
            &phone["friendly_name"],
            &phone["region"],
            &phone["country_code"],
            &phone["is_active"]
        ),
        (&json!("Night"), &Value::Null, &json!("US"), &json!(true))
    );
    assert_eq!(app.get(&path).await.expect(200), changed);
    assert_eq!(delete_number(&app, &id).await.expect(200)["success"], true);

    app.get(&path).await.expect(404);
    delete_number(&app, &id).await.expect(404);

    // A deleted number that is added again gets its old row.
    let again = app.post(NUMBERS_PATH, body).await.expect(201);
    assert_eq!(again["phone_number"]["id"], id);
    assert_eq!(
        audited_actions(&app, &id).await,
        [
            "phone.create",
            "phone.update",
            "phone.delete",
            "phone.create"
        ]
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_number_is_refused_with_the_field() {
    let app = without_workers().await;
    for (body, field) in [
        (json!({"phone_number": "12"}), "phone_number"),
        (json!({}), "phone_number"),
        (
            json!({"phone_number": "+12125550178", "country_code": "XX"}),
            "country_code",
        ),
        (
            json!({"phone_number": "+12125550178", "friendly_name": "x".repeat(201)}),
            "friendly_name",
        ),
        (
            json!({"phone_number": "+12125550178", "provider": "twilio"}),
            "provider",
        ),
    ] {
        let problem = app.post(NUMBERS_PATH, body).await.expect(422);
        assert_eq!(problem["errors"][0]["loc"], json!(["body", field]));
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_added_only_to_trunks_of_their_owner() {
    let app = without_workers().await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let other_tenant = app.create_tenant("Other").await;
    let platform = create_platform_trunk(&app).await;
    let body_on = |trunk: &str| json!({"phone_number": "+12125550178", "trunk_id": trunk});
    let refused = app.post(NUMBERS_PATH, body_on(&platform)).await.expect(403);
    assert_eq!(refused["code"], "forbidden");
    app.post(NUMBERS_PATH, body_on(&other_tenant.trunk.to_string()))
        .await
        .expect(404);
    let theirs = send_as(
        &app,
        &root,
        Method::POST,
        NUMBERS_PATH,
        body_on(&other_tenant.trunk.to_string()),
    )
    .await;
    theirs.expect(404);

    let user: String = sqlx::query_scalar("select user_id::text from agents where id = $1")
        .bind(other_tenant.agent)
        .fetch_one(&app.context.pool)
        .await
        .expect("a user");
    let mut for_other = body_on(&platform);
    for_other["user_id"] = json!(user);
    let admin = with_session(&app, &app.tenant).await;
    let refused = send_as(&app, &admin, Method::POST, NUMBERS_PATH, for_other.clone()).await;
    refused.expect(404);
    app.post(NUMBERS_PATH, for_other.clone()).await.expect(403);

    let given = send_as(&app, &root, Method::POST, NUMBERS_PATH, for_other)
        .await
        .expect(201);
    let id = given["phone_number"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let path = format!("{NUMBERS_PATH}/{id}");
    send_as(&app, &other_tenant, Method::GET, &path, Value::Null)
        .await
        .expect(200);
    app.get(&path).await.expect(404);

    let move_to = |trunk: &str| json!({"trunk_id": trunk});
    let own = other_tenant.trunk.to_string();
    send_as(&app, &other_tenant, Method::PUT, &path, move_to(&own))
        .await
        .expect(200);
    send_as(&app, &other_tenant, Method::PUT, &path, move_to(&platform))
        .await
        .expect(403);

    // With two trunks the request must name one.
    sqlx::query("update trunks set org_id = $1 where id = $2::uuid")
        .bind(app.tenant.org)
        .bind(&platform)
        .execute(&app.context.pool)
        .await
        .expect("update");
    let unclear = app
        .post(NUMBERS_PATH, json!({"phone_number": "+12125550179"}))
        .await
        .expect(400);
    assert_eq!(unclear["code"], "trunk_needed");
    app.post(
        NUMBERS_PATH,
        json!({"phone_number": "+12125550179", "trunk_id": platform}),
    )
    .await
    .expect(201);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_in_use_cannot_be_deleted() {
    let mut app = without_workers().await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 2).await;
    app.start_batch(&batch).await;
    let id = app.tenant.phone.to_string();
    let refused = delete_number(&app, &id).await.expect(409);
    assert_eq!(refused["code"], "phone_in_use");
    assert!(
        refused["detail"]
            .as_str()
            .expect("text")
            .contains("A campaign"),
        "{refused}"
    );

    let path = format!("{NUMBERS_PATH}/{id}");
    let off = json!({"is_active": false});
    send_as(&app, &app.tenant, Method::PUT, &path, off.clone())
        .await
        .expect(409);
    send_as(
        &app,
        &app.tenant,
        Method::PUT,
        &path,
        json!({"friendly_name": "Busy"}),
    )
    .await
    .expect(200);

    app.post(&format!("/api/v1/batch-call/stop/{batch}"), json!({}))
        .await
        .expect(200);
    send_as(&app, &app.tenant, Method::PUT, &path, off)
        .await
        .expect(200);
    delete_number(&app, &id).await.expect(200);
    app.start_worker(&peal_worker::Role::ALL).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_is_mapped_to_one_agent() {
    let app = without_workers().await;
    let (agent, phone) = (app.tenant.agent, app.tenant.phone);

    let mapping = format!("{NUMBERS_PATH}/mapping");
    for (body, code) in [
        (json!({"phone_number_id": phone}), "agent_or_workflow"),
        (
            json!({"phone_number_id": phone, "agent_id": agent, "workflow_id": agent}),
            "agent_or_workflow",
        ),
        (
            json!({"phone_number_id": phone, "workflow_id": agent}),
            "workflow_unsupported",
        ),
    ] {
        assert_eq!(app.post(&mapping, body).await.expect(400)["code"], code);
    }

    let pair = json!({"phone_number_id": phone, "agent_id": agent});
    let made = app.post(&mapping, pair.clone()).await.expect(201)["mapping"].clone();
    let mut names: Vec<&String> = made.as_object().expect("an object").keys().collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "agent_id",
            "created_at",
            "id",
            "phone_number",
            "phone_number_id",
            "updated_at",
            "workflow_id"
        ]
    );
    assert_eq!(
        app.post(&mapping, pair.clone()).await.expect(409)["code"],
        "phone_mapped"
    );

    assert_eq!(
        app.get(&mapping).await.expect(200)["mappings"],
        json!([made])
    );

    let of_agent = app
        .get(&format!("{mapping}/agent/{agent}"))
        .await
        .expect(200);
    assert_eq!(of_agent["mappings"], json!([made]));
    assert_eq!(
        app.get(&format!("{mapping}/{phone}")).await.expect(200)["mapping"],
        made
    );

    app.get(&format!("{mapping}/{agent}")).await.expect(404);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapping_is_changed_and_deleted() {
    let app = without_workers().await;
    let (agent, phone) = (app.tenant.agent, app.tenant.phone);
    let mapping = format!("{NUMBERS_PATH}/mapping");
    let pair = json!({"phone_number_id": phone, "agent_id": agent});
    let made = app.post(&mapping, pair.clone()).await.expect(201)["mapping"].clone();

    let other = add_number(&app, "+12125550178").await;
    let id = made["id"].as_str().expect("an id");
    let path = format!("{mapping}/{id}");
    let moved = send_as(
        &app,
        &app.tenant,
        Method::PUT,
        &path,
        json!({"phone_number_id": other}),
    )
    .await;
    assert_eq!(moved.expect(200)["mapping"]["phone_number"], "+12125550178");

    app.get(&format!("{mapping}/{phone}")).await.expect(404);
    app.post(&mapping, pair).await.expect(201);
    let conflict = send_as(
        &app,
        &app.tenant,
        Method::PUT,
        &path,
        json!({"phone_number_id": phone}),
    )
    .await;
    assert_eq!(conflict.expect(409)["code"], "phone_mapped");

    send_as(&app, &app.tenant, Method::DELETE, &path, Value::Null)
        .await
        .expect(200);
    assert_eq!(
        audited_actions(&app, id).await,
        [
            "phone_mapping.create",
            "phone_mapping.update",
            "phone_mapping.delete"
        ]
    );

    // The mapping of a deleted number is deleted.
    delete_number(&app, &phone.to_string()).await.expect(200);
    assert_eq!(app.count("select count(*) from phone_mappings").await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_mapping_returns_404() {
    let app = without_workers().await;
    let (agent, phone) = (app.tenant.agent, app.tenant.phone);
    let mapping = format!("{NUMBERS_PATH}/mapping");
    let pair = json!({"phone_number_id": phone, "agent_id": agent});
    let made = app.post(&mapping, pair.clone()).await.expect(201)["mapping"].clone();
    let path = format!("{mapping}/{}", made["id"].as_str().expect("an id"));
    let other_tenant = app.create_tenant("Other").await;
    let foreign = json!({"phone_number_id": other_tenant.phone, "agent_id": agent});
    app.post(&mapping, foreign).await.expect(404);

    for (method, path) in [
        (Method::GET, format!("{mapping}/{phone}")),
        (Method::GET, format!("{mapping}/agent/{agent}")),
        (Method::PUT, path.clone()),
        (Method::DELETE, path.clone()),
    ] {
        let body = if method == Method::PUT {
            json!({})
        } else {
            Value::Null
        };
        send_as(&app, &other_tenant, method.clone(), &path, body.clone())
            .await
            .expect(404);
        send_request(app.anonymous(method, &path).json(&body))
            .await
            .expect(401);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_placed_from_the_chosen_number() {
    let app = without_workers().await;
    let call = |extra: &str| {
        let agent = app.tenant.agent;
        format!("/api/call/create_call?phoneNumber=%2B12125550142&agent_id={agent}{extra}")
    };
    let (plain, explicit) = (
        call(""),
        call(&format!("&phone_number_id={}", app.tenant.phone)),
    );
    let from = async |path: &str| {
        let queued = app.post(path, json!({})).await.expect(202);
        queued["from_phone_number"]
            .as_str()
            .expect("a number")
            .to_owned()
    };
    let second = add_number(&app, "+12125550178").await;
    assert_eq!(
        from(&plain).await,
        "+12125550100",
        "the first active number"
    );

    let pair = json!({"phone_number_id": second, "agent_id": app.tenant.agent});
    app.post(&format!("{NUMBERS_PATH}/mapping"), pair)
        .await
        .expect(201);
    assert_eq!(from(&plain).await, "+12125550178", "the agent's number");
    assert_eq!(
        from(&explicit).await,
        "+12125550100",
        "the requested number"
    );

    // Calls of another agent do not use the mapped number.
    let eve = app
        .post("/api/v1/agents/simple", json!({"name": "Eve"}))
        .await
        .expect(201);
    let eve = eve["agent"]["id"].as_str().expect("an id").to_owned();
    let path = format!("/api/call/create_call?phoneNumber=%2B12125550143&agent_id={eve}");
    assert_eq!(from(&path).await, "+12125550100");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inactive_number_is_skipped() {
    let mut app = without_workers().await;
    let plain = format!(
        "/api/call/create_call?phoneNumber=%2B12125550142&agent_id={}",
        app.tenant.agent
    );
    let second = add_number(&app, "+12125550178").await;
    let pair = json!({"phone_number_id": second, "agent_id": app.tenant.agent});
    app.post(&format!("{NUMBERS_PATH}/mapping"), pair)
        .await
        .expect(201);

    // An inactive number is skipped; without an active one the call is refused.
    app.start_worker(&peal_worker::Role::ALL).await;
    app.drain().await;
    let off = json!({"is_active": false});
    let calls_are_over = async || {
        app.count("select count(*) from calls where live or queued")
            .await
            == 0
    };
    crate::harness::eventually(
        "the calls are over",
        crate::harness::app::TEST_TIMEOUT,
        calls_are_over,
    )
    .await;
    send_as(
        &app,
        &app.tenant,
        Method::PUT,
        &format!("{NUMBERS_PATH}/{second}"),
        off.clone(),
    )
    .await
    .expect(200);

    let queued = app.post(&plain, json!({})).await.expect(202);
    assert_eq!(queued["from_phone_number"], "+12125550100");

    crate::harness::eventually(
        "the call is over",
        crate::harness::app::TEST_TIMEOUT,
        calls_are_over,
    )
    .await;
    let first = app.tenant.phone;
    send_as(
        &app,
        &app.tenant,
        Method::PUT,
        &format!("{NUMBERS_PATH}/{first}"),
        off,
    )
    .await
    .expect(200);
    assert_eq!(
        app.post(&plain, json!({})).await.expect(400)["code"],
        "no_line"
    );
    app.finish().await;
}
