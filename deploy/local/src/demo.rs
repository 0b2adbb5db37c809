//! `make demo` calls a thousand made-up people and checks the result.
//! `make up` runs the same processes, keeps the data and makes no calls.

use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::api_client::{ApiClient, BatchProgress, fetch};
use crate::data_dir::DataDir;
use crate::stack::{Stack, TRUNK_CPS};
use crate::stop::{StopSignals, parent_gone};
use crate::summary::{CarrierCounts, DemoSummary};
use crate::wallet;
use crate::wallet::WalletBalance;

const CSV_PATH: &str = "deploy/local/demo.csv";
const VARIABLES: [&str; 3] = ["name", "city", "appointment"];

/// Most calls of the batch in progress at once.
const BATCH_SIZE: u32 = 100;

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Interval of progress lines where the output is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Longest time without progress before the demo fails.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Runs the demo; returns the exit code. With `exit` it ends after the summary, otherwise it
/// runs until a stop is requested.
pub async fn run(checkout: &Path, exit: bool) -> Result<u8> {
    let mut stop = StopSignals::listen()?;
    let dir = DataDir::acquire(checkout, "demo")?;
    dir.clear()?;

    let Some(mut stack) = start(checkout, &dir, &mut stop).await? else {
        return Ok(130);
    };
    let outcome = tokio::select! {
        outcome = run_batch(&mut stack, checkout) => Some(outcome),
        _ = stop.recv() => None,
        () = parent_gone() => None,
    };

    let code = match outcome {
        None => 130,
        Some(Err(error)) => {
            print_step(&format!(
                "the demo failed; all logs are in {}",
                stack.logs.display()
            ));
            stack.stop().await?;
            return Err(error);
        }
        Some(Ok(played)) => {
            let code = u8::from(!played.summary.problems().is_empty());
            print_summary(&played.summary);
            if !exit {
                print_next_steps(&stack, Some(&played.batch));
                run_until_stopped(&mut stack, &mut stop).await?;
            }
            code
        }
    };

    print_step("stopping");
    stack.stop().await?;
    Ok(code)
}

/// Runs everything until a stop is requested, and keeps the data.
pub async fn up(checkout: &Path) -> Result<u8> {
    let mut stop = StopSignals::listen()?;
    let dir = DataDir::acquire(checkout, "up")?;
    let Some(mut stack) = start(checkout, &dir, &mut stop).await? else {
        return Ok(130);
    };
    print_next_steps(&stack, None);
    let stayed = run_until_stopped(&mut stack, &mut stop).await;
    print_step("stopping");
    stack.stop().await?;
    stayed.map(|()| 0)
}

/// Starts the stack. Returns `None` if a stop is requested meanwhile; the processes started so
/// far are stopped.
async fn start(checkout: &Path, dir: &DataDir, stop: &mut StopSignals) -> Result<Option<Stack>> {
    tokio::select! {
        stack = Stack::start(checkout, dir, print_step) => Ok(Some(stack?)),
        _ = stop.recv() => Ok(None),
        () = parent_gone() => Ok(None),
    }
}

async fn run_until_stopped(stack: &mut Stack, stop: &mut StopSignals) -> Result<()> {
    let failed = async {
        loop {
            stack.ensure_running()?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::select! {
        result = failed => result,
        _ = stop.recv() => Ok(()),
        () = parent_gone() => Ok(()),
    }
}

struct DemoRun {
    batch: String,
    summary: DemoSummary,
}

async fn run_batch(stack: &mut Stack, checkout: &Path) -> Result<DemoRun> {
    let api = ApiClient::new(stack)?;
    let before = WalletBalance::read(&stack.tools).await?;
    print_step(&format!("the wallet has {} USD", before.balance));

    let batch = api
        .create(&stack.account, "Demo", &VARIABLES, BATCH_SIZE)
        .await?;
    let ingested = api.upload(&batch, &checkout.join(CSV_PATH)).await?;
    print_step(&format!(
        "{CSV_PATH} is uploaded: {} people to call, {} a second",
        ingested.accepted, TRUNK_CPS
    ));

    let begin = Instant::now();
    api.start(&batch).await?;
    let progress = watch_progress(stack, &api, &batch, ingested.accepted).await?;
    let dialling = begin.elapsed();

    let after = WalletBalance::read_settled(&stack.tools).await?;
    let offenders = wallet::ledger_errors(&stack.tools).await?;
    let oracle = fetch(&format!("{}/_sim/oracle", stack.simulator_url)).await?;
    Ok(DemoRun {
        batch,
        summary: DemoSummary {
            ingested,
            progress,
            carrier: CarrierCounts::read(&oracle)?,
            cps: TRUNK_CPS,
            dial_time: dialling,
            before,
            after,
            ledger_errors: offenders,
        },
    })
}

/// Shows the progress of the batch until it is completed.
async fn watch_progress(
    stack: &mut Stack,
    api: &ApiClient,
    batch: &str,
    rows: u64,
) -> Result<BatchProgress> {
    let view = ProgressView::open(rows)?;
    let mut last = BatchProgress::default();
    let mut moved = Instant::now();
    loop {
        stack.ensure_running()?;
        let progress = api.progress(batch).await?;
        view.show(&progress);

        match progress.status.as_str() {
            "completed" => {
                view.close();
                return Ok(progress);
            }
            "paused" | "stopped" => bail!("the batch is {}", progress.status),
            _ => {}
        }

        if progress != last {
            last = progress;
            moved = Instant::now();
        } else if moved.elapsed() > STALLED_AFTER {
            bail!("the batch has not moved for a minute: {last:?}");
        }

        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Progress display: a bar on a terminal, a line every few seconds elsewhere.
struct ProgressView {
    bar: ProgressBar,
    rows: u64,
    live: bool,
    begin: Instant,
    lines: std::cell::Cell<u32>,
}

impl ProgressView {
    fn open(rows: u64) -> Result<Self> {
        let style =
            ProgressStyle::with_template("  {elapsed:>4} [{bar:32}] {pos}/{len} done, {msg}")?;
        let live = stderr().is_terminal();
        let bar = if live {
            ProgressBar::new(rows).with_style(style.progress_chars("=> "))
        } else {
            ProgressBar::hidden()
        };
        Ok(Self {
            bar,
            rows,
            live,
            begin: Instant::now(),
            lines: std::cell::Cell::new(0),
        })
    }

    fn show(&self, progress: &BatchProgress) {
        let BatchProgress {
            calling,
            completed,
            failed,
            no_answer,
            ..
        } = progress;
        let counts = format!(
            "{calling} calling, {completed} completed, {no_answer} not answered, {failed} failed"
        );
        if self.live {
            self.bar.set_position(progress.done());
            self.bar.set_message(counts);
            return;
        }
        if self.begin.elapsed() >= LINE_INTERVAL * self.lines.get() {
            self.lines.set(self.lines.get() + 1);
            print_step(&format!("{}/{} done, {counts}", progress.done(), self.rows));
        }
    }

    fn close(&self) {
        self.bar.finish();
    }
}

fn print_step(line: &str) {
    eprintln!("  {line}");
}

fn print_summary(summary: &DemoSummary) {
    println!("\n{summary}\n");
    let problems = summary.problems();
    if problems.is_empty() {
        println!("  Everything adds up.");
    }
    for problem in problems {
        println!("  WRONG: {problem}");
    }
}

/// Prints the addresses, the API key and commands to try.
fn print_next_steps(stack: &Stack, batch: Option<&str>) {
    let Stack {
        api_url, account, ..
    } = stack;
    let key = &account.api_key;
    let base = format!("{api_url}/api/v1/batch-call");
    println!("\n  API      {api_url}");
    println!("  API key  {key}");
    println!("  logs     {}\n", stack.logs.display());
    println!("  Try:");
    if let Some(batch) = batch {
        println!("    curl -H 'x-api-key: {key}' {base}/{batch}/status");
        println!("    curl -H 'x-api-key: {key}' '{base}/{batch}/data?status=no_answer'");
    } else {
        println!("    curl {api_url}/health/ready");
        println!("    curl -H 'x-api-key: {key}' {base}/me");
    }

    println!(
        "    curl -H 'x-api-key: {key}' -H 'content-type: application/json' \\\n      \
         -d '{{\"batch_name\":\"Mine\",\"agent_id\":\"{}\",\"caller_phone_id\":\"{}\",\
         \"variable_names\":[\"name\"]}}' \\\n      {base}/create",
        account.agent_id, account.phone_id
    );
    println!("\n  Ctrl-C stops everything.");
}
