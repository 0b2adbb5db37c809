//! Baseline programs that measure the limit of a row. Each runs as a process of its own, like the
//! measured program: this program, started again with one of the arguments below.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use clap::Parser;
use peal_shared::calls::urls::{STATUS_PATH, requested_url};
use peal_shared::config::{Config, Settings};
use peal_shared::context::{Context, ProcessKind};
use peal_shared::platform::logging;
use peal_shared::platform::secret::KeyRing;
use peal_shared::telephony::{
    CallbackKind, CarrierAccount, CarrierCallback, CarrierCredentials, CarrierKind,
    CarrierRegistry, NewCall, Placement,
};
use reqwest::Url;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

use crate::harness::app::{ACCOUNT, AUTH_TOKEN};
use crate::harness::client::phone_number;
use crate::load::per_second;
use crate::stack::MASTER_KEY;

const BARE_CREATES: &str = "bare-creates";
const BARE_CALLBACKS: &str = "bare-callbacks";
/// Requests of the bare loop in flight at once.
const MAX_IN_FLIGHT: usize = 512;
const BODY_LIMIT_BYTES: usize = 64 * 1024;

/// Runs the baseline that the arguments name, if they name one.
pub async fn run(args: &[String]) -> Option<anyhow::Result<()>> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [BARE_CREATES, url, count] => Some(bare_creates(url, count).await),
        [BARE_CALLBACKS] => Some(bare_callbacks().await),
        _ => None,
    }
}

fn account(url: Option<&str>) -> anyhow::Result<CarrierAccount> {
    Ok(CarrierAccount {
        kind: CarrierKind::Twilio,
        account_id: ACCOUNT.to_owned(),
        credentials: CarrierCredentials {
            username: None,
            password: AUTH_TOKEN.into(),
            signing_secrets: Vec::new(),
        },
        api_base_url: url.map(str::parse).transpose()?,
    })
}

/// A baseline process and its output.
pub struct BaselineProcess {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl BaselineProcess {
    fn start(args: &[&str], envs: &[(&'static str, OsString)]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            .envs(envs.iter().cloned())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().context("standard output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    async fn read_line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).await?;
        anyhow::ensure!(!line.is_empty(), "the baseline process printed nothing");
        Ok(line.trim().to_owned())
    }
}

/// Creates per second of the dialler's HTTP client in a bare loop.
pub async fn creates(url: &str, count: u32) -> anyhow::Result<f64> {
    let mut limit = BaselineProcess::start(&[BARE_CREATES, url, &count.to_string()], &[])?;
    let rate = limit.read_line().await?.parse()?;
    limit.child.wait().await?;
    Ok(rate)
}

async fn bare_creates(url: &str, count: &str) -> anyhow::Result<()> {
    let count: u32 = count.parse()?;
    let account = Arc::new(account(Some(url))?);
    let carriers = CarrierRegistry::new()?;
    let nowhere: Url = "http://127.0.0.1:9/".parse()?;

    let start = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    for n in 0..count {
        let call = NewCall {
            to: phone_number(50_000 + n).parse()?,
            from: phone_number(1).parse()?,
            answer_url: nowhere.join(&n.to_string())?,
            status_url: nowhere.clone(),
            machine_detection_url: None,
            recording_url: None,
            ring_timeout_secs: 30,
            max_duration_secs: 60,
        };
        let (carriers, account) = (carriers.clone(), Arc::clone(&account));
        requests.spawn(async move {
            let placement = carriers.adapter(account.kind).create(&account, &call).await;
            matches!(placement, Placement::Accepted { .. })
        });
        if requests.len() >= MAX_IN_FLIGHT {
            let accepted = requests.join_next().await.transpose()?;
            anyhow::ensure!(accepted == Some(true), "a create was not accepted");
        }
    }

    while let Some(accepted) = requests.join_next().await {
        anyhow::ensure!(accepted?, "a create was not accepted");
    }

    writeln!(
        std::io::stdout(),
        "{}",
        per_second(count.into(), start.elapsed())
    )?;
    Ok(())
}

/// A server of the status route that verifies and parses each callback as the API does, inside
/// the middleware of the API, and acknowledges it without storing it.
pub struct BareCallbacks {
    limit: BaselineProcess,
    pub address: String,
}

impl BareCallbacks {
    /// Starts the server with the settings of the measured API.
    pub async fn start(envs: &[(&'static str, OsString)]) -> anyhow::Result<Self> {
        let mut limit = BaselineProcess::start(&[BARE_CALLBACKS], envs)?;
        let address = limit.read_line().await?;
        Ok(Self { limit, address })
    }

    pub fn pid(&self) -> anyhow::Result<u32> {
        self.limit
            .child
            .id()
            .context("the baseline process has ended")
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        Ok(self.limit.child.kill().await?)
    }
}

struct BareState {
    keys: KeyRing,
    account: CarrierAccount,
    context: Arc<Context>,
}

/// Settings, read from the environment as the API does.
#[derive(Parser)]
struct BaselineArgs {
    #[command(flatten)]
    settings: Settings,
}

async fn bare_callbacks() -> anyhow::Result<()> {
    logging::init();
    let settings = BaselineArgs::parse_from([BARE_CALLBACKS]).settings;
    let context = Context::connect(Config::from_settings(settings)?, ProcessKind::Api).await?;
    let bare = Arc::new(BareState {
        keys: KeyRing::derive(&MASTER_KEY)?,
        account: account(None)?,
        context: Arc::clone(&context),
    });
    let listener = peal_api::listen("127.0.0.1:0".parse()?)?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    let router = Router::new()
        .route(
            &format!("{STATUS_PATH}/{{trunk}}/{{call}}/{{token}}"),
            post(status),
        )
        .with_state(bare);
    peal_api::serve_routes(context, listener, router, CancellationToken::new()).await
}

async fn status(
    State(bare): State<Arc<BareState>>,
    Path((trunk, call, token)): Path<(String, String, String)>,
    request: Request,
) -> StatusCode {
    let (Ok(trunk), Ok(call)) = (trunk.parse(), call.parse()) else {
        return StatusCode::NOT_FOUND;
    };
    if !bare.keys.is_call_token(trunk, call, &token) {
        return StatusCode::NOT_FOUND;
    }

    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let Some(url) = requested_url(&bare.context.config.public_url, path) else {
        return StatusCode::NOT_FOUND;
    };
    let Ok(body) = to_bytes(body, BODY_LIMIT_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE;
    };

    let carrier = bare.context.carriers.adapter(bare.account.kind);
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let callback = CarrierCallback {
        method: parts.method.as_str(),
        url: &url,
        content_type: header(CONTENT_TYPE.as_str()),
        signature: header(carrier.signature_header()),
        body: &body,
    };
    if !carrier.verify(&bare.account, &callback) {
        return StatusCode::FORBIDDEN;
    }

    match carrier.read(CallbackKind::Status, &callback) {
        Ok(event) if event.carrier_call_id.is_some() => StatusCode::NO_CONTENT,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

/// Longest measurement of a limit.
pub const LIMIT_DEADLINE: Duration = Duration::from_secs(120);
