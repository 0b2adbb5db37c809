//! Configuration of a simulator; every setting has a default.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::callee::CalleeBehavior;
use crate::faults::Faults;

/// Treatment of creates above an account's calls per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverCps {
    /// Accepts and dials later, with the wait in `queue_time`, as Twilio does.
    #[default]
    Queue,
    /// Refuses with 429 and code 20429.
    Refuse,
}

/// Settings of an account. As text `token`, `token:cps` or `token:cps:refuse`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountConfig {
    pub auth_token: String,
    /// Calls dialled per real second; 0 means no limit.
    pub cps: u32,
    pub over_cps: OverCps,
    /// Secrets by API key sid; API keys authenticate but never sign.
    pub api_keys: BTreeMap<String, String>,
}

impl Default for AccountConfig {
    fn default() -> Self {
        Self {
            auth_token: "00112233445566778899aabbccddeeff".to_owned(),
            cps: 0,
            over_cps: OverCps::Queue,
            api_keys: BTreeMap::new(),
        }
    }
}

impl FromStr for AccountConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let auth_token = parts.next().unwrap_or_default().to_owned();
        if auth_token.is_empty() {
            return Err("an account needs an auth token".to_owned());
        }
        let cps = match parts.next() {
            Some(cps) => cps.parse().map_err(|e| format!("cps `{cps}`: {e}"))?,
            None => 0,
        };
        let over_cps = match parts.next() {
            None | Some("queue") => OverCps::Queue,
            Some("refuse") => OverCps::Refuse,
            Some(other) => return Err(format!("`{other}` is neither queue nor refuse")),
        };
        Ok(Self {
            auth_token,
            cps,
            over_cps,
            api_keys: BTreeMap::new(),
        })
    }
}

impl fmt::Display for AccountConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = match self.over_cps {
            OverCps::Queue => "queue",
            OverCps::Refuse => "refuse",
        };
        write!(f, "{}:{}:{over}", self.auth_token, self.cps)
    }
}

/// Settings of one simulator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Parser)]
#[serde(default, deny_unknown_fields)]
#[command(
    name = "peal-simulator",
    about = "Carrier simulator that places no real calls"
)]
pub struct SimulatorConfig {
    /// Address to listen on; port 0 takes a free port.
    #[arg(long, env = "PEAL_SIMULATOR_LISTEN", default_value_t = Self::default().listen)]
    pub listen: SocketAddr,
    /// Call seconds per real second.
    #[arg(long, default_value_t = Self::default().speed)]
    pub speed: f64,
    /// Accounts with their own token and calls per second, as SID=token[:cps[:queue|refuse]].
    #[arg(skip)]
    pub accounts: BTreeMap<String, AccountConfig>,
    /// Settings of every other sid that starts with AC, as token[:cps[:queue|refuse]].
    #[arg(long, default_value_t = Self::default().default_account)]
    pub default_account: AccountConfig,
    /// Refuse sids that are not configured.
    #[arg(long)]
    pub known_accounts_only: bool,
    /// Most callbacks, and most document fetches, in flight at once.
    #[arg(long, default_value_t = Self::default().callback_concurrency)]
    pub callback_concurrency: usize,
    /// Keep no log of callbacks for the control API.
    #[arg(long = "forget-callbacks", action = clap::ArgAction::SetFalse)]
    pub keep_callbacks: bool,
    /// Most callbacks in the log; those of the oldest calls are dropped first.
    #[arg(long, default_value_t = Self::default().kept_callbacks_max)]
    pub kept_callbacks_max: usize,
    #[command(flatten)]
    pub behavior: CalleeBehavior,
    #[command(flatten)]
    pub faults: Faults,
}

impl Default for SimulatorConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            speed: 1.0,
            accounts: BTreeMap::new(),
            default_account: AccountConfig::default(),
            known_accounts_only: false,
            callback_concurrency: 256,
            keep_callbacks: true,
            kept_callbacks_max: 100_000,
            behavior: CalleeBehavior::default(),
            faults: Faults::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn flags_and_code_have_the_same_defaults() {
        assert_eq!(
            SimulatorConfig::parse_from(["peal-simulator"]),
            SimulatorConfig::default()
        );
    }

    #[test]
    fn a_config_reads_back_from_json() {
        let config = SimulatorConfig::default();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<SimulatorConfig>(&json).unwrap(),
            config
        );
    }

    #[test]
    fn flags_reach_faults_and_behavior() {
        let config = SimulatorConfig::parse_from([
            "peal-simulator",
            "--seed=9",
            "--fault-seed=4",
            "--fault-drop-after=x2",
            "--ring-secs=1-2",
            "--script=Hi|Bye",
            "--default-account=tok:5:refuse",
            "--forget-callbacks",
        ]);
        assert_eq!((config.behavior.seed, config.faults.seed), (9, 4));
        assert_eq!(config.faults.drop_after, crate::FaultChance::next(2));
        assert_eq!(config.behavior.scripts, ["Hi|Bye"]);
        assert_eq!(config.default_account.cps, 5);
        assert_eq!(config.default_account.over_cps, OverCps::Refuse);
        assert!(!config.keep_callbacks);
    }
}
