//! The demo's only wallet, as the operator commands of `peal-worker` print it.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use rust_decimal::Decimal;
use serde_json::Value;

use crate::tools::ProgramRunner;

/// Longest time from the end of a call to its charge.
const SETTLE_DEADLINE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Amounts of a wallet, in dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalletBalance {
    pub balance: Decimal,
    /// Part of the balance that is reserved for calls in progress.
    pub held: Decimal,
}

impl WalletBalance {
    /// Reads the wallet.
    pub async fn read(tools: &ProgramRunner) -> Result<Self> {
        let printed = tools.run("peal-api", &["admin", "wallet", "list"]).await?;
        Self::parse(&printed)
    }

    /// Waits until every call has been charged and reads the wallet.
    pub async fn read_settled(tools: &ProgramRunner) -> Result<Self> {
        let deadline = Instant::now() + SETTLE_DEADLINE;
        loop {
            let wallet = Self::read(tools).await?;
            if wallet.held.is_zero() {
                return Ok(wallet);
            }
            if Instant::now() > deadline {
                bail!("ended calls have not been charged: {wallet:?}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn parse(printed: &str) -> Result<Self> {
        let line = printed.lines().next();
        let wallet: Value = line
            .and_then(|line| serde_json::from_str(line).ok())
            .ok_or_else(|| anyhow!("there is no wallet with a balance: {printed:?}"))?;
        let amount = |name: &str| {
            let text = wallet.get(name).and_then(Value::as_str);
            text.and_then(|text| text.parse().ok())
                .ok_or_else(|| anyhow!("the wallet has no {name}: {wallet}"))
        };
        Ok(Self {
            balance: amount("balance_usd")?,
            held: amount("held_usd")?,
        })
    }
}

/// Errors that `peal-api admin ledger verify` reports.
pub async fn ledger_errors(tools: &ProgramRunner) -> Result<Vec<String>> {
    match tools.run("peal-api", &["admin", "ledger", "verify"]).await {
        Ok(_) => Ok(Vec::new()),
        Err(error) => Ok(vec![format!("{error:#}")]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wallet_is_read_from_what_is_printed() {
        let printed = r#"{"wallet_id":"x","balance_usd":"12.50","held_usd":"0.00"}"#;
        let wallet = WalletBalance::parse(printed).unwrap();
        assert_eq!(wallet.balance, Decimal::new(1250, 2));
        assert!(wallet.held.is_zero());
        assert!(WalletBalance::parse("").is_err());
        assert!(WalletBalance::parse(r#"{"balance_usd":"12.50"}"#).is_err());
    }
}
