//! `peal-api bootstrap`: what a first campaign needs, in one go: an organisation, its
//! administrator with an API key, a trunk, a caller number and an agent.
//!
//! Run again with the same names, it brings what exists up to date instead of adding to it;
//! only the key is new every time.

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use peal_shared::access::Role;
use peal_shared::agents::{self, NewAgent};
use peal_shared::context::Context;
use peal_shared::ids::{AgentId, OrgId, PhoneId, TrunkId, UserId};
use peal_shared::money::{NoAmount, Usd};
use peal_shared::phone::{Country, E164};
use peal_shared::phones::{self, NewPhone};
use peal_shared::telephony::{Account, CarrierKind, Credentials};
use peal_shared::trunks::{self, NewTrunk};
use peal_shared::wallets::opening;
use peal_shared::{api_keys, users};
use rust_decimal::Decimal;
use secrecy::SecretString;
use serde::Serialize;
use sqlx::PgConnection;
use url::Url;

/// What to set up.
#[derive(Args, Clone, Debug)]
pub struct Bootstrap {
    /// Name of the organisation.
    #[arg(long, default_value = "Demo", value_parser = name)]
    pub org: String,
    /// How the organisation's files write numbers without a country code, by its two letters:
    /// IN or US. A batch may say otherwise.
    #[arg(long, value_name = "CC")]
    pub default_country: Option<Country>,
    /// E-mail address of its administrator.
    #[arg(long, value_parser = email)]
    pub email: String,
    /// Whose API the trunk speaks.
    #[arg(long, value_enum, default_value_t = Kind::Twilio)]
    pub trunk_kind: Kind,
    /// The carrier's id of the account, such as AC...
    #[arg(long)]
    pub trunk_account: String,
    /// The account's secret.
    #[arg(long, env = "PEAL_TRUNK_TOKEN", hide_env_values = true, value_parser = secret)]
    pub trunk_token: SecretString,
    /// Where the carrier's API is, unless at its public address.
    #[arg(long)]
    pub trunk_base_url: Option<Url>,
    /// Calls per second that the carrier grants.
    #[arg(long, default_value = "1", value_parser = cps)]
    pub trunk_cps: Decimal,
    /// Calls at once that the carrier grants.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=100_000))]
    pub trunk_max_concurrent: i32,
    /// How long a call rings.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(i32).range(15..=600))]
    pub ring_timeout_secs: i32,
    /// The number that calls show, in E.164.
    #[arg(long, value_parser = number)]
    pub number: E164,
    /// What the agent says first; {{name}} stands for a variable of the row.
    #[arg(long)]
    pub agent_message: String,
    /// Name of the agent.
    #[arg(long, default_value = "Demo agent", value_parser = name)]
    pub agent_name: String,
    /// Ask the carrier whether a person or a machine answered.
    #[arg(long)]
    pub machine_detection: bool,
    /// Have the carrier record calls.
    #[arg(long)]
    pub recording: bool,
    /// Dollars to put into the administrator's wallet, which calls are paid from, each time this
    /// is run. Without money there nothing is dialled.
    #[arg(long, value_name = "USD", default_value = "0", value_parser = credit)]
    pub credit_usd: Usd,
}

/// A vendor, as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    Twilio,
}

/// What was set up. Its text holds the key, which cannot be had again.
#[derive(Clone, Debug, Serialize)]
pub struct Ready {
    pub org_id: OrgId,
    pub user_id: UserId,
    pub agent_id: AgentId,
    pub trunk_id: TrunkId,
    pub phone_id: PhoneId,
    pub api_key: String,
    /// What the administrator can spend.
    pub available_usd: Usd,
    /// What is left to do before calls can be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'static str>,
}

/// What somebody without money is told.
const NO_MONEY: &str = "the wallet is empty, so nothing will be dialled: run this again with --credit-usd 100, \
    or have a super_admin grant credits";

/// Sets everything up, or nothing.
///
/// # Errors
/// When the address belongs to another organisation, or with the database.
pub async fn bootstrap(context: &Context, wanted: &Bootstrap) -> anyhow::Result<Ready> {
    let mut db = context.pool.begin().await?;
    let org = users::ensure_org_unscoped(&mut db, &wanted.org).await?;
    if let Some(country) = wanted.default_country {
        users::set_default_country_unscoped(&mut db, org, country).await?;
    }
    let user = users::ensure_user_unscoped(&mut db, org, &wanted.email, Role::OrgAdmin).await?;
    let known = users::principal_unscoped(&mut db, user).await?;
    if known.is_none_or(|principal| principal.org != org) {
        bail!(
            "{} belongs to another organisation; choose another --email or --org",
            wanted.email
        );
    }
    let trunk = trunk(&mut db, context, org, wanted).await?;
    let phone = phones::create_unscoped(
        &mut db,
        &NewPhone {
            org,
            user,
            trunk,
            number: wanted.number.clone(),
        },
    )
    .await?;
    let agent = agents::ensure_unscoped(
        &mut db,
        &NewAgent {
            org,
            user,
            name: wanted.agent_name.clone(),
            first_response_message: wanted.agent_message.clone(),
            recording_enabled: wanted.recording,
            machine_detection: wanted.machine_detection,
        },
    )
    .await?;
    let keys = &context.config.keys;
    let api_key = api_keys::create_unscoped(&mut db, keys, org, user, "bootstrap").await?;
    let now = context.clock.now();
    if wanted.credit_usd.is_positive() {
        opening::give_unscoped(&mut db, user, wanted.credit_usd, now).await?;
    }
    let available_usd = opening::available_unscoped(&mut db, user, now).await?;
    db.commit().await.context("nothing was set up")?;
    Ok(Ready {
        org_id: org,
        user_id: user,
        agent_id: agent,
        trunk_id: trunk,
        phone_id: phone,
        api_key,
        available_usd,
        hint: (!available_usd.is_positive()).then_some(NO_MONEY),
    })
}

async fn trunk(
    db: &mut PgConnection,
    context: &Context,
    org: OrgId,
    wanted: &Bootstrap,
) -> anyhow::Result<TrunkId> {
    let kind = match wanted.trunk_kind {
        Kind::Twilio => CarrierKind::Twilio,
    };
    let new = NewTrunk {
        org: Some(org),
        name: format!("{} {}", wanted.org, wanted.trunk_account)
            .chars()
            .take(MAX_NAME_CHARS)
            .collect(),
        account: Account {
            kind,
            account_id: wanted.trunk_account.clone(),
            credentials: Credentials {
                username: None,
                password: wanted.trunk_token.clone(),
                signing_secrets: Vec::new(),
            },
            api_base_url: wanted.trunk_base_url.clone(),
        },
        cps: wanted.trunk_cps,
        max_concurrent: wanted.trunk_max_concurrent,
        ring_timeout_secs: wanted.ring_timeout_secs,
    };
    let keys = &context.config.keys;
    let account = &wanted.trunk_account;
    match trunks::of_account_unscoped(&mut *db, org, kind, account).await? {
        Some(id) => {
            trunks::replace_unscoped(db, keys, id, &new).await?;
            Ok(id)
        }
        None => Ok(trunks::create_unscoped(db, keys, &new).await?),
    }
}

const MAX_NAME_CHARS: usize = 200;

pub(crate) fn name(text: &str) -> Result<String, String> {
    let name = text.trim();
    match name.chars().count() {
        1..=MAX_NAME_CHARS => Ok(name.to_owned()),
        _ => Err(format!("must have 1 to {MAX_NAME_CHARS} characters")),
    }
}

pub(crate) fn email(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.split_once('@') {
        Some((name, host)) if !name.is_empty() && !host.is_empty() && text.len() <= 320 => {
            Ok(text.to_owned())
        }
        _ => Err("must be an e-mail address".to_owned()),
    }
}

fn secret(text: &str) -> Result<SecretString, String> {
    match text.trim() {
        "" => Err("must not be empty".to_owned()),
        secret => Ok(secret.into()),
    }
}

fn credit(text: &str) -> Result<Usd, String> {
    let amount: Usd = text.parse().map_err(|error: NoAmount| error.to_string())?;
    match amount >= Usd::ZERO {
        true => Ok(amount),
        false => Err("must not be negative".to_owned()),
    }
}

fn cps(text: &str) -> Result<Decimal, String> {
    text.parse()
        .ok()
        .filter(|cps| *cps >= Decimal::new(1, 3) && *cps <= Decimal::from(10_000))
        .ok_or_else(|| "must be between 0.001 and 10000".to_owned())
}

fn number(text: &str) -> Result<E164, String> {
    let lenient = E164::parse(text, None).map_err(|error| error.to_string());
    // Carriers' test numbers are well-formed but in no numbering plan.
    lenient.or_else(|why| E164::try_from(text.trim().to_owned()).map_err(|_e| why))
}
