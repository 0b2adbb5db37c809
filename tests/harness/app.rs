//! A complete Peal in one process: a fresh database, the API on a free port, workers, and the
//! simulator as its carrier.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use peal_shared::access::Role as UserRole;
use peal_shared::agents::NewAgent;
use peal_shared::billing::settle::settle_due_unscoped;
use peal_shared::billing::verify::verify_unscoped;
use peal_shared::caller_numbers::NewCallerNumber;
use peal_shared::config::{Config, LimitSettings, Settings};
use peal_shared::context::{Context, ProcessKind};
use peal_shared::platform::e164::E164;
use peal_shared::platform::ids::{AgentId, OrgId, PhoneId, TrunkId};
use peal_shared::platform::money::Usd;
use peal_shared::telephony::{CarrierAccount, CarrierCredentials, CarrierKind};
use peal_shared::trunks::NewTrunk;
use peal_shared::wallets::operator_credit;
use peal_shared::{agents, api_keys, caller_numbers, trunks, users};
use peal_simulator::{CallOutcome, RunningSimulator, Simulator, SimulatorConfig as Carrier};
use peal_worker::Role;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use super::client::{
    ApiClient, ApiResponse, TEST_TIMEOUT, people_csv, phone_number, send_request,
};
use super::db::{TestDatabase, drop_database, fresh_database};
use super::{env_setting, eventually};

/// Carrier account of every test's trunk.
pub const ACCOUNT: &str = "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// Token of that account; the simulator accepts it for every account.
pub const AUTH_TOKEN: &str = "00112233445566778899aabbccddeeff";
/// Secret that signs session tokens.
pub const JWT_SECRET: &str = "a secret of more than thirty-two bytes";

/// Settings of an [`App`]; the default suits most tests.
pub struct AppOptions {
    pub cps: i64,
    pub max_concurrent: i32,
    pub workers: usize,
    pub agent_message: &'static str,
    pub recording: bool,
    pub machine_detection: bool,
    /// Credit of the tenant's user.
    pub credit: Usd,
    pub carrier: Carrier,
    pub settings: fn(&mut Settings),
}

impl Default for AppOptions {
    fn default() -> Self {
        Self {
            cps: 200,
            max_concurrent: 500,
            workers: 1,
            agent_message: "Hello {{name}}, this is Peal.",
            recording: false,
            machine_detection: false,
            credit: Usd::dollars(1_000_000),
            carrier: carrier_where_all_answer(),
            settings: |_| {},
        }
    }
}

/// A carrier whose callees all answer and talk for some seconds, at a hundred times real time.
pub fn carrier_where_all_answer() -> Carrier {
    let mut carrier = Carrier {
        speed: 100.0,
        ..Carrier::default()
    };
    carrier.behavior.mix = peal_simulator::OutcomeMix::only(CallOutcome::Answers);
    carrier.behavior.ring_secs = peal_simulator::SecondsRange::new(1.0, 4.0).expect("a span");
    carrier
}

/// A tenant with everything that a campaign needs.
#[derive(Clone)]
pub struct Tenant {
    pub org: OrgId,
    pub agent: AgentId,
    pub trunk: TrunkId,
    pub phone: PhoneId,
    pub api_key: String,
    /// Session token, sent instead of the key for operations that only sessions may do.
    pub session: Option<String>,
}

/// A running Peal. Its test must end with [`App::finish`], which checks for leftover work.
pub struct App {
    pub context: Arc<Context>,
    pub carrier: RunningSimulator,
    client: ApiClient,
    api_shutdown: CancellationToken,
    api: Option<JoinHandle<anyhow::Result<()>>>,
    replicas: Vec<(CancellationToken, JoinHandle<anyhow::Result<()>>)>,
    workers: Vec<(CancellationToken, JoinHandle<anyhow::Result<()>>)>,
    /// Contexts of the workers, including those that have stopped.
    pub worker_contexts: Vec<Arc<Context>>,
    settings: fn(&mut Settings),
    directory: std::path::PathBuf,
    finished: bool,
    // Dropped last, because everything else uses it.
    database: TestDatabase,
}

impl Deref for App {
    type Target = ApiClient;

    fn deref(&self) -> &ApiClient {
        &self.client
    }
}

impl App {
    /// Starts an app with the default options.
    pub async fn start() -> Self {
        Self::start_with(AppOptions::default()).await
    }

    /// Starts an app with these options.
    pub async fn start_with(options: AppOptions) -> Self {
        let database = fresh_database().await;
        let carrier = Simulator::start(options.carrier.clone())
            .await
            .expect("simulator");

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let directory = std::env::temp_dir().join(&database.name);

        let context = connect(&database, &url, &directory, options.settings).await;
        let tenant = create_tenant(&context, "Acme", carrier.url(), &options).await;

        let api_shutdown = CancellationToken::new();
        let api = tokio::spawn(peal_api::serve(
            Arc::clone(&context),
            listener,
            api_shutdown.clone(),
        ));

        let mut app = Self {
            context,
            carrier,
            client: ApiClient::new(url, tenant),
            api_shutdown,
            api: Some(api),
            replicas: Vec::new(),
            workers: Vec::new(),
            worker_contexts: Vec::new(),
            settings: options.settings,
            directory,
            finished: false,
            database,
        };

        for _ in 0..options.workers {
            app.start_worker(&Role::ALL).await;
        }
        app
    }

    /// Directory of uploaded files.
    pub fn store_dir(&self) -> std::path::PathBuf {
        self.directory.join("store")
    }

    /// Directory of all files of this app.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// URL of this test's database for its owner.
    pub fn database_url(&self) -> &str {
        &self.database.url
    }

    /// URL of this test's database for the programs.
    pub fn program_url(&self) -> &str {
        &self.database.program_url
    }

    /// Adds a replica of the API with its own connections and settings.
    pub async fn start_api(
        &mut self,
        change: impl FnOnce(&mut Settings),
    ) -> (ApiClient, Arc<Context>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("address"));

        let context = connect(&self.database, &url, &self.directory, change).await;

        let shutdown = CancellationToken::new();
        let running = peal_api::serve(Arc::clone(&context), listener, shutdown.clone());
        self.replicas.push((shutdown, tokio::spawn(running)));

        (ApiClient::new(url, self.client.tenant.clone()), context)
    }

    /// Adds a worker with its own connections.
    pub async fn start_worker(&mut self, roles: &[Role]) {
        let context = connect_as(
            ProcessKind::Worker,
            &self.database,
            &self.client.url,
            &self.directory,
            self.settings,
        )
        .await;
        self.worker_contexts.push(Arc::clone(&context));
        let roles: BTreeSet<Role> = roles.iter().copied().collect();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let running = tokio::spawn(async move { peal_worker::run(context, &roles, token).await });
        self.workers.push((shutdown, running));
    }

    /// Stops every worker gracefully.
    pub async fn stop_workers(&mut self) {
        for (shutdown, running) in std::mem::take(&mut self.workers) {
            shutdown.cancel();
            running.await.expect("worker").expect("worker stops well");
        }
    }

    /// Creates a second organisation on the same carrier.
    pub async fn create_tenant(&self, name: &str) -> Tenant {
        create_tenant(
            &self.context,
            name,
            self.carrier.url(),
            &AppOptions::default(),
        )
        .await
    }

    /// Runs a query that returns one number.
    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.context.pool)
            .await
            .expect(sql)
    }

    /// Waits until no due job, no unapplied event and no live call is left.
    pub async fn drain(&self) {
        assert!(
            self.carrier.wait_idle(TEST_TIMEOUT).await,
            "the carrier does not become idle"
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
        eventually("all work is done", TEST_TIMEOUT, quiet).await;
        self.settle().await;
    }

    /// Marks ready jobs as done in a test without workers.
    pub async fn drop_jobs(&self) {
        sqlx::query("update jobs set state = 'done', finished_at = now() where state = 'ready'")
            .execute(&self.context.pool)
            .await
            .expect("no jobs");
    }

    /// Cancels queued direct calls in a test without workers.
    pub async fn drop_calls(&self) {
        sqlx::query(
            "with ended as (
                 update calls
                 set status = 'final', outcome = 'canceled', ended_at = now()
                 where queued
                 returning id
             )
             insert into charges_due (call_id) select id from ended",
        )
        .execute(&self.context.pool)
        .await
        .expect("no calls");
    }

    /// Charges every call that has ended and is not charged yet.
    pub async fn settle(&self) {
        let context = &self.context;
        let due = "select count(*) from charges_due where look_at <= now()";
        // A call that a worker is charging counts as due until the worker commits.
        let charged = || async {
            settle_due_unscoped(&context.pool, 500, context.clock.now())
                .await
                .expect("settle");
            self.count(due).await == 0
        };
        eventually("all calls are charged", TEST_TIMEOUT, charged).await;
    }

    /// Fails unless the ledger balances.
    pub async fn verify(&self) {
        let offenders = verify_unscoped(&self.context.pool).await.expect("verify");
        assert!(
            offenders.is_empty(),
            "the ledger does not balance: {offenders:#?}"
        );
    }

    /// Stops everything and fails the test when work is left over or an invariant is broken.
    pub async fn finish(mut self) {
        self.drain().await;

        // 1. Stop the workers, the replicas and the API.
        self.stop_workers().await;
        for (shutdown, running) in std::mem::take(&mut self.replicas) {
            shutdown.cancel();
            running
                .await
                .expect("replica")
                .expect("a replica stops well");
        }
        self.api_shutdown.cancel();
        if let Some(api) = self.api.take() {
            api.await.expect("api").expect("the api stops well");
        }

        // 2. Charge the calls that a worker was charging when it stopped, and check the ledger.
        self.settle().await;
        self.verify().await;

        // 3. Check jobs, counters, files and the carrier's log.
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

        let orphans = self
            .count(
                "select count(*)
                 from upload_files f
                 left join ingests i on i.id = f.ingest_id
                 where i.id is null or i.state in ('completed', 'failed')",
            )
            .await;
        assert_eq!(orphans, 0, "the store holds files that no ingest will read");

        let oracle = self.carrier.oracle();
        assert!(
            oracle.duplicates.is_empty(),
            "an attempt was sent twice: {:?}",
            oracle.duplicates
        );
        assert!(
            oracle.overlaps.is_empty(),
            "a number was in two calls at once: {:?}",
            oracle.overlaps
        );

        self.context.pool.close().await;
        let _gone = std::fs::remove_dir_all(&self.directory);
        self.finished = true;
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if !self.finished && !std::thread::panicking() {
            panic!("the test must end with App::finish(), which checks for leftover work");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_without_finish_fails() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;

    let (name, directory) = (app.database.name.clone(), app.directory.clone());

    let forgotten = tokio::spawn(async move { drop(app) }).await.unwrap_err();
    let message = forgotten.into_panic();
    let message = message.downcast_ref::<&str>().expect("a message");
    assert!(message.contains("App::finish()"), "{message}");

    drop_database(&name);
    let _gone = std::fs::remove_dir_all(directory);
}

/// Connects an API context to a test's own database, Redis prefix and directory.
pub async fn connect(
    database: &TestDatabase,
    url: &str,
    directory: &std::path::Path,
    change: impl FnOnce(&mut Settings),
) -> Arc<Context> {
    connect_as(ProcessKind::Api, database, url, directory, change).await
}

/// Connects a context for any of the programs.
async fn connect_as(
    process: ProcessKind,
    database: &TestDatabase,
    url: &str,
    directory: &std::path::Path,
    change: impl FnOnce(&mut Settings),
) -> Arc<Context> {
    let redis_url = env_setting("PEAL_TEST_REDIS_URL");
    let mut settings = test_settings(&database.program_url, &redis_url, url, directory);
    settings.redis_prefix = database.name.clone();
    change(&mut settings);
    let config = Config::from_settings(settings).expect("settings");
    Context::connect(config, process).await.expect("context")
}

/// Settings that every test starts from.
pub fn test_settings(
    database_url: &str,
    redis_url: &str,
    url: &str,
    directory: &std::path::Path,
) -> Settings {
    Settings {
        database_url: Some(database_url.to_owned()),
        database_pool: "12".to_owned(),
        redis_url: Some(redis_url.to_owned()),
        redis_prefix: "peal".to_owned(),
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
        upload_stall_secs: "30".to_owned(),
        batch_max_rows: "100000".to_owned(),
        csv_max_columns: "50".to_owned(),
        csv_max_cell: "2000".to_owned(),
        unknown_deadline_secs: "5".to_owned(),
        reconcile_secs: "1".to_owned(),
        inbox_capacity: "1024".to_owned(),

        // Generous limits, so that a busy machine does not fail unrelated tests.
        limits: LimitSettings {
            limit_wait_ms: Some("10000".to_owned()),
            limit_requests_per_sec: Some("100000".to_owned()),
            limit_refusals_per_min: Some("100000".to_owned()),
            ..LimitSettings::default()
        },

        // Test servers of users listen on 127.0.0.2; 127.0.0.1 is blocked as in production.
        egress_http: Some("true".to_owned()),
        egress_ports: Some("1-65535".to_owned()),
        egress_networks: Some("127.0.0.2/32".to_owned()),
        ..Settings::default()
    }
}

/// Connects an API context with these settings.
pub async fn connect_with(settings: Settings) -> Arc<Context> {
    let config = Config::from_settings(settings).expect("settings");
    Context::connect(config, ProcessKind::Api)
        .await
        .expect("context")
}

/// Creates an organisation with a trunk at the carrier, a number, an agent and a key.
pub async fn create_tenant(
    context: &Context,
    name: &str,
    carrier_url: &str,
    options: &AppOptions,
) -> Tenant {
    let mut db = context.pool.begin().await.expect("transaction");
    let org = users::ensure_org_unscoped(&mut db, name)
        .await
        .expect("org");

    let email = format!("{}@example.com", name.to_lowercase());
    let user = users::ensure_user_unscoped(&mut db, org, &email, UserRole::OrgAdmin)
        .await
        .expect("user");

    if options.credit.is_positive() {
        let given =
            operator_credit::grant_unscoped(&mut db, user, options.credit, context.clock.now());
        given.await.expect("credit");
    }

    let trunk = NewTrunk {
        org: Some(org),
        name: "Main".to_owned(),
        account: simulator_account(carrier_url),
        cps: options.cps.into(),
        max_concurrent: options.max_concurrent,
        ring_timeout_secs: 30,
    };
    let trunk = trunks::create_unscoped(&mut db, &context.config.keys, &trunk)
        .await
        .expect("trunk");

    let phone = NewCallerNumber {
        org,
        user,
        trunk,
        number: E164::parse("+12125550100", None).expect("number"),
    };
    let phone = caller_numbers::create_unscoped(&mut db, &phone).await;

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
        phone: phone.expect("phone"),
        api_key,
        session: None,
    }
}

/// The account of the tests at the simulator.
fn simulator_account(carrier_url: &str) -> CarrierAccount {
    CarrierAccount {
        kind: CarrierKind::Twilio,
        account_id: ACCOUNT.to_owned(),
        credentials: CarrierCredentials {
            username: None,
            password: AUTH_TOKEN.into(),
            signing_secrets: Vec::new(),
        },
        api_base_url: Some(carrier_url.parse().expect("url")),
    }
}

/// Ends a call through the carrier's own API.
pub async fn end_call_at_carrier(app: &App, carrier_call_id: &str) {
    let url = format!(
        "{}/2010-04-01/Accounts/{ACCOUNT}/Calls/{carrier_call_id}.json",
        app.carrier.url()
    );

    let ended = reqwest::Client::new()
        .post(url)
        .basic_auth(ACCOUNT, Some(AUTH_TOKEN))
        .form(&[("Status", "completed")])
        .send()
        .await
        .expect("an answer");

    assert!(ended.status().is_success());
}
