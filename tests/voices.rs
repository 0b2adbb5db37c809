//! The catalogue: providers, voices, and the voices that an agent may use.

use peal_shared::access::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::app::{ApiResponse, App, AppOptions, send_request};
use crate::harness::members::{audited_actions, create_member, jwt_for_email, send_as, with_key};

const VOICES_PATH: &str = "/api/v1/tts-voices";

async fn without_workers() -> App {
    App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await
}

fn voice_codes(list: &Value) -> Vec<&str> {
    let items = list.as_array().expect("a list").iter();
    items
        .filter_map(|voice| voice["voice_id"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_are_listed_by_kind() {
    let app = without_workers().await;
    let all = app.get("/api/v1/providers/all").await.expect(200);
    for (kind, name) in [
        ("model", "model_providers"),
        ("tts", "tts_providers"),
        ("stt", "stt_providers"),
        ("vad", "vad_providers"),
    ] {
        let path = format!("/api/v1/providers/{kind}");
        let listed = app.get(&path).await.expect(200);
        assert_eq!(listed, all[name], "{kind}");
        assert_eq!(listed[0]["is_default"], true, "{kind}");
        let mut fields: Vec<&String> = listed[0].as_object().expect("an object").keys().collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            ["code", "id", "is_default", "model_name", "provider_name"]
        );
        send_request(app.anonymous(Method::GET, &path))
            .await
            .expect(401);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voices_are_found_by_id_code_provider_and_language() {
    let app = without_workers().await;
    let all = app.get(VOICES_PATH).await.expect(200);
    assert!(voice_codes(&all).len() > 300);
    let joanna = app
        .get(&format!("{VOICES_PATH}/Polly.Joanna"))
        .await
        .expect(200);
    assert_eq!(
        (
            &joanna["voice_name"],
            &joanna["gender"],
            &joanna["supported_languages"]
        ),
        (&json!("Joanna"), &json!("female"), &json!(["en-US"]))
    );

    let id = joanna["id"].as_str().expect("an id");
    assert_eq!(
        app.get(&format!("{VOICES_PATH}/{id}")).await.expect(200),
        joanna
    );
    app.get(&format!("{VOICES_PATH}/Polly.Nobody"))
        .await
        .expect(404);
    app.get(&format!("{VOICES_PATH}/%00")).await.expect(404);

    let hindi = app
        .get(&format!("{VOICES_PATH}?language=hi"))
        .await
        .expect(200);
    assert!(
        voice_codes(&hindi).contains(&"Polly.Aditi")
            && voice_codes(&hindi).contains(&"Google.hi-IN-Neural2-A")
    );
    assert!(!voice_codes(&hindi).contains(&"Polly.Joanna"));
    app.get(&format!("{VOICES_PATH}?language=%00"))
        .await
        .expect(422);

    let provider = joanna["provider_id"].as_str().expect("an id");
    let by_id = app
        .get(&format!("{VOICES_PATH}/provider/{provider}"))
        .await
        .expect(200);
    let by_code = app
        .get(&format!("{VOICES_PATH}/provider/polly"))
        .await
        .expect(200);
    assert_eq!(by_id, by_code);
    assert!(
        voice_codes(&by_id)
            .iter()
            .all(|code| code.starts_with("Polly."))
    );
    app.get(&format!("{VOICES_PATH}/provider/nobody"))
        .await
        .expect(404);
    for path in [
        VOICES_PATH.to_owned(),
        format!("{VOICES_PATH}/{id}"),
        format!("{VOICES_PATH}/provider/polly"),
    ] {
        send_request(app.anonymous(Method::GET, &path))
            .await
            .expect(401);
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_platform_adds_voices() {
    let app = without_workers().await;
    let root = create_member(&app, "root@example.com", Role::SuperAdmin).await;
    let voice = json!({"provider_id": "polly", "voice_id": "Polly.Nova-Generative", "voice_name": "Nova",
                       "supported_languages": ["en-US"], "gender": "neutral", "is_public": false});
    app.post(VOICES_PATH, voice.clone()).await.expect(403);
    let key = with_key(&root);
    let refused = send_as(&app, &key, Method::POST, VOICES_PATH, voice.clone()).await;
    refused.expect(403);

    let token = jwt_for_email(&app, "root@example.com").await;
    let post = async |body: &Value| {
        send_request(
            app.anonymous(Method::POST, VOICES_PATH)
                .bearer_auth(&token)
                .json(body),
        )
        .await
    };

    let added = post(&voice).await.expect(201);
    assert_eq!(
        (&added["source"], &added["user_id"]),
        (&json!("catalog"), &Value::Null)
    );
    assert_eq!(post(&voice).await.expect(409)["code"], "voice_listed");

    let id = added["id"].as_str().expect("an id");
    assert_eq!(audited_actions(&app, id).await, ["voice.create"]);

    // The voice is not public.
    app.get(&format!("{VOICES_PATH}/{id}")).await.expect(404);
    let path = format!("{VOICES_PATH}/{id}");
    let seen = send_as(&app, &root, Method::GET, &path, Value::Null).await;
    seen.expect(200);

    for (field, value, status) in [
        ("provider_id", json!("nobody"), 404),
        ("voice_id", json!(""), 422),
        ("voice_name", json!(" "), 422),
        ("supported_languages", json!([]), 422),
        ("supported_languages", json!(["English"]), 422),
        ("gender", json!("robot"), 422),
        ("preview_url", json!("http://example.com"), 422),
        ("user_id", json!(id), 422),
    ] {
        let mut wrong = voice.clone();
        wrong[field] = value;
        post(&wrong).await.expect(status);
    }

    let pool = &app.context.pool;
    let mut tenant = pool
        .begin_with("begin; set local role peal_tenant")
        .await
        .expect("begin");
    let deleted = sqlx::query("delete from tts_voices")
        .execute(&mut *tenant)
        .await
        .expect("delete");
    assert_eq!(deleted.rows_affected(), 0);

    let written = sqlx::query("insert into providers select * from providers")
        .execute(&mut *tenant)
        .await;
    assert!(written.is_err());

    drop(tenant);
    app.finish().await;
}

/// Tries to create an agent with this voice.
async fn create_agent_with_voice(app: &App, tts: Value) -> ApiResponse {
    let agent = json!({"agent": {"name": "A"}, "tts_config": tts});
    app.post("/api/v1/agents", agent).await
}

const COUNT_AGENTS_WITH_VOICE: &str = "select count(*) from agents where voice is not null";

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_accepts_only_known_voices() {
    let app = without_workers().await;
    let make = async |tts: Value| create_agent_with_voice(&app, tts).await;
    let problem = make(json!({"voice_name": "Polly.Johanna"}))
        .await
        .expect(422);
    assert_eq!(
        problem["errors"][0]["loc"],
        json!(["body", "tts_config", "voice_name"])
    );
    assert!(
        problem["detail"]
            .as_str()
            .expect("text")
            .contains("Polly.Joanna"),
        "{problem}"
    );

    let problem = make(json!({"voice_name": "Polly.Joanna", "language": "hi-IN"}))
        .await
        .expect(422);
    assert_eq!(
        problem["errors"][0]["loc"],
        json!(["body", "tts_config", "language"])
    );
    assert!(
        problem["detail"].as_str().expect("text").contains("en-US"),
        "{problem}"
    );

    let other_provider = json!({"tts_model_name": "google", "voice_name": "Polly.Joanna"});
    make(other_provider).await.expect(422);

    for tts in [
        json!({"voice_name": "Polly.Joanna"}),
        json!({"voice_name": "Polly.Aditi", "language": "hi-in", "tts_model_name": "polly"}),
        json!({"voice_name": "alice", "language": "pt-BR"}),
        json!({"voice_name": null, "language": "xx-YY"}),
    ] {
        make(tts).await.expect(201);
    }

    assert_eq!(app.count(COUNT_AGENTS_WITH_VOICE).await, 3);
    app.finish().await;
}

/// Voices of other providers are not checked, and are not sent to the carrier.
#[tokio::test(flavor = "multi_thread")]
async fn the_voice_of_another_provider_is_stored_unchanged() {
    let app = without_workers().await;
    let make = async |tts: Value| create_agent_with_voice(&app, tts).await;
    let foreign =
        json!({"tts_model_name": "bulbul:v2", "voice_name": "Anushka", "language": "hi-IN"});
    let made = make(foreign.clone()).await.expect(201);
    for (name, value) in foreign.as_object().expect("an object") {
        assert_eq!(&made["configurations"]["tts_config"][name], value);
    }
    assert_eq!(app.count(COUNT_AGENTS_WITH_VOICE).await, 0);

    let id = made["agent"]["id"].as_str().expect("an id");
    let path = format!("/api/v1/agents/{id}/tts-config?force_update=true");
    let own = json!({"tts_model_name": null});
    send_as(&app, &app.tenant, Method::PATCH, &path, own)
        .await
        .expect(422);
    let own = json!({"tts_model_name": null, "voice_name": "Polly.Kajal-Neural"});
    let changed = send_as(&app, &app.tenant, Method::PATCH, &path, own)
        .await
        .expect(200);
    assert_eq!(
        changed["configurations"]["tts_config"]["voice_name"],
        "Polly.Kajal-Neural"
    );
    assert_eq!(app.count(COUNT_AGENTS_WITH_VOICE).await, 1);

    let stored_twice =
        "select count(*) from agents where voice is not null and tts_config ? 'voice_name'";
    assert_eq!(app.count(stored_twice).await, 0);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_removed_voice_can_still_be_changed() {
    let app = without_workers().await;
    sqlx::query("update agents set voice = 'Polly.Old' where id = $1")
        .bind(app.tenant.agent)
        .execute(&app.context.pool)
        .await
        .expect("update");
    let path = format!("/api/v1/agents/{}?force_update=true", app.tenant.agent);
    let renamed = send_as(
        &app,
        &app.tenant,
        Method::PUT,
        &path,
        json!({"agent": {"name": "B"}}),
    )
    .await;
    assert_eq!(
        renamed.expect(200)["configurations"]["tts_config"]["voice_name"],
        "Polly.Old"
    );
    app.finish().await;
}
