//! Agents: settings, access, and changes that a running batch forbids.

pub mod tools;
pub mod webhooks;

use peal_shared::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{App, AppOptions, TEST_TIMEOUT};
use crate::harness::eventually;
use crate::harness::members::{audited_actions, create_member, send_as, with_session};

const AGENTS: &str = "/api/v1/agents";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

async fn put_agent(
    app: &App,
    id: &str,
    force: bool,
    body: Value,
) -> crate::harness::app::ApiResponse {
    let path = format!("{AGENTS}/{id}?force_update={force}");
    send_as(app, &app.tenant, Method::PUT, &path, body).await
}

fn full_agent() -> Value {
    json!({
        "agent": {
            "name": "Reminder", "description": "Reminds", "is_active": false, "recording_enabled": false,
            "first_response_message": "Hello {{name}}", "apply_noise_reduction": true, "machine_detection": true,
            "hipaa_compliance": true,
        },

        "agent_model_config": {
            "model_name": "gpt-4.1-mini", "temperature": 0.7, "max_tokens": 256, "system_prompt": "Be brief, {{name}}.",
        },
        "tts_config": {
            "tts_model_name": null, "language": "en-GB", "voice_name": "Polly.Amy",
            "voice_parameters": {"rate": "slow", "effects": {"echo": 1}},
        },
        "transcriber_config": {"transcriber_model_name": "nova-2", "language": "en-GB"},

        "vad_config": {
            "vad_provider_id": "silero", "threshold": 0.4, "min_speech_duration_ms": 200,
            "min_silence_duration_ms": 400, "max_allowed_silence_duration": 30, "sampling_rate": 8000,
        },

        "agent_specific_config": {
            "session_timeout": 300, "end_of_speech_timeout": 0.75, "llm_conversation_stop_enabled": true,
            "auto_terminate_call": true, "max_output_tokens": 200, "timezone": "Europe/London",
            "inbound_transfer_routes": [{
                "route_id": "sales", "display_name": "Sales", "enabled": false,
                "condition_when_to_transfer": "wants to buy", "phone_number": "+12125550199",
            }],
            "time_to_cut": 280, "message_of_cut": "I have to go.", "end_call_message_mode": "context_aware",
            "background_noise_id": "office", "background_noise_volume": 40,
            "webhooks": {
                "trigger_on_web_call": true, "trigger_on_phone_call": true,
                "incoming": {"enabled": true, "attached_variables": [{"name": "city", "default_value": "Pune"}]},
                "outgoing": {
                    "enabled": true, "url": "https://crm.example.com/calls", "method": "PUT", "retry_count": 3,
                    "headers": {"X-Source": "peal"}, "auth": {"type": "none"},
                },
            },
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_setting_of_an_agent_comes_back_as_it_was_sent() {
    let app = without_workers().await;
    let made = app.post(AGENTS, full_agent()).await.expect(201);
    assert_eq!(made["validation_status"], "valid");
    let id = made["agent"]["id"].as_str().expect("an id");

    let shown = app.get(&format!("{AGENTS}/{id}")).await.expect(200);
    assert_eq!(shown, made);

    let sent = full_agent();
    for (name, value) in sent["agent"].as_object().expect("an object") {
        assert_eq!(&shown["agent"][name], value, "{name}");
    }
    for section in [
        "agent_model_config",
        "tts_config",
        "transcriber_config",
        "vad_config",
        "agent_specific_config",
    ] {
        assert_eq!(shown["configurations"][section], sent[section], "{section}");
    }

    // Settings that dialling reads are in their own columns and nowhere else.
    let doubled = app
        .count(
            "select count(*) from agents
             where model_config ? 'system_prompt' or tts_config ?| array['language', 'voice_name']
                or specific_config ? 'session_timeout'",
        )
        .await;
    assert_eq!(doubled, 0);

    let read = app
        .count(
            "select count(*) from agents
             where name = 'Reminder' and first_response_message = 'Hello {{name}}' and voice = 'Polly.Amy'
               and language = 'en-GB' and system_prompt = 'Be brief, {{name}}.' and session_timeout_secs = 300
               and machine_detection and not recording_enabled",
        )
        .await;
    assert_eq!(read, 1);

    assert_eq!(audited_actions(&app, id).await, ["agent.create"]);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simple_agent_has_every_default() {
    let app = without_workers().await;
    let made = app
        .post(
            &format!("{AGENTS}/simple"),
            json!({"name": " Quick ", "description": "All defaults"}),
        )
        .await
        .expect(201);

    let agent = &made["agent"];

    assert_eq!(agent["name"], "Quick");
    assert_eq!(
        (
            &agent["is_active"],
            &agent["recording_enabled"],
            &agent["apply_noise_reduction"]
        ),
        (&json!(true), &json!(true), &json!(false))
    );
    assert_eq!(
        made["configurations"],
        json!({
            "agent_model_config": {"model_name": null, "temperature": null, "max_tokens": null, "system_prompt": ""},
            "tts_config": {"tts_model_name": null, "language": "en-US", "voice_name": null, "voice_parameters": {}},
            "transcriber_config": null,
            "vad_config": null,
            "agent_specific_config": {
                "session_timeout": 180, "end_of_speech_timeout": 1.5, "llm_conversation_stop_enabled": false,
                "auto_terminate_call": false, "max_output_tokens": 370, "timezone": "Asia/Kolkata",
                "inbound_transfer_routes": [], "time_to_cut": null, "message_of_cut": null,
                "end_call_message_mode": "fixed", "background_noise_id": null, "background_noise_volume": 100,
                "webhooks": null,
            },
        })
    );

    // An agent created by another route has the same defaults.
    let theirs = app
        .get(&format!("{AGENTS}/{}", app.tenant.agent))
        .await
        .expect(200);
    assert_eq!(
        theirs["configurations"]["agent_specific_config"]["session_timeout"],
        180
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_errors_of_an_agent_are_reported_at_once() {
    let app = without_workers().await;
    let wrong = json!({
        "agent": {"name": " ", "description": "\u{1}"},
        "agent_model_config": {"temperature": 2.1, "max_tokens": 0},
        "tts_config": {"language": "english please", "voice_parameters": {"a": "\u{0}"}},
        "transcriber_config": {"transcriber_model_name": "", "language": "hi_IN"},
        "vad_config": {"vad_provider_id": "silero", "threshold": 1.5, "sampling_rate": 1},
        "agent_specific_config": {
            "session_timeout": 0, "end_of_speech_timeout": -1, "max_output_tokens": 0, "timezone": "Mars/Base",
            "time_to_cut": 86401, "background_noise_volume": 101,
            "inbound_transfer_routes": [
                {"route_id": "a", "phone_number": "12"}, {"route_id": "a", "phone_number": "+12125550199"},
            ],
            "webhooks": {"outgoing": {"url": "http://user:pw@example.com", "retry_count": 11}},
        },
    });

    let problem = app.post(AGENTS, wrong).await.expect(422);
    let mut fields: Vec<String> = problem["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| {
            let loc: Vec<&str> = error["loc"].as_array().expect("a path")[1..]
                .iter()
                .filter_map(Value::as_str)
                .collect();
            loc.join(".")
        })
        .collect();
    fields.sort_unstable();

    let specific = "agent_specific_config";
    assert_eq!(
        fields,
        [
            "agent.description".to_owned(),
            "agent.name".to_owned(),
            "agent_model_config.max_tokens".to_owned(),
            "agent_model_config.temperature".to_owned(),
            format!("{specific}.background_noise_volume"),
            format!("{specific}.end_of_speech_timeout"),
            format!("{specific}.inbound_transfer_routes.0.phone_number"),
            format!("{specific}.inbound_transfer_routes.1.route_id"),
            format!("{specific}.max_output_tokens"),
            format!("{specific}.session_timeout"),
            format!("{specific}.time_to_cut"),
            format!("{specific}.timezone"),
            format!("{specific}.webhooks.outgoing.retry_count"),
            format!("{specific}.webhooks.outgoing.url"),
            "transcriber_config.language".to_owned(),
            "transcriber_config.transcriber_model_name".to_owned(),
            "tts_config.language".to_owned(),
            "tts_config.voice_parameters".to_owned(),
            "vad_config.sampling_rate".to_owned(),
            "vad_config.threshold".to_owned(),
        ]
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_to_a_blocked_address_is_refused() {
    let app = without_workers().await;
    let made = app.post(AGENTS, full_agent()).await.expect(201);
    let id = made["agent"]["id"].as_str().expect("an id");

    let long = format!("https://crm.example.com/{}", "a".repeat(2000));
    for url in [
        "https://169.254.169.254/latest",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://2130706433/",
        "https://[::1]/",
        "ftp://crm.example.com/",
        "https://user@crm.example.com/",
        "https://crm.example.com/#calls",
        "crm",
        &long,
    ] {
        let part = json!({"agent_specific_config": {"webhooks": {"outgoing": {"url": url}}}});
        let refused = put_agent(&app, id, true, part.clone()).await.expect(422);

        let loc = json!([
            "body",
            "agent_specific_config",
            "webhooks",
            "outgoing",
            "url"
        ]);
        assert_eq!(refused["errors"][0]["loc"], loc, "{url}");

        let mut body = full_agent();
        body["agent_specific_config"]["webhooks"]["outgoing"]["url"] = json!(url);
        app.post(AGENTS, body).await.expect(422);
    }

    assert_eq!(app.get(&format!("{AGENTS}/{id}")).await.expect(200), made);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_unknown_field_is_named() {
    let app = without_workers().await;
    for (body, field) in [
        (json!({}), "agent"),
        (json!({"agent": {}}), "name"),
        (
            json!({"agent": {"name": "A"}, "transcriber_config": {"language": "en"}}),
            "transcriber_model_name",
        ),
        (
            json!({"agent": {"name": "A", "org_id": app.tenant.org}}),
            "org_id",
        ),
        (
            json!({"agent": {"name": "A"}, "agent_specific_config": {"webhooks": {"outgoing": {
            "url": "https://example.com", "cookies": {"session": "secret"}}}}}),
            "cookies",
        ),
    ] {
        let problem = app.post(AGENTS, body).await.expect(422);
        let loc = problem["errors"][0]["loc"]
            .as_array()
            .expect("a path")
            .last();
        assert_eq!(loc, Some(&json!(field)), "{problem}");
    }

    assert_eq!(app.count("select count(*) from agents").await, 1);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_merged_into_an_inactive_agent() {
    let app = without_workers().await;
    let made = app.post(AGENTS, full_agent()).await.expect(201);
    let id = made["agent"]["id"].as_str().expect("an id");

    let part = json!({
        "agent": {"welcome_message": "Good day {{name}}", "is_active": true},
        "tts_config": {"voice_parameters": {"rate": null, "effects": {"reverb": 2}}},
        "agent_specific_config": {"background_noise_id": "", "webhooks": {"outgoing": {"retry_count": 5}}},
        "vad_config": null,
    });

    let changed = put_agent(&app, id, false, part).await.expect(200);
    assert_eq!(
        changed["agent"]["first_response_message"],
        "Good day {{name}}"
    );
    assert_eq!(changed["agent"]["description"], "Reminds");

    let configurations = &changed["configurations"];
    assert_eq!(
        configurations["tts_config"]["voice_parameters"],
        json!({"effects": {"echo": 1, "reverb": 2}})
    );
    assert_eq!(
        configurations["agent_specific_config"]["background_noise_id"],
        Value::Null
    );

    let outgoing = &configurations["agent_specific_config"]["webhooks"]["outgoing"];
    assert_eq!(
        (&outgoing["retry_count"], &outgoing["method"]),
        (&json!(5), &json!("PUT"))
    );
    assert_eq!(configurations["vad_config"], Value::Null);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_agent_is_changed_only_with_force() {
    let app = without_workers().await;
    let mut body = full_agent();
    body["agent"]["is_active"] = json!(true);
    body["vad_config"] = Value::Null;
    let made = app.post(AGENTS, body).await.expect(201);
    let id = made["agent"]["id"].as_str().expect("an id");

    let refused = put_agent(&app, id, false, json!({"agent": {"name": "Other"}}))
        .await
        .expect(400);
    assert_eq!(refused["code"], "agent_active");
    assert!(refused["detail"].to_string().contains("force_update=true"));

    put_agent(&app, id, true, json!({"agent": {"name": "Other"}}))
        .await
        .expect(200);
    put_agent(&app, id, true, json!({"agent": {"name": null}}))
        .await
        .expect(422);
    put_agent(&app, id, true, json!({"agents": {}}))
        .await
        .expect(422);
    put_agent(
        &app,
        id,
        true,
        json!({"agent": {"user_id": app.tenant.agent}}),
    )
    .await
    .expect(422);
    put_agent(&app, id, true, json!([1])).await.expect(422);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_an_agent_is_changed_by_its_own_route() {
    let app = without_workers().await;
    let mut body = full_agent();
    body["agent"]["is_active"] = json!(true);
    body["vad_config"] = Value::Null;
    let made = app.post(AGENTS, body).await.expect(201);
    let id = made["agent"]["id"].as_str().expect("an id");

    for (part, body, section) in [
        (
            "model-config",
            json!({"temperature": 0.1}),
            "agent_model_config",
        ),
        (
            "tts-config",
            json!({"voice_name": "Polly.Brian"}),
            "tts_config",
        ),
        (
            "transcriber-config",
            json!({"language": ["en-IN"]}),
            "transcriber_config",
        ),
        (
            "vad-config",
            json!({"vad_provider_id": "silero"}),
            "vad_config",
        ),
    ] {
        let path = format!("{AGENTS}/{id}/{part}");
        let refused = send_as(&app, &app.tenant, Method::PATCH, &path, body.clone()).await;
        assert_eq!(refused.expect(400)["code"], "agent_active", "{part}");

        let forced = format!("{path}?force_update=true");
        let changed = send_as(&app, &app.tenant, Method::PATCH, &forced, body.clone())
            .await
            .expect(200);
        for (name, value) in body.as_object().expect("an object") {
            let wanted = value
                .as_array()
                .and_then(|list| list.first())
                .unwrap_or(value);
            assert_eq!(&changed["configurations"][section][name], wanted, "{part}");
        }

        let odd = send_as(&app, &app.tenant, Method::PATCH, &forced, json!({"odd": 1})).await;
        odd.expect(422);
    }

    let shown = app.get(&format!("{AGENTS}/{id}")).await.expect(200);
    assert_eq!(
        shown["configurations"]["agent_model_config"]["max_tokens"],
        256
    );
    assert_eq!(shown["configurations"]["vad_config"]["threshold"], 0.5);

    let log = audited_actions(&app, id).await;
    assert_eq!(log.len(), 5, "{log:?}");
    let changed: Vec<String> = sqlx::query_scalar(
        "select unnest(changed) from audit_log where action = 'agent.update' order by id limit 1",
    )
    .fetch_all(&app.context.pool)
    .await
    .expect("the log");
    assert_eq!(changed, ["agent_model_config"]);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_listed_by_page_and_name() {
    let app = without_workers().await;
    for name in ["Winter 50% off", "Summer", "Autumn"] {
        app.post(&format!("{AGENTS}/simple"), json!({"name": name}))
            .await
            .expect(201);
    }

    let names = |list: &Value| -> Vec<String> {
        let items = list.as_array().expect("a list").iter();
        items
            .filter_map(|agent| agent["name"].as_str().map(str::to_owned))
            .collect()
    };

    let all = app.get(AGENTS).await;
    assert_eq!(
        names(&all.expect(200)),
        ["Autumn", "Summer", "Winter 50% off", "Ada"]
    );
    assert_eq!(all.headers["x-total-count"], "4");
    assert!(all.headers.get("x-truncated").is_none());

    let second = app.get(&format!("{AGENTS}?page=2&page_size=3")).await;

    assert_eq!(names(&second.expect(200)), ["Ada"]);
    let first = app.get(&format!("{AGENTS}?page_size=3")).await;
    assert_eq!(first.headers["x-truncated"], "true");
    assert_eq!(
        names(&app.get(&format!("{AGENTS}?q=0%25")).await.expect(200)),
        ["Winter 50% off"]
    );
    assert_eq!(
        names(&app.get(&format!("{AGENTS}?q=MM")).await.expect(200)),
        ["Summer"]
    );

    for odd in [
        "page=0",
        "page_size=101",
        "scope=theirs",
        "platform_roles=king",
    ] {
        app.get(&format!("{AGENTS}?{odd}")).await.expect(422);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_copied_counted_and_deleted() {
    let app = without_workers().await;
    let copy = app
        .post(&format!("{AGENTS}/{}/clone", app.tenant.agent), Value::Null)
        .await;
    // A body of null is not an empty body.
    assert_eq!(copy.status, 422);

    let path = format!("{AGENTS}/{}/clone", app.tenant.agent);
    let copy = send_as(&app, &app.tenant, Method::POST, &path, Value::Null)
        .await
        .expect(201);
    assert_eq!(copy["agent"]["name"], "Ada (copy)");
    assert_eq!(
        copy["agent"]["first_response_message"],
        "Hello {{name}}, this is Peal."
    );

    let named = send_as(
        &app,
        &app.tenant,
        Method::POST,
        &path,
        json!({"name": "Eve"}),
    )
    .await
    .expect(201);
    assert_eq!(named["agent"]["name"], "Eve");

    let eve = named["agent"]["id"].as_str().expect("an id");
    let path = format!("{AGENTS}/{eve}");
    let refused = send_as(&app, &app.tenant, Method::DELETE, &path, Value::Null).await;
    let refused = refused.expect(400);
    assert_eq!(refused["code"], "agent_active");
    assert!(refused["detail"].to_string().contains("force_delete=true"));

    let forced = format!("{path}?force_delete=true");
    let gone = send_as(&app, &app.tenant, Method::DELETE, &forced, Value::Null)
        .await
        .expect(200);
    assert_eq!(gone["message"], "agent deleted");
    app.get(&path).await.expect(404);
    send_as(&app, &app.tenant, Method::DELETE, &forced, Value::Null)
        .await
        .expect(404);

    put_agent(&app, eve, true, json!({"agent": {"is_active": true}}))
        .await
        .expect(404);
    let batch = json!({"caller_phone_id": app.tenant.phone, "agent_id": eve, "batch_name": "Late"});
    app.post("/api/v1/batch-call/create", batch)
        .await
        .expect(404);
    assert_eq!(
        audited_actions(&app, eve).await,
        ["agent.clone", "agent.delete"]
    );

    let stats = app.get(&format!("{AGENTS}/stats")).await.expect(200);
    assert_eq!(
        stats,
        json!({"total": 2, "active": 2, "inactive": 0, "in_batches": 0, "calls_under_way": 0})
    );
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_agent_does_not_exist() {
    let app = without_workers().await;
    let colleague = create_member(&app, "colleague@example.com", Role::User).await;
    let stranger = app.create_tenant("Other").await;
    let mine = send_as(&app, &colleague, Method::POST, AGENTS, full_agent())
        .await
        .expect(201);
    let id = mine["agent"]["id"].as_str().expect("an id").to_owned();

    let routes = [
        (Method::GET, format!("{AGENTS}/{id}"), Value::Null),
        (
            Method::PUT,
            format!("{AGENTS}/{id}?force_update=true"),
            json!({"agent": {"name": "X"}}),
        ),
        (
            Method::PATCH,
            format!("{AGENTS}/{id}/model-config"),
            json!({}),
        ),
        (
            Method::PATCH,
            format!("{AGENTS}/{id}/tts-config"),
            json!({}),
        ),
        (
            Method::PATCH,
            format!("{AGENTS}/{id}/transcriber-config"),
            json!({}),
        ),
        (
            Method::PATCH,
            format!("{AGENTS}/{id}/vad-config"),
            json!({}),
        ),
        (Method::POST, format!("{AGENTS}/{id}/clone"), Value::Null),
        (
            Method::DELETE,
            format!("{AGENTS}/{id}?force_delete=true"),
            Value::Null,
        ),
    ];

    for (method, path, body) in &routes {
        let theirs = send_as(&app, &stranger, method.clone(), path, body.clone()).await;
        theirs.expect(404);
        let nobody = app.anonymous(method.clone(), path).json(body);
        crate::harness::app::send_request(nobody).await.expect(401);
    }

    for path in [AGENTS.to_owned(), format!("{AGENTS}/stats")] {
        crate::harness::app::send_request(app.anonymous(Method::GET, &path))
            .await
            .expect(401);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_shows_the_agents_that_the_role_may_see() {
    let app = without_workers().await;
    let colleague = create_member(&app, "colleague@example.com", Role::User).await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let stranger = app.create_tenant("Other").await;

    let mine = send_as(&app, &colleague, Method::POST, AGENTS, full_agent())
        .await
        .expect(201);
    let id = mine["agent"]["id"].as_str().expect("an id").to_owned();
    let user = mine["agent"]["user_id"].clone();

    // The administrator sees the member's agent, the member not the administrator's, and the
    // administrator's key neither.
    let admin = with_session(&app, &app.tenant).await;
    let ada = format!("{AGENTS}/{}", app.tenant.agent);
    send_as(&app, &colleague, Method::GET, &ada, Value::Null)
        .await
        .expect(404);
    let theirs = format!("{AGENTS}/{id}");
    send_as(&app, &admin, Method::GET, &theirs, Value::Null)
        .await
        .expect(200);
    app.get(&theirs).await.expect(404);

    let listed = |answer: Value| answer.as_array().expect("a list").len();
    assert_eq!(
        listed(
            send_as(&app, &colleague, Method::GET, AGENTS, Value::Null)
                .await
                .expect(200)
        ),
        1
    );

    for (who, path, count) in [
        (&admin, AGENTS.to_owned(), 2),
        (&admin, format!("{AGENTS}?scope=mine"), 1),
        (&app.tenant, AGENTS.to_owned(), 1),
    ] {
        let shown = send_as(&app, who, Method::GET, &path, Value::Null).await;

        assert_eq!(listed(shown.expect(200)), count, "{path}");
    }
    assert_eq!(
        listed(
            send_as(&app, &root, Method::GET, AGENTS, Value::Null)
                .await
                .expect(200)
        ),
        3
    );

    for (query, count) in [
        (format!("organization_ids={}", stranger.org), 1),
        (
            format!("owner_user_ids={}", user.as_str().expect("an id")),
            1,
        ),
        ("platform_roles=user".to_owned(), 1),
        ("scope=mine".to_owned(), 0),
        ("page_size=2".to_owned(), 2),
    ] {
        let path = format!("{AGENTS}?{query}");
        let answer = send_as(&app, &root, Method::GET, &path, Value::Null)
            .await
            .expect(200);
        assert_eq!(listed(answer), count, "{query}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_create_agents_for_members() {
    let app = without_workers().await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let stranger = app.create_tenant("Other").await;
    let colleague = create_member(&app, "colleague@example.com", Role::User).await;
    let mine = send_as(&app, &colleague, Method::POST, AGENTS, full_agent()).await;
    let user = mine.expect(201)["agent"]["user_id"].clone();

    // Only an administrator may create an agent for a member.
    let for_member = json!({"user_id": user, "agent": {"name": "Gift"}});
    let admin = with_session(&app, &app.tenant).await;
    let gift = send_as(&app, &admin, Method::POST, AGENTS, for_member.clone())
        .await
        .expect(201);
    assert_eq!(gift["agent"]["user_id"], user);

    app.post(AGENTS, for_member.clone()).await.expect(403);
    let stranger = with_session(&app, &stranger).await;
    send_as(&app, &stranger, Method::POST, AGENTS, for_member.clone())
        .await
        .expect(404);
    let eve = create_member(&app, "eve@example.com", Role::User).await;
    send_as(&app, &eve, Method::POST, AGENTS, for_member)
        .await
        .expect(403);

    let copied = send_as(
        &app,
        &root,
        Method::POST,
        &format!("{AGENTS}/{}/clone", stranger.agent),
        Value::Null,
    )
    .await;
    let owner = copied.expect(201)["agent"]["user_id"].clone();
    assert_ne!(owner, user);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_batch_blocks_changes_that_break_it() {
    let mut app = without_workers().await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 2).await;
    app.start_batch(&batch).await;
    let id = app.tenant.agent.to_string();

    let path = format!("{AGENTS}/{id}?force_delete=true");
    let refused = send_as(&app, &app.tenant, Method::DELETE, &path, Value::Null)
        .await
        .expect(409);
    assert_eq!(refused["code"], "agent_in_use");
    assert!(
        refused["detail"]
            .as_str()
            .expect("text")
            .contains("A campaign"),
        "{refused}"
    );

    let refused = put_agent(&app, &id, true, json!({"agent": {"is_active": false}}))
        .await
        .expect(409);
    assert_eq!(refused["code"], "agent_in_use");

    let refused = put_agent(
        &app,
        &id,
        true,
        json!({"agent": {"first_response_message": "Hi {{name}} of {{city}}"}}),
    );
    let refused = refused.await.expect(409);
    assert_eq!(refused["code"], "missing_variables");
    assert!(
        refused["detail"]
            .as_str()
            .expect("text")
            .contains("{{city}}"),
        "{refused}"
    );

    put_agent(
        &app,
        &id,
        false,
        json!({"agent": {"first_response_message": "Hi {{name}}"}}),
    )
    .await
    .expect(400);
    put_agent(
        &app,
        &id,
        true,
        json!({"agent": {"first_response_message": "Hi {{name}}"}}),
    )
    .await
    .expect(200);

    let stats = app.get(&format!("{AGENTS}/stats")).await.expect(200);
    assert_eq!(stats["in_batches"], 1);

    app.post(&format!("/api/v1/batch-call/stop/{batch}"), json!({}))
        .await
        .expect(200);
    app.start_worker(&peal_worker::Role::ALL).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_of_a_stopped_batch_can_be_deleted() {
    let mut app = without_workers().await;
    let batch = app.create_batch(json!({})).await;
    app.add_people(&batch, 2).await;
    app.start_batch(&batch).await;
    let id = app.tenant.agent.to_string();

    app.post(&format!("/api/v1/batch-call/stop/{batch}"), json!({}))
        .await
        .expect(200);
    put_agent(&app, &id, true, json!({"agent": {"is_active": false}}))
        .await
        .expect(200);
    send_as(
        &app,
        &app.tenant,
        Method::DELETE,
        &format!("{AGENTS}/{id}"),
        Value::Null,
    )
    .await
    .expect(200);

    // The batch still shows its agent.
    let shown = app
        .get(&format!("/api/v1/batch-call/{batch}"))
        .await
        .expect(200);
    assert_eq!(shown["data"]["agent_id"], id);

    app.start_worker(&peal_worker::Role::ALL).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_of_a_queued_call_cannot_be_deleted() {
    let mut app = without_workers().await;
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B12125550142&agent_id={}",
        app.tenant.agent
    );
    app.post(&path, json!({})).await.expect(202);

    let path = format!("{AGENTS}/{}?force_delete=true", app.tenant.agent);
    let refused = send_as(&app, &app.tenant, Method::DELETE, &path, Value::Null)
        .await
        .expect(409);
    assert!(
        refused["detail"]
            .as_str()
            .expect("text")
            .contains("under way"),
        "{refused}"
    );

    app.start_worker(&peal_worker::Role::ALL).await;
    let over = || async {
        app.count("select count(*) from calls where status <> 'final'")
            .await
            == 0
    };
    eventually("the call is over", TEST_TIMEOUT, over).await;

    send_as(&app, &app.tenant, Method::DELETE, &path, Value::Null)
        .await
        .expect(200);
    app.finish().await;
}
