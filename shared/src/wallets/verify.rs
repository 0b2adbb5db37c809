//! Verification of wallets, grants and holds against the ledger and the calls.

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;

use crate::platform::error::Result;

/// A violated rule of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LedgerViolation {
    /// The violated rule.
    pub check: &'static str,
    /// Id of the row that violates it.
    pub of: String,
    /// The numbers that should have been equal.
    pub found: Value,
}

/// Recomputes every projection from its rows, in one statement and so in one snapshot, for all
/// tenants.
pub async fn violations_unscoped(db: &mut PgConnection) -> Result<Vec<LedgerViolation>> {
    let rows = sqlx::query_file!("src/wallets/verify.sql")
        .fetch_all(db)
        .await?;
    Ok(rows
        .into_iter()
        .map(|row| LedgerViolation {
            check: rule_name(&row.rule),
            of: row.of,
            found: row.found,
        })
        .collect())
}

/// Rules that the statement checks.
const RULES: [&str; 15] = [
    "transaction_sums_to_zero",
    "transaction_has_entries",
    "wallet_is_its_entries",
    "entries_carry_the_balance",
    "wallet_holds_its_holds",
    "wallet_counts_its_month",
    "grant_is_its_uses",
    "grant_pins_its_holds",
    "grant_was_posted",
    "grants_pay_no_more_than_was_paid",
    "charges_are_their_transaction",
    "shares_are_the_retail_price",
    "charges_are_numbered",
    "hold_ends_with_its_call",
    "calls_hold_money",
];

fn rule_name(rule: &str) -> &'static str {
    RULES
        .into_iter()
        .find(|known| *known == rule)
        .unwrap_or("unknown_rule")
}
