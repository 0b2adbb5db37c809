//! Leak test: no phone number, name or secret may reach logs, jobs, Redis or metrics. Secrets may
//! not reach sent mail, the audit log, stored idempotent responses or error responses either.

use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use peal_api::cli::admin::AdminRole;
use peal_shared::platform::ids::{CallId, InviteId, TrunkId};
use peal_simulator::{FaultChance, Faults};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio::net::TcpListener;

use crate::auth::login::{PASSWORD, SessionUser, login, send_with_token};
use crate::harness::app::{AUTH_TOKEN, ApiResponse, App, TEST_TIMEOUT, phone_number, send_request};
use crate::harness::members::jwt_for_email;
use crate::harness::scrape::serve_metrics;
use crate::harness::{env_setting, eventually};

/// Captured log output.
#[derive(Clone, Default)]
struct CapturedLogs(Arc<Mutex<Vec<u8>>>);

impl Write for CapturedLogs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("logs").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_personal_data_or_secret_leaks_into_logs_jobs_metrics_or_redis() {
    let logs = CapturedLogs::default();
    let writer = logs.clone();
    tracing_subscriber::fmt()
        .with_env_filter("warn,peal_api=trace,peal_worker=trace,peal_shared=trace")
        .with_writer(move || writer.clone())
        .init();

    // 1. Run a campaign under faults, and use every secret.
    let app = App::start().await;
    // Faults, so that the code paths that log warnings run too.
    app.carrier.set_faults(Faults {
        refuse_429: FaultChance::next(2),
        drop_after: FaultChance::next(2),
        callbacks_duplicated: FaultChance::Rate(0.5),
        ..Faults::default()
    });

    let batch = app.create_batch(json!({})).await;
    let mut csv = String::from("to_phonenumber,name\n");
    for n in 0..20 {
        csv.push_str(&format!("{},Canary{n}\n", phone_number(n)));
    }
    csv.push_str("+1212555000000000,Canary99\n");
    app.upload(&batch, &csv).await;

    app.post(
        "/api/call/create_call?phoneNumber=%2B121255&agent_id=00000000-0000-7000-8000-000000000000",
        json!({}),
    )
    .await
    .expect(422);
    app.start_batch(&batch).await;
    app.wait_for_status(&batch, "completed").await;
    let used = UsedSecrets::collect(&app).await;

    // 2. Collect all output.
    let kept = dump_redis(&app).await;
    let shown = dump_metrics(&app).await;

    let written = || async { !logs.0.lock().expect("logs").is_empty() };
    eventually("something is logged", TEST_TIMEOUT, written).await;
    let logged = String::from_utf8_lossy(&logs.0.lock().expect("logs")).into_owned();
    assert!(
        logged.contains("place") || logged.contains("batch completed"),
        "the logs were not captured"
    );

    let mut secrets = vec![
        "Canary".to_owned(),
        AUTH_TOKEN.to_owned(),
        app.tenant.api_key.clone(),
        "+12125550100".to_owned(),
        "1212555000000000".to_owned(),
    ];
    secrets.extend(call_tokens(&app).await);
    secrets.extend((0..20).map(|n| phone_number(n).trim_start_matches('+').to_owned()));

    let stored = dump_tables(&app).await;
    let refusals = used.refusals.join("\n");
    assert!(stored.contains("tool.test") && refusals.contains("wrong_credentials"));
    let everywhere = [("the logs", &logged), ("Redis", &kept), ("metrics", &shown)];
    let of_secrets = [("tables", &stored), ("refusals", &refusals)];

    // 3. Search for secrets.
    for secret in secrets {
        assert_absent(&secret, &everywhere);
    }
    for secret in used.secrets {
        assert_absent(&secret, &everywhere);
        assert_absent(&secret, &of_secrets);
    }

    // Last, because a slow statement is logged. Ids are removed, as one may look like a number.
    let jobs = "select count(*) from jobs
                where regexp_replace(args::text, '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}', '', 'g') ~ '[0-9]{9,}'
                   or args::text like '%Canary%'";
    assert_eq!(app.count(jobs).await, 0);
    app.finish().await;
}

fn assert_absent(secret: &str, places: &[(&str, &String)]) {
    assert!(secret.len() >= 6, "{secret} is too short to search for");
    for (place, text) in places {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(
            line.is_none(),
            "{place} contain {secret}: {}",
            line.unwrap_or_default()
        );
    }
}

/// Secrets that the test used, and the responses to wrong ones.
#[derive(Default)]
struct UsedSecrets {
    secrets: Vec<String>,
    refusals: Vec<String>,
}

impl UsedSecrets {
    /// Uses every kind of secret, right and wrong.
    async fn collect(app: &App) -> Self {
        let mut used = Self::default();
        let ada = SessionUser::new(app, "ada@example.com", "Acme", AdminRole::OrgAdmin).await;
        used.secrets
            .extend([PASSWORD.to_owned(), ada.token.clone()]);
        used.use_logins(app, &ada).await;
        used.use_api_keys(app, &ada).await;
        used.use_tool_credentials(app, &ada).await;
        used.use_trunk_credentials(app, &ada).await;
        used
    }

    fn keep(&mut self, secret: &str) -> String {
        self.secrets.push(secret.to_owned());
        secret.to_owned()
    }

    /// Keeps the text of an error response.
    fn keep_refusal(&mut self, answer: ApiResponse) {
        assert!(answer.status.is_client_error(), "{}", answer.text);
        self.refusals.push(answer.text);
    }

    /// Uses passwords, sessions and invitations.
    async fn use_logins(&mut self, app: &App, ada: &SessionUser<'_>) {
        let wrong = self.keep("canary wrong password");
        self.keep_refusal(login(app, "ada@example.com", &wrong).await);
        self.keep_refusal(login(app, "nobody@example.com", &wrong).await);

        let forged = self.keep("eyJhbGciOiJub25lIn0.eyJzdWIiOiJjYW5hcnkifQ.canary");
        self.keep_refusal(send_with_token(app, &forged, Method::GET, "/api/v1/me", None).await);
        let of_issuer = jwt_for_email(app, "acme@example.com").await;
        self.secrets.push(of_issuer.clone());
        send_with_token(app, &of_issuer, Method::GET, "/api/v1/me", None)
            .await
            .expect(200);

        let orgs = format!("/api/v1/organizations/{}/invites", app.tenant.org);
        let guest = json!({"email": "bob@example.com"});
        let invite = ada.send(Method::POST, &orgs, guest).await.expect(201);
        let id: InviteId = invite["id"]
            .as_str()
            .expect("an id")
            .parse()
            .expect("an id");
        let token = app.context.config.keys.invite_token(id);
        self.secrets.push(token.clone());

        let sent = "select count(*) from emails where sent_at is null";
        eventually("mail is sent", TEST_TIMEOUT, || async {
            app.count(sent).await == 0
        })
        .await;

        let accept = "/api/v1/organizations/invites/accept";
        let weak = json!({"token": token, "password": self.keep("bob@example.com1")});
        self.keep_refusal(app.post(accept, weak).await);
        let strong = json!({"token": token, "password": self.keep("canary first password")});
        app.post(accept, strong.clone()).await.expect(201);
        self.keep_refusal(app.post(accept, strong).await);

        let opened = login(app, "bob@example.com", "canary first password").await;
        let token = opened.expect(200)["access_token"]
            .as_str()
            .expect("a token")
            .to_owned();
        self.secrets.push(token.clone());

        for (current, status) in [
            ("canary wrong password", 400),
            ("canary first password", 200),
        ] {
            let next = self.keep("canary second password");
            let body = json!({"current_password": current, "new_password": next});
            let path = "/api/v1/auth/password";
            let changed = send_with_token(app, &token, Method::POST, path, Some(body)).await;
            assert_eq!(changed.status.as_u16(), status, "{}", changed.text);
            if status != 200 {
                self.keep_refusal(changed);
            }
        }
    }

    /// Uses API keys of Peal and keys of vendors.
    async fn use_api_keys(&mut self, app: &App, ada: &SessionUser<'_>) {
        let path = "/api/v1/api-keys";
        let make = async |body: Value| {
            let request = app.anonymous(Method::POST, path).bearer_auth(&ada.token);
            let key = format!("make {}", body["name"]);
            send_request(request.header("Idempotency-Key", key).json(&body)).await
        };

        let made = make(json!({"name": "made"})).await.expect(200);
        let made = made["api_key"]["api_key"]
            .as_str()
            .expect("a key")
            .to_owned();
        let brought = self.keep("Zk3vQ9xT1mB7rL5wY0cH8nJ2pD6sF4gA");
        make(json!({"name": "brought", "api_key": brought}))
            .await
            .expect(200);

        let vendor = self.keep("sk-canary-Zk3vQ9xT1mB7rL5wY0cH8n");
        let provider = json!({"name": "vendor", "provider_name": "openai", "api_key": vendor});
        make(provider).await.expect(200);

        let weak = self.keep("canarycanarycanarycanarycanary00");
        self.keep_refusal(make(json!({"name": "weak", "api_key": weak})).await);
        let odd = json!({"name": "odd", "api_key": self.keep("canary odd key"), "role": "king"});
        self.keep_refusal(make(odd).await);

        let unknown = self.keep("peal_live_canarycanarycanarycanarycanarycanarycanary012345");
        for (key, status) in [
            (&made, 200),
            (&brought, 200),
            (&unknown, 401),
            (&vendor, 401),
        ] {
            let asked = app
                .anonymous(Method::GET, "/api/v1/me")
                .header("x-api-key", key);
            let answer = send_request(asked).await;
            assert_eq!(answer.status.as_u16(), status, "{}", answer.text);
            if status != 200 {
                self.keep_refusal(answer);
            }
        }

        self.secrets.push(made);
    }

    /// Uses credentials of tools and MCP servers at a server that echoes them.
    async fn use_tool_credentials(&mut self, app: &App, ada: &SessionUser<'_>) {
        let url = echo_server().await;
        let (token, header) = (
            self.keep("canary-bearer-token"),
            self.keep("canary-header-value"),
        );

        let auth = json!({"type": "bearer", "token": token});
        let headers = json!({"X-Shop-Key": header});
        let tool = json!({"name": "find", "description": "Finds", "url": url, "auth": auth, "headers": headers});

        let tools = "/api/v1/tool-endpoint-defs";
        let made = ada
            .send(Method::POST, tools, tool.clone())
            .await
            .expect(201);
        self.keep_refusal(ada.send(Method::POST, tools, tool).await);

        let test = format!("{tools}/{}/test", made["id"].as_str().expect("an id"));
        let request = app.anonymous(Method::POST, &test).bearer_auth(&ada.token);
        let tried = send_request(request.header("Idempotency-Key", "test").json(&json!({}))).await;
        assert!(tried.expect(200)["request"].is_object(), "{}", tried.text);
        self.refusals.push(tried.text);

        let servers = "/api/v1/tools-mcp-server-defs";
        let server = json!({"name": "Shop", "server_url": url, "auth": auth, "headers": headers});
        let made = ada.send(Method::POST, servers, server).await;
        assert!(made.expect(201)["sync_error"].is_string(), "{}", made.text);
        self.refusals.push(made.text);

        let fetch = json!({"server_url": url, "auth": auth, "headers": headers});
        let fetched = ada
            .send(Method::POST, &format!("{servers}/fetch_mcp_tools"), fetch)
            .await;
        fetched.expect(200);
        self.refusals.push(fetched.text);

        let odd = json!({"name": "Odd", "server_url": "ftp://shop.test", "auth": auth, "headers": headers});
        self.keep_refusal(ada.send(Method::POST, servers, odd).await);
    }

    /// Uses credentials of trunks.
    async fn use_trunk_credentials(&mut self, app: &App, ada: &SessionUser<'_>) {
        let rotate = format!("/api/v1/trunks/{}/rotate", app.tenant.trunk);
        let wrong = json!({"password": self.keep("canary-wrong-carrier-secret")});
        self.keep_refusal(ada.send(Method::POST, &rotate, wrong).await);
        let signing = self.keep("canary-signing-secret");
        let good = json!({"password": self.keep(AUTH_TOKEN), "signing_secret": signing});
        ada.send(Method::POST, &rotate, good).await.expect(200);
    }
}

/// Starts a server that answers 500 and echoes its request headers.
async fn echo_server() -> String {
    let listener = TcpListener::bind("127.0.0.2:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let app = Router::new().fallback(async |headers: HeaderMap| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{headers:?}"))
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// Contents of the tables for jobs, mail, audit records and stored responses.
async fn dump_tables(app: &App) -> String {
    let mut all = String::new();
    for table in [
        "jobs",
        "emails",
        "audit_log",
        "refusals",
        "idempotency_keys",
        "idempotency_holds",
    ] {
        let sql = format!("select t::text from {table} t");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(&app.context.pool)
            .await
            .expect(table);
        all.push_str(&rows.join("\n"));
    }
    all
}

/// Metrics of every process. Fails when a label names a call, a batch or an organisation.
async fn dump_metrics(app: &App) -> String {
    let mut shown = String::new();
    for context in app.worker_contexts.iter().chain([&app.context]) {
        shown.push_str(&serve_metrics(context).await.scrape().await.text);
    }
    for series in ["peal_dials_total{", "peal_callback_seconds_count{"] {
        assert!(shown.contains(series), "{series} is not shown");
    }
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar(
        "select id from calls union all select id from call_batches union all select id from organizations",
    )
    .fetch_all(&app.context.pool)
    .await
    .expect("ids");
    for id in ids {
        assert!(!shown.contains(&id.to_string()), "metrics name {id}");
    }
    shown
}

/// Tokens in the callback URLs of calls.
async fn call_tokens(app: &App) -> Vec<String> {
    let calls: Vec<(CallId, TrunkId)> = sqlx::query_as("select id, trunk_id from calls")
        .fetch_all(&app.context.pool)
        .await
        .expect("calls");
    let keys = &app.context.config.keys;
    let tokens = calls
        .iter()
        .map(|(call, trunk)| keys.call_token(*trunk, *call));
    tokens.collect()
}

/// Every key and value that this app has put into Redis.
async fn dump_redis(app: &App) -> String {
    let client = redis::Client::open(env_setting("PEAL_TEST_REDIS_URL")).expect("url");
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .expect("redis");
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{}*", app.context.config.redis_prefix))
        .query_async(&mut connection)
        .await
        .expect("keys");
    let mut kept = keys.join(" ");
    for key in &keys {
        let list: Vec<String> = redis::cmd("LRANGE")
            .arg(key)
            .arg(0)
            .arg(-1)
            .query_async(&mut connection)
            .await
            .expect("a list");
        kept.push_str(&list.join(" "));
    }
    kept
}
