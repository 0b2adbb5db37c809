//! What Peal does in a second, each number beside a limit measured in the same run.
//!
//! Everything runs in this process, with the API, the workers and the simulator sharing the
//! machine's cores with PostgreSQL: the numbers are of a whole installation on one machine.
//! `PEAL_BENCH_ROWS` scales the campaigns. Prints a Markdown table and, behind it, JSON.

#[path = "../../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "tests use the rest")]
mod harness;
mod rows;

use harness::setting;

/// A line of the table.
struct Row {
    what: &'static str,
    measured: String,
    limit: String,
    ratio: Option<f64>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Fails here, with a clear word, when it is not started by `make bench`.
    setting("PEAL_TEST_DATABASE_URL");
    let scale = rows::scale();
    let table = [
        rows::ingest(scale).await?,
        rows::placing(scale, 0).await?,
        rows::placing(scale, 150).await?,
        rows::pipeline(scale).await?,
        rows::pacing(10).await?,
        rows::pacing(50).await?,
        rows::pacing(200).await?,
    ];
    println!("| row | measured | limit beside it | ratio |\n|---|---|---|---|");
    for row in &table {
        let ratio = row
            .ratio
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        println!(
            "| {} | {} | {} | {ratio} |",
            row.what, row.measured, row.limit
        );
    }
    let json: Vec<_> = table
        .iter()
        .map(|row| {
            serde_json::json!({"row": row.what, "measured": row.measured, "limit": row.limit, "ratio": row.ratio})
        })
        .collect();
    println!("\n{}", serde_json::to_string(&json)?);
    Ok(())
}
