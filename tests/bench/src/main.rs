//! Benchmarks of Peal: throughput and latency, each next to a limit measured in the same run.
//!
//! The API and the workers are the release programs, each a process of its own, on a durable
//! PostgreSQL; the simulator and the load generator are in this process. All of them share the
//! machine's cores, so the numbers describe a whole installation on one machine. The JSON file
//! has the processor time of every process. A row that misses its bound is marked; the exit code
//! stays 0.
//!
//! | variable | |
//! |---|---|
//! | `PEAL_BENCH_SMALL=1` | short run: two minutes instead of ten |
//! | `PEAL_BENCH_ROWS` | people of a campaign (5,000); an ingest has two hundred times as many |
//! | `PEAL_BENCH_ONLY` | names of the rows to measure (`ROWS`), separated by commas |

mod callbacks;
mod dialling;
#[path = "../../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "tests use the rest")]
mod harness;
mod ingest;
mod limits;
mod load;
mod machine;
mod money;
mod report;
mod stack;

use harness::env_setting;
use report::BenchRow;

// The allocator of the API and the workers, so that limits in this program are comparable.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Open files and connections of one process; the overload has thousands.
const MAX_OPEN_FILES: u64 = 16_384;

/// Size of a run.
pub struct BenchScale {
    /// People of a campaign.
    campaign: u32,
    /// Rows of a file.
    ingest: u32,
    /// Seconds of a pacing row.
    pacing_secs: u32,
    /// Number of starts in the `start` row.
    starts: u32,
    callbacks: usize,
    overload_secs: u64,
}

const FULL_SCALE: BenchScale = BenchScale {
    campaign: 5_000,
    ingest: 1_000_000,
    pacing_secs: 30,
    starts: 10,
    callbacks: 40_000,
    overload_secs: 15,
};

const SMALL_SCALE: BenchScale = BenchScale {
    campaign: 1_000,
    ingest: 100_000,
    pacing_secs: 6,
    starts: 4,
    callbacks: 8_000,
    overload_secs: 4,
};

const ROW_NAMES: [&str; 13] = [
    "ingest",
    "placing",
    "placing150",
    "callbacks",
    "pipeline",
    "pacing10",
    "pacing50",
    "pacing200",
    "start",
    "overload",
    "settle",
    "settle1000",
    "claim",
];

async fn measure(row: &str, scale: &BenchScale) -> anyhow::Result<BenchRow> {
    match row {
        "ingest" => ingest::ingest(scale).await,
        "placing" => dialling::placing(scale, 0).await,
        "placing150" => dialling::placing(scale, 150).await,
        "callbacks" => callbacks::throughput(scale).await,
        "pipeline" => dialling::pipeline(scale).await,
        "pacing10" => dialling::pacing(scale, 10).await,
        "pacing50" => dialling::pacing(scale, 50).await,
        "pacing200" => dialling::pacing(scale, 200).await,
        "start" => dialling::first_dial(scale).await,
        "overload" => callbacks::overload(scale).await,
        "settle" => money::settling(scale, 1).await,
        "settle1000" => money::settling(scale, 1000).await,
        "claim" => money::claiming(scale).await,
        other => anyhow::bail!(
            "there is no row {other:?}; choose from {}",
            ROW_NAMES.join(", ")
        ),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn scale() -> anyhow::Result<(BenchScale, String)> {
    let (mut scale, mut size) = match variable("PEAL_BENCH_SMALL").as_deref() {
        None | Some("0") => (FULL_SCALE, "full size".to_owned()),
        Some(_) => (SMALL_SCALE, "small size".to_owned()),
    };
    if let Some(rows) = variable("PEAL_BENCH_ROWS") {
        let rows: u32 = rows
            .parse()
            .map_err(|error| anyhow::anyhow!("PEAL_BENCH_ROWS={rows}: {error}"))?;
        scale.campaign = rows;
        scale.ingest = rows.saturating_mul(200);
        size = format!("{size}, campaigns of {rows}");
    }
    Ok((scale, size))
}

/// Raises the limit of open files of this process and its children for the overload.
fn raise_open_files() -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = MAX_OPEN_FILES.min(hard);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    anyhow::ensure!(
        wanted == MAX_OPEN_FILES,
        "a process may open only {hard} files here; `ulimit -Hn {MAX_OPEN_FILES}` allows what the overload needs"
    );
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(limit) = limits::run(&args).await {
        return limit;
    }

    // Fails early when the program is not started by `make bench`.
    env_setting("PEAL_TEST_DATABASE_URL");
    raise_open_files()?;
    let (scale, size) = scale()?;
    let only = variable("PEAL_BENCH_ONLY");
    let rows: Vec<&str> = match &only {
        Some(only) => only.split(',').map(str::trim).collect(),
        None => ROW_NAMES.to_vec(),
    };

    let mut table = Vec::new();
    for row in rows {
        let row = measure(row, &scale).await?;
        // A run takes minutes, so each row is printed at once.
        eprintln!("{}", row.markdown_line());
        table.push(row);
    }

    let file = report::publish(&table, &size)?;
    println!("\nAll numbers: {}", file.display());
    Ok(())
}
