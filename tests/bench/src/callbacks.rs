//! Rows about callbacks of carriers: throughput, latency, overload.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peal_shared::calls::urls::CallUrls;
use peal_shared::platform::ids::{AgentId, CallId, OrgId, PhoneId, TrunkId};
use peal_simulator::sign;
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::BenchScale;
use crate::harness::app::{ACCOUNT, AUTH_TOKEN};
use crate::harness::client::phone_number;
use crate::limits::{BareCallbacks, LIMIT_DEADLINE};
use crate::load::{LoadConnection, LoadGenerator, LoadPace, LoadResult};
use crate::machine::{WatchedProcesses, memory_mib};
use crate::report::{BenchRow, ResultBound};
use crate::stack::{Installation, carrier_config};

/// Statuses of a call, in the carrier's order.
const CALL_STATUSES: [&str; 4] = ["initiated", "ringing", "in-progress", "completed"];
/// Connections of a carrier that posts as fast as it gets responses.
const CONNECTIONS: usize = 256;
/// Offered load and connections of an overload, as a multiple of the API's capacity.
const OVERLOAD_FACTOR: f64 = 10.0;
const OVERLOAD_CONNECTIONS: usize = CONNECTIONS * 10;
const SIGNATURE_HEADER: &str = "X-Twilio-Signature: ";
const MIN_RATIO: f64 = 0.4;
const MAX_HALF_LOAD_P99_MS: f64 = 50.0;
const MAX_OVERLOAD_P99_MS: f64 = 250.0;
const MAX_RECOVERY_SECS: f64 = 10.0;
/// Probes in a row below [`HALF_LOAD_P99_MS`] after which latency is normal again.
const RECOVERY_PROBES: usize = 25;
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// Most memory of the API in the second half of an overload, as a share of its peak in the
/// first.
const MAX_MEMORY_GROWTH: f64 = 1.1;

/// An API with accepted calls, and signed callbacks about them.
struct CallbackBench {
    stack: Installation,
    load: LoadGenerator,
    requests: Arc<Vec<Vec<u8>>>,
}

impl CallbackBench {
    async fn prepare(callbacks: usize) -> anyhow::Result<Self> {
        let stack = Installation::start(1, carrier_config(0)).await?;
        let calls: Vec<CallId> = std::iter::repeat_with(CallId::new)
            .take(callbacks.div_ceil(CALL_STATUSES.len()))
            .collect();
        insert_calls(&stack, &calls).await?;
        let mut requests = Vec::with_capacity(callbacks);
        // Status by status, so that a group of events has many calls.
        for (sequence, word) in CALL_STATUSES.iter().enumerate() {
            for (n, call) in (0..).zip(&calls) {
                requests.push(signed_request(&stack, *call, n, sequence, word));
            }
        }
        let requests = Arc::new(requests);
        let address = stack.client.url.trim_start_matches("http://");
        let load = LoadGenerator::new(address, Arc::clone(&requests));
        Ok(Self {
            load,
            requests,
            stack,
        })
    }

    async fn send(&self, count: usize, pace: LoadPace) -> anyhow::Result<LoadResult> {
        let lanes = self.load.connect(CONNECTIONS).await?;
        let result = self.load.send(lanes, count, pace, LIMIT_DEADLINE).await?;
        anyhow::ensure!(result.failed == 0, "{} callbacks failed", result.failed);
        Ok(result)
    }
}

fn carrier_call_id(n: u32) -> String {
    format!("CA{n:032x}")
}

/// Inserts calls that the carrier has accepted.
async fn insert_calls(stack: &Installation, calls: &[CallId]) -> anyhow::Result<()> {
    let tenant = &stack.client.tenant;
    let (ids, numbers): (Vec<u32>, Vec<String>) = (0..u32::try_from(calls.len())?)
        .map(|n| (n, phone_number(n)))
        .unzip();
    let carrier_ids: Vec<String> = ids.into_iter().map(carrier_call_id).collect();
    sqlx::query(
        "insert into calls (id, org_id, user_id, agent_id, phone_id, trunk_id, from_number, to_number, status,
                            worker, submit_count, submitted_at, carrier_call_id)
         select c.id, $1, a.user_id, a.id, $3, $4, '+12125550100', c.to_number, 'accepted', 'bench', 1, now(),
                c.carrier_call_id
         from agents a, unnest($5::uuid[], $6::text[], $7::text[]) as c (id, to_number, carrier_call_id)
         where a.id = $2",
    )
    .bind::<OrgId>(tenant.org)
    .bind::<AgentId>(tenant.agent)
    .bind::<PhoneId>(tenant.phone)
    .bind::<TrunkId>(tenant.trunk)
    .bind(calls)
    .bind(numbers)
    .bind(carrier_ids)
    .execute(&stack.database.pool)
    .await?;
    sqlx::query("analyze calls")
        .execute(&stack.database.pool)
        .await?;
    Ok(())
}

/// The bytes of a signed callback request.
fn signed_request(
    stack: &Installation,
    call: CallId,
    n: u32,
    sequence: usize,
    word: &str,
) -> Vec<u8> {
    let config = &stack.config;
    let urls = CallUrls::new(
        &config.public_url,
        &config.keys,
        stack.client.tenant.trunk,
        call,
    );

    let mut form = vec![
        ("CallSid", carrier_call_id(n)),
        ("AccountSid", ACCOUNT.to_owned()),
        ("From", "+12125550100".to_owned()),
        ("To", phone_number(n)),
        ("Caller", "+12125550100".to_owned()),
        ("Called", phone_number(n)),
        ("CallStatus", word.to_owned()),
        ("ApiVersion", "2010-04-01".to_owned()),
        ("Direction", "outbound-api".to_owned()),
        ("Timestamp", "Mon, 02 Nov 2026 10:00:00 +0000".to_owned()),
        ("CallbackSource", "call-progress-events".to_owned()),
        ("SequenceNumber", sequence.to_string()),
    ];
    if word == "completed" {
        form.extend([
            ("CallDuration", "31".to_owned()),
            ("Duration", "1".to_owned()),
            ("SipResponseCode", "200".to_owned()),
        ]);
    }

    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(&form)
        .finish();
    let signature = sign(AUTH_TOKEN, urls.status.as_str(), &form);

    format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-www-form-urlencoded; charset=UTF-8\r\n\
         User-Agent: TwilioProxy/1.1\r\nAccept: */*\r\n{SIGNATURE_HEADER}{signature}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        urls.status.path(),
        stack.client.url.trim_start_matches("http://"),
        body.len()
    )
    .into_bytes()
}

/// Callbacks with wrong signatures that the API refuses per second: its work on a callback before
/// it parses and stores it.
async fn refused_rate(post: &CallbackBench, count: usize) -> anyhow::Result<f64> {
    let wrong = post.requests.iter().take(count).map(|request| {
        let mut request = request.clone();
        let position = request
            .windows(SIGNATURE_HEADER.len())
            .position(|part| part == SIGNATURE_HEADER.as_bytes());
        if let Some(first) = position.and_then(|at| request.get_mut(at + SIGNATURE_HEADER.len())) {
            *first = if *first == b'A' { b'B' } else { b'A' };
        }
        request
    });
    let address = post.stack.client.url.trim_start_matches("http://");
    let load = LoadGenerator::new(address, Arc::new(wrong.collect())).expecting(403);
    let lanes = load.connect(CONNECTIONS).await?;
    let result = load
        .send(lanes, count, LoadPace::ClosedLoop, LIMIT_DEADLINE)
        .await?;
    anyhow::ensure!(result.failed == 0, "callbacks were not refused");
    Ok(result.rate())
}

/// Callbacks per second, each committed before it is acknowledged, next to the same route with
/// only the signature check.
pub async fn throughput(scale: &BenchScale) -> anyhow::Result<BenchRow> {
    // 1. The limit.
    let warm = scale.callbacks / 10;
    let post = CallbackBench::prepare(scale.callbacks * 3).await?;
    let bare = BareCallbacks::start(&post.stack.quiet_envs()).await?;
    let bare_load = LoadGenerator::new(&bare.address, Arc::clone(&post.requests));
    let lanes = bare_load.connect(CONNECTIONS).await?;
    bare_load
        .send(lanes, warm, LoadPace::ClosedLoop, LIMIT_DEADLINE)
        .await?;
    let lanes = bare_load.connect(CONNECTIONS).await?;
    let mut watched = WatchedProcesses::default();
    watched.add("limit", bare.pid()?);
    watched.add("load", std::process::id());
    let meter = watched.meter();
    let limit = bare_load
        .send(lanes, scale.callbacks, LoadPace::ClosedLoop, LIMIT_DEADLINE)
        .await?;
    let limit_spent = meter.read();
    bare.stop().await?;
    anyhow::ensure!(limit.failed == 0, "the limit's callbacks failed");

    // 2. The API at full load, then at half of it.
    let unsigned = refused_rate(&post, scale.callbacks).await?;
    post.send(warm, LoadPace::ClosedLoop).await?;
    let meter = post.stack.watched_processes().meter();
    let flat = post.send(scale.callbacks, LoadPace::ClosedLoop).await?;
    let spent = meter.read();
    let half = flat.rate() / 2.0;
    let meter = post.stack.watched_processes().meter();
    let even = post
        .send(post.load.remaining(), LoadPace::OpenLoop(half))
        .await?;
    let half_spent = meter.read();

    // 3. Every acknowledged callback is stored.
    let written = post.stack.count("select count(*) from call_events").await?;
    let acknowledged = u64::try_from(warm)? + flat.accepted() + even.accepted();
    anyhow::ensure!(
        u64::try_from(written)? >= acknowledged,
        "{acknowledged} callbacks were acknowledged and {written} written"
    );
    post.stack.stop().await?;

    let p99 = even.percentile_ms(0.99);
    let ratio = flat.rate() / limit.rate();
    Ok(BenchRow {
        label: "callbacks, each committed before its 204".to_owned(),
        measured: format!("{:.0}/s; at half of it p99 {p99:.1} ms", flat.rate()),
        limit: Some(format!(
            "same route, signature checked, no database: {:.0}/s (the API itself refuses {unsigned:.0}/s with wrong signatures)",
            limit.rate()
        )),
        ratio: Some(ratio),
        bounds: vec![
            ResultBound::at_least("ratio", ratio, MIN_RATIO, ""),
            ResultBound::at_most("p99 at half load", p99, MAX_HALF_LOAD_P99_MS, " ms"),
        ],
        cpu: spent,
        details: json!({
            "callbacks": flat.accepted(),
            "refused": flat.refused + even.refused,
            "p50_ms": flat.percentile_ms(0.5),
            "p99_ms": flat.percentile_ms(0.99),
            "refused_for_their_signature_per_second": unsigned,
            "limit_processor_seconds": limit_spent.json(),
            "half_load": latencies(&even),
            "half_load_processor_seconds": half_spent.json(),
        }),
    })
}

fn latencies(result: &LoadResult) -> Value {
    json!({
        "accepted": result.accepted(),
        "refused": result.refused,
        "failed": result.failed,
        "accepted_per_second": result.rate(),
        "p50_ms": result.percentile_ms(0.5),
        "p99_ms": result.percentile_ms(0.99),
        "worst_ms": result.percentile_ms(1.0),
    })
}

/// Ten times the API's capacity, or as much of it as ten times the connections can send while
/// they wait for the responses to refused requests.
pub async fn overload(scale: &BenchScale) -> anyhow::Result<BenchRow> {
    let warm = scale.callbacks / 2;
    let post = CallbackBench::prepare(scale.callbacks * 6).await?;
    let capacity = post.send(warm, LoadPace::ClosedLoop).await?.rate();

    let api = post.stack.api.id();
    let lanes = post.load.connect(OVERLOAD_CONNECTIONS).await?;
    let before = memory_mib(api, "VmRSS");
    let over = Arc::new(AtomicBool::new(false));
    let watch = tokio::spawn(memory_peaks(api, Arc::clone(&over)));

    let meter = post.stack.watched_processes().meter();
    let within = Duration::from_secs(scale.overload_secs);
    let pace = LoadPace::Capped(capacity * OVERLOAD_FACTOR);
    // Refused callbacks are sent again, as carriers do.
    let result = post.load.send(lanes, usize::MAX / 2, pace, within).await?;
    let spent = meter.read();

    over.store(true, Ordering::Relaxed);
    let recovery = recovery_secs(&post).await?;
    let (first_half, second_half) = watch.await?;
    post.stack.stop().await?;

    let answered = result.accepted() + result.refused;
    let sent = answered + result.failed;
    #[expect(clippy::cast_precision_loss, reason = "a share for people to read")]
    let refused_share = result.refused as f64 / sent as f64;
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let failed = result.failed as f64;
    let p99 = result.percentile_ms(0.99);

    Ok(BenchRow {
        label: format!(
            "overload: {OVERLOAD_CONNECTIONS} connections, {OVERLOAD_FACTOR:.0} times as many as bring it to {capacity:.0}/s"
        ),
        measured: format!(
            "{:.0}/s accepted with p99 {p99:.0} ms, {:.0} % got 503, memory {before:.0} -> {first_half:.0} -> {second_half:.0} MiB, normal again after {recovery:.1} s",
            result.rate(),
            refused_share * 100.0
        ),
        limit: None,
        ratio: None,
        bounds: vec![
            ResultBound::at_most("p99 of the accepted", p99, MAX_OVERLOAD_P99_MS, " ms"),
            ResultBound::at_most("neither 2xx nor 503", failed, 0.0, ""),
            ResultBound::at_most(
                "memory growth",
                second_half / first_half,
                MAX_MEMORY_GROWTH,
                "",
            ),
            ResultBound::at_most("recovery", recovery, MAX_RECOVERY_SECS, " s"),
        ],
        cpu: spent,
        details: json!({
            "capacity_per_second": capacity,
            "overload": latencies(&result),
            "memory_mib": {"before": before, "first_half": first_half, "second_half": second_half},
            "recovery_secs": recovery,
        }),
    })
}

/// Peaks of a process's memory in the first and in the second half of the time until `over`.
async fn memory_peaks(pid: u32, over: Arc<AtomicBool>) -> (f64, f64) {
    let mut samples = Vec::new();
    while !over.load(Ordering::Relaxed) {
        samples.push(memory_mib(pid, "VmRSS"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (first, second) = samples.split_at(samples.len() / 2);
    let peak = |half: &[f64]| half.iter().copied().fold(0.0, f64::max);
    (peak(first), peak(second))
}

/// Seconds from the end of a load until probes are accepted fast, several in a row.
async fn recovery_secs(post: &CallbackBench) -> anyhow::Result<f64> {
    let ended = Instant::now();
    let address = post.stack.client.url.trim_start_matches("http://");
    let mut lane = LoadConnection::open(address).await?;
    let (mut good, mut since) = (0, ended);
    for request in post.requests.iter().rev() {
        let begin = Instant::now();
        let status = lane.send(request).await?;
        let is_good = (200..300).contains(&status)
            && begin.elapsed().as_secs_f64() * 1000.0 < MAX_HALF_LOAD_P99_MS;
        if is_good {
            if good == 0 {
                since = begin;
            }
            good += 1;
        } else {
            good = 0;
        }
        if good == RECOVERY_PROBES {
            return Ok(since.duration_since(ended).as_secs_f64());
        }
        anyhow::ensure!(ended.elapsed() < LIMIT_DEADLINE, "the API does not recover");
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
    anyhow::bail!("the API does not recover")
}
