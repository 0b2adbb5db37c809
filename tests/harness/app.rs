//! A whole Peal in one process: a fresh database, the API on a free port, workers, and the
//! simulator as its carrier.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use peal_shared::access::Role as UserRole;
use peal_shared::agents::{self, NewAgent};
use peal_shared::config::{Config, Settings};
use peal_shared::context::Context;
use peal_shared::ids::{AgentId, OrgId, PhoneId, TrunkId};
use peal_shared::phone::E164;
use peal_shared::phones::{self, NewPhone};
use peal_shared::telephony::{Account, CarrierKind, Credentials};
use peal_shared::trunks::{self, NewTrunk};
use peal_shared::{api_keys, users};
use peal_simulator::{Callee, Config as Carrier, Running, Simulator};
use peal_worker::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::db::{TestDatabase, fresh_database};
use super::{eventually, setting};

/// The account every test's trunk is on.
pub const ACCOUNT: &str = "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Its token; the simulator accepts it for every account.
pub const AUTH_TOKEN: &str = "00112233445566778899aabbccddeeff";
/// The secret of session tokens.
pub const JWT_SECRET: &str = "a secret of more than thirty-two bytes";
/// How long anything may take before its test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a test wants to be different.
pub struct Options {
    pub cps: i64,
    pub max_concurrent: i32,
    pub workers: usize,
    pub agent_message: &'static str,
    pub recording: bool,
    pub machine_detection: bool,
    pub carrier: Carrier,
    pub settings: fn(&mut Settings),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cps: 200,
            max_concurrent: 500,
            workers: 1,
            agent_message: "Hello {{name}}, this is Peal.",
            recording: false,
            machine_detection: false,
            carrier: everybody_answers(),
            settings: |_| {},
        }
    }
}

/// A carrier all of whose callees talk for some seconds, a hundred times faster than life.
pub fn everybody_answers() -> Carrier {
    let mut carrier = Carrier {
        speed: 100.0,
        ..Carrier::default()
    };
    carrier.behavior.mix = peal_simulator::Mix::only(Callee::Answers);
    carrier.behavior.ring_secs = peal_simulator::Span::new(1.0, 4.0).expect("a span");
    carrier
}

/// A tenant with everything a campaign takes.
#[derive(Clone)]
pub struct Tenant {
    pub org: OrgId,
    pub agent: AgentId,
    pub trunk: TrunkId,
    pub phone: PhoneId,
    pub api_key: String,
}

/// A running Peal.
pub struct App {
    pub context: Arc<Context>,
    pub carrier: Running,
    pub url: String,
    pub tenant: Tenant,
    http: reqwest::Client,
    api_shutdown: CancellationToken,
    api: Option<JoinHandle<anyhow::Result<()>>>,
    workers: Vec<(CancellationToken, JoinHandle<anyhow::Result<()>>)>,
    directory: std::path::PathBuf,
    // Dropped last: everything else uses it.
    database: TestDatabase,
}

/// A response, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The body as JSON, if the status is this one.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self.json()
    }
}

impl App {
    /// Starts everything as most tests want it.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// Starts everything.
    pub async fn with(options: Options) -> Self {
        let database = fresh_database().await;
        let carrier = Simulator::start(options.carrier.clone())
            .await
            .expect("simulator");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let directory = std::env::temp_dir().join(&database.name);
        let context = connect(&database, &url, &directory, options.settings).await;
        let tenant = found_tenant(&context, "Acme", carrier.url(), &options).await;
        let api_shutdown = CancellationToken::new();
        let api = tokio::spawn(peal_api::serve(
            Arc::clone(&context),
            listener,
            api_shutdown.clone(),
        ));
        let mut app = Self {
            context,
            carrier,
            url,
            tenant,
            http: reqwest::Client::builder()
                .no_proxy()
                .build()
                .expect("client"),
            api_shutdown,
            api: Some(api),
            workers: Vec::new(),
            directory,
            database,
        };
        for _ in 0..options.workers {
            app.start_worker(&Role::ALL).await;
        }
        app
    }

    /// Adds a worker replica with connections of its own.
    pub async fn start_worker(&mut self, roles: &[Role]) {
        let context = connect(&self.database, &self.url, &self.directory, |_| {}).await;
        let roles: BTreeSet<Role> = roles.iter().copied().collect();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let running = tokio::spawn(async move { peal_worker::run(context, &roles, token).await });
        self.workers.push((shutdown, running));
    }

    /// Stops every worker in good order.
    pub async fn stop_workers(&mut self) {
        for (shutdown, running) in std::mem::take(&mut self.workers) {
            shutdown.cancel();
            running.await.expect("worker").expect("worker stops well");
        }
    }

    /// A second organisation, on the same carrier.
    pub async fn another_tenant(&self, name: &str) -> Tenant {
        found_tenant(&self.context, name, self.carrier.url(), &Options::default()).await
    }

    /// A request with the tenant's key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request_as(&self.tenant, method, path)
    }

    /// A request with another tenant's key.
    pub fn request_as(
        &self,
        tenant: &Tenant,
        method: Method,
        path: &str,
    ) -> reqwest::RequestBuilder {
        self.anonymous(method, path)
            .header("x-api-key", &tenant.api_key)
    }

    /// A request without any key.
    pub fn anonymous(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        answer(self.request(Method::POST, path).json(&body)).await
    }

    /// Creates a batch with the variable `name`; `extra` goes over the defaults.
    pub async fn create_batch(&self, extra: Value) -> String {
        let mut body = json!({
            "caller_phone_id": self.tenant.phone,
            "agent_id": self.tenant.agent,
            "batch_name": "A campaign",
            "variable_names": ["name"],
            "batch_size": 100,
        });
        for (key, value) in extra.as_object().expect("an object") {
            body[key] = value.clone();
        }
        let created = self
            .post("/api/v1/batch-call/create", body)
            .await
            .expect(201);
        created["data"]["id"].as_str().expect("an id").to_owned()
    }

    /// Uploads a CSV and waits until it has been read.
    pub async fn upload(&self, batch: &str, csv: &str) -> Value {
        let part = reqwest::multipart::Part::text(csv.to_owned())
            .file_name("people.csv")
            .mime_str("text/csv")
            .expect("mime");
        let form = reqwest::multipart::Form::new().part("file", part);
        let path = format!("/api/v1/batch-call/upload/{batch}");
        let uploaded = answer(self.request(Method::POST, &path).multipart(form)).await;
        assert!(uploaded.status.is_success(), "{}", uploaded.text);
        let data = uploaded.json()["data"].clone();
        let ingest = data["ingest_id"].as_str().expect("an ingest").to_owned();
        let path = format!("/api/v1/batch-call/{batch}/ingests/{ingest}");
        let ended = || async {
            let state = self.get(&path).await.expect(200)["data"]["status"].clone();
            state == "completed" || state == "failed"
        };
        eventually("the upload has been read", PATIENCE, ended).await;
        self.get(&path).await.expect(200)["data"].clone()
    }

    /// Adds `count` people one by one, so to say: through the route that takes single rows.
    pub async fn add_people(&self, batch: &str, count: u32) {
        let people: Vec<Value> = (0..count)
            .map(|n| json!({"to_phonenumber": number(n), "variable_values": {"name": format!("Person {n}")}}))
            .collect();
        for items in people.chunks(1000) {
            let path = format!("/api/v1/batch-call/{batch}/data/upsert");
            let added = self
                .post(&path, json!({ "items": items }))
                .await
                .expect(200);
            assert_eq!(added["data"]["inserted"], json!(items.len()), "{added}");
        }
    }

    pub async fn start_batch(&self, batch: &str) -> Value {
        self.post(&format!("/api/v1/batch-call/start/{batch}"), json!({}))
            .await
            .expect(200)
    }

    /// The status object of a batch.
    pub async fn status(&self, batch: &str) -> Value {
        self.get(&format!("/api/v1/batch-call/{batch}/status"))
            .await
            .expect(200)["data"]
            .clone()
    }

    /// Waits until the batch has this status.
    pub async fn wait_for(&self, batch: &str, status: &str) -> Value {
        let reached = || async { self.status(batch).await["batch"]["status"] == status };
        eventually(&format!("the batch is {status}"), PATIENCE, reached).await;
        self.status(batch).await["status_counts"].clone()
    }

    /// Where uploaded files are kept.
    pub fn store(&self) -> std::path::PathBuf {
        self.directory.join("store")
    }

    /// One number from the database.
    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.context.pool)
            .await
            .expect(sql)
    }

    /// Waits until nothing is left to do: no due job, no unapplied event, no live call.
    pub async fn drain(&self) {
        assert!(
            self.carrier.wait_idle(PATIENCE).await,
            "the carrier does not come to rest"
        );
        let quiet = || async {
            self.count(
                "select (select count(*) from jobs where state = 'running' or state = 'ready' and run_at <= now())
                      + (select count(*) from call_events where applied_at is null)
                      + (select count(*) from calls where live)",
            )
            .await
                == 0
        };
        eventually("everything is done", PATIENCE, quiet).await;
    }

    /// Stops everything and fails the test if something was left over or went wrong unseen.
    pub async fn finish(mut self) {
        self.drain().await;
        self.stop_workers().await;
        self.api_shutdown.cancel();
        if let Some(api) = self.api.take() {
            api.await.expect("api").expect("the api stops well");
        }
        let dead = self
            .count("select count(*) from jobs where state = 'dead'")
            .await;
        assert_eq!(dead, 0, "jobs have died");
        let drifted = self
            .count(
                "select count(*)
                 from batch_progress p
                 where (p.not_started, p.calling, p.completed, p.failed, p.no_answer) <> (
                     select count(*) filter (where status = 'not_started'), count(*) filter (where status = 'calling'),
                            count(*) filter (where status = 'completed'), count(*) filter (where status = 'failed'),
                            count(*) filter (where status = 'no_answer')
                     from batch_data d where d.batch_id = p.batch_id)",
            )
            .await;
        assert_eq!(drifted, 0, "counts have drifted from their rows");
        let oracle = self.carrier.oracle();
        assert!(
            oracle.duplicates.is_empty(),
            "an attempt was sent twice: {:?}",
            oracle.duplicates
        );
        assert!(
            oracle.overlaps.is_empty(),
            "a number was on two calls at once: {:?}",
            oracle.overlaps
        );
        self.context.pool.close().await;
        let _gone = std::fs::remove_dir_all(&self.directory);
    }
}

/// Sends a request and reads the answer.
pub async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("an answer");
    Answer {
        status: response.status(),
        headers: response.headers().clone(),
        text: response.text().await.expect("a body"),
    }
}

/// A CSV of people in the United States, none of whose numbers means anything to the carrier.
pub fn people(count: u32) -> String {
    let mut csv = String::from("to_phonenumber,name\n");
    for n in 0..count {
        csv.push_str(&format!("{},Person {n}\n", number(n)));
    }
    csv
}

/// The n-th number: valid, and with a last digit block the carrier has no fate for.
pub fn number(n: u32) -> String {
    format!("+1212{:03}{:04}", 200 + n / 5000, 1000 + n % 5000)
}

/// Connections to everything, on a test's own database, prefix and directory.
pub async fn connect(
    database: &TestDatabase,
    url: &str,
    directory: &std::path::Path,
    change: impl FnOnce(&mut Settings),
) -> Arc<Context> {
    let mut settings = Settings {
        database_url: Some(database.url.clone()),
        database_pool: "12".to_owned(),
        redis_url: Some(setting("PEAL_TEST_REDIS_URL")),
        redis_prefix: database.name.clone(),
        master_key: Some(STANDARD.encode([7; 32])),
        public_url: Some(url.to_owned()),
        listen: "127.0.0.1:0".to_owned(),
        jwt_secret: Some(JWT_SECRET.to_owned()),
        jwt_issuer: "peal".to_owned(),
        jwt_audience: "authenticated".to_owned(),
        store_url: format!("file://{}/store", directory.display()),
        mail_dir: directory.join("mail"),
        mail_from: "Peal <peal@example.com>".to_owned(),
        upload_max_mb: "50".to_owned(),
        batch_max_rows: "100000".to_owned(),
        csv_max_columns: "50".to_owned(),
        csv_max_cell: "2000".to_owned(),
        unknown_deadline_secs: "5".to_owned(),
        reconcile_secs: "1".to_owned(),
        inbox_capacity: "1024".to_owned(),
        ..Settings::default()
    };
    change(&mut settings);
    let config = Config::from_settings(settings).expect("settings");
    Context::connect(config, "peal-tests")
        .await
        .expect("context")
}

async fn found_tenant(
    context: &Context,
    name: &str,
    carrier_url: &str,
    options: &Options,
) -> Tenant {
    let mut db = context.pool.begin().await.expect("transaction");
    let org = users::ensure_org_unscoped(&mut db, name)
        .await
        .expect("org");
    let email = format!("{}@example.com", name.to_lowercase());
    let user = users::ensure_user_unscoped(&mut db, org, &email, UserRole::OrgAdmin)
        .await
        .expect("user");
    let account = Account {
        kind: CarrierKind::Twilio,
        account_id: ACCOUNT.to_owned(),
        credentials: Credentials {
            username: None,
            password: AUTH_TOKEN.into(),
            signing_secrets: Vec::new(),
        },
        api_base_url: Some(carrier_url.parse().expect("url")),
    };
    let trunk = NewTrunk {
        org: Some(org),
        name: "Main".to_owned(),
        account,
        cps: options.cps.into(),
        max_concurrent: options.max_concurrent,
        ring_timeout_secs: 30,
    };
    let trunk = trunks::create_unscoped(&mut db, &context.config.keys, &trunk)
        .await
        .expect("trunk");
    let phone = NewPhone {
        org,
        user,
        trunk,
        number: E164::parse("+12125550100", None).expect("number"),
    };
    let phone = phones::create_unscoped(&mut db, &phone)
        .await
        .expect("phone");
    let agent = NewAgent {
        org,
        user,
        name: "Ada".to_owned(),
        first_response_message: options.agent_message.to_owned(),
        recording_enabled: options.recording,
        machine_detection: options.machine_detection,
    };
    let agent = agents::create_unscoped(&mut db, &agent)
        .await
        .expect("agent");
    let api_key = api_keys::create_unscoped(&mut db, &context.config.keys, org, user, "tests")
        .await
        .expect("key");
    db.commit().await.expect("commit");
    Tenant {
        org,
        agent,
        trunk,
        phone,
        api_key,
    }
}
