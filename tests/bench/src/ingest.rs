//! The row about ingesting a file.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::postgres::PgPoolCopyExt as _;

use crate::BenchScale;
use crate::harness::client::{phone_number, send_request};
use crate::load::per_second;
use crate::machine::memory_mib;
use crate::report::{BenchRow, ResultBound};
use crate::stack::{ALL_ROLES, Installation, carrier_config};

const MIN_RATIO: f64 = 0.5;
const MAX_PEAK_MIB: f64 = 128.0;
const VARIABLES: [&str; 5] = ["name", "city", "plan", "balance", "note"];

/// The minimum of the database's work: the same rows, already validated, in one statement, with
/// ids in order.
const BARE_INSERT: &str = "
    insert into batch_data (id, org_id, batch_id, row_no, to_phonenumber, variable_values)
    select lpad(to_hex(s.n), 32, '0')::uuid, b.org_id, b.id, s.n, s.to_phonenumber,
           jsonb_build_object('name', s.name, 'city', s.city, 'plan', s.plan, 'balance', s.balance, 'note', s.note)
    from staging s, call_batches b
    where b.id = $1::uuid
    order by s.n";

fn people_csv(count: u32) -> String {
    let mut csv = format!("to_phonenumber,{}\n", VARIABLES.join(","));
    for n in 0..count {
        let (plan, cents) = (["basic", "family", "premium"], n % 100);
        let plan = plan
            .get(usize::try_from(n % 3).unwrap_or(0))
            .unwrap_or(&"basic");
        csv.push_str(&format!(
            "{},Person Number {n},Springfield,{plan},{}.{cents:02},\"called before, on day {}\"\n",
            phone_number(n),
            n % 1000,
            n % 28
        ));
    }
    csv
}

/// Ingest of a file from its upload to the last row, next to COPY into a staging table and one
/// INSERT..SELECT into the same table with its indexes.
pub async fn ingest(scale: &BenchScale) -> anyhow::Result<BenchRow> {
    let csv = people_csv(scale.ingest);
    let megabytes = csv.len() / 1_000_000;
    let bare = bare_insert(&csv).await?;

    let mut stack = Installation::start(1, carrier_config(0)).await?;
    let worker = stack.start_worker(ALL_ROLES)?;
    let batch = stack
        .client
        .create_batch(json!({ "variable_names": VARIABLES }))
        .await;

    let meter = stack.watched_processes().meter();
    let start = Instant::now();
    let ingest = upload(&stack, &batch, csv).await?;
    let took = start.elapsed();
    let spent = meter.read();

    anyhow::ensure!(ingest["inserted"] == json!(scale.ingest), "{ingest}");
    let peak = memory_mib(worker, "VmHWM");
    let api_peak = memory_mib(stack.api.id(), "VmHWM");
    stack.stop().await?;

    let ratio = bare.as_secs_f64() / took.as_secs_f64();
    Ok(BenchRow {
        label: format!(
            "ingest, {} rows x {} variables",
            scale.ingest,
            VARIABLES.len()
        ),
        measured: format!(
            "{:.0} rows/s, worker's peak memory {peak:.0} MiB",
            per_second(scale.ingest.into(), took)
        ),
        limit: Some(format!(
            "COPY and one INSERT..SELECT: {:.0} rows/s",
            per_second(scale.ingest.into(), bare)
        )),
        ratio: Some(ratio),
        bounds: vec![
            ResultBound::at_least("ratio", ratio, MIN_RATIO, ""),
            ResultBound::at_most("worker's peak", peak, MAX_PEAK_MIB, " MiB"),
        ],
        cpu: spent,
        details: json!({
            "megabytes": megabytes,
            "seconds": took.as_secs_f64(),
            "limit_seconds": bare.as_secs_f64(),
            "api_peak_mib": api_peak,
        }),
    })
}

/// Uploads a file and waits until it is ingested.
async fn upload(stack: &Installation, batch: &str, csv: String) -> anyhow::Result<Value> {
    let part = reqwest::multipart::Part::text(csv)
        .file_name("people.csv")
        .mime_str("text/csv")?;
    let form = reqwest::multipart::Form::new().part("file", part);
    let path = format!("/api/v1/batch-call/upload/{batch}");
    let uploaded = send_request(stack.client.request(Method::POST, &path).multipart(form)).await;
    anyhow::ensure!(uploaded.status.is_success(), "{}", uploaded.text);

    let ingest = uploaded.json()["data"]["ingest_id"].clone();
    let path = format!(
        "/api/v1/batch-call/{batch}/ingests/{}",
        ingest.as_str().unwrap_or_default()
    );
    let state = async || stack.client.get(&path).await.expect(200)["data"].clone();
    stack
        .until("the file is ingested", async || {
            let status = state().await["status"].clone();
            Ok(status == "completed" || status == "failed")
        })
        .await?;
    Ok(state().await)
}

/// Measures the limit on a database of its own, so that both begin with empty tables.
async fn bare_insert(csv: &str) -> anyhow::Result<Duration> {
    let stack = Installation::start(1, carrier_config(0)).await?;
    let batch = stack
        .client
        .create_batch(json!({ "variable_names": VARIABLES }))
        .await;
    let pool = &stack.database.pool;
    sqlx::query(
        "create unlogged table staging (n bigint generated always as identity, to_phonenumber text, name text,
                                        city text, plan text, balance text, note text)",
    )
    .execute(pool)
    .await?;

    let start = Instant::now();
    let mut copy = pool
        .copy_in_raw(
            "copy staging (to_phonenumber, name, city, plan, balance, note) from stdin (format csv, header)",
        )
        .await?;
    for piece in csv.as_bytes().chunks(1024 * 1024) {
        copy.send(piece).await?;
    }
    copy.finish().await?;
    sqlx::query(BARE_INSERT).bind(&batch).execute(pool).await?;

    let took = start.elapsed();
    stack.stop().await?;
    Ok(took)
}
