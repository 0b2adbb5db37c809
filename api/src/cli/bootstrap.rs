//! `peal-api bootstrap`: creates all that a first campaign needs: an organisation, its
//! administrator with an API key, a trunk, a caller number and an agent.
//!
//! Repeated with the same names, it updates what exists instead of adding to it; only the API key
//! is new every time.

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use peal_shared::access::Role;
use peal_shared::agents::NewAgent;
use peal_shared::caller_numbers::NewCallerNumber;
use peal_shared::context::Context;
use peal_shared::platform::e164::{Country, E164};
use peal_shared::platform::ids::{AgentId, OrgId, PhoneId, TrunkId, UserId};
use peal_shared::platform::money::{InvalidAmount, Usd};
use peal_shared::telephony::{CarrierAccount, CarrierCredentials, CarrierKind};
use peal_shared::trunks::NewTrunk;
use peal_shared::wallets::operator_credit;
use peal_shared::{agents, api_keys, caller_numbers, trunks, users};
use rust_decimal::Decimal;
use secrecy::SecretString;
use serde::Serialize;
use sqlx::PgConnection;
use url::Url;

/// Arguments of `bootstrap`.
#[derive(Args, Clone, Debug)]
pub struct BootstrapArgs {
    /// Name of the organisation.
    #[arg(long, default_value = "Demo", value_parser = parse_name)]
    pub org: String,
    /// Country of numbers without a country code in the organisation's files: IN or US. A batch
    /// may override it.
    #[arg(long, value_name = "CC")]
    pub default_country: Option<Country>,
    /// E-mail address of its administrator.
    #[arg(long, value_parser = parse_email)]
    pub email: String,
    /// Carrier of the trunk.
    #[arg(long, value_enum, default_value_t = TrunkVendor::Twilio)]
    pub trunk_kind: TrunkVendor,
    /// The carrier's id of the account, such as AC...
    #[arg(long)]
    pub trunk_account: String,
    /// The account's secret.
    #[arg(long, env = "PEAL_TRUNK_TOKEN", hide_env_values = true, value_parser = parse_secret)]
    pub trunk_token: SecretString,
    /// URL of the carrier's API, by default its public one.
    #[arg(long)]
    pub trunk_base_url: Option<Url>,
    /// Calls per second that the carrier grants.
    #[arg(long, default_value = "1", value_parser = parse_cps)]
    pub trunk_cps: Decimal,
    /// Calls at once that the carrier grants.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=100_000))]
    pub trunk_max_concurrent: i32,
    /// Seconds that a call may ring.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(i32).range(15..=600))]
    pub ring_timeout_secs: i32,
    /// Caller number, in E.164.
    #[arg(long, value_parser = parse_number)]
    pub number: E164,
    /// First message of the agent; {{name}} is a variable of the row.
    #[arg(long)]
    pub agent_message: String,
    /// Name of the agent.
    #[arg(long, default_value = "Demo agent", value_parser = parse_name)]
    pub agent_name: String,
    /// Ask the carrier whether a person or a machine answered.
    #[arg(long)]
    pub machine_detection: bool,
    /// Have the carrier record calls.
    #[arg(long)]
    pub recording: bool,
    /// Dollars to add to the administrator's wallet on every run. Calls are paid from that wallet:
    /// while it is empty, nothing is dialled.
    #[arg(long, value_name = "USD", default_value = "0", value_parser = parse_credit)]
    pub credit_usd: Usd,
}

/// A carrier as a command-line value.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TrunkVendor {
    Twilio,
}

/// The resources, as printed on success. Contains the API key, which is shown only once.
#[derive(Clone, Debug, Serialize)]
pub struct BootstrapReport {
    pub org_id: OrgId,
    pub user_id: UserId,
    pub agent_id: AgentId,
    pub trunk_id: TrunkId,
    pub phone_id: PhoneId,
    pub api_key: String,
    /// Credit that the administrator can spend.
    pub available_usd: Usd,
    /// Next step before calls can be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'static str>,
}

/// Hint for an empty wallet.
const EMPTY_WALLET_HINT: &str = "the wallet is empty, so nothing will be dialled: run this again with --credit-usd 100, \
    or have a super_admin grant credits";

/// Creates or updates everything in one transaction.
///
/// # Errors
/// When the address belongs to another organisation.
pub async fn bootstrap(context: &Context, args: &BootstrapArgs) -> anyhow::Result<BootstrapReport> {
    let mut db = context.pool.begin().await?;
    let org = users::ensure_org_unscoped(&mut db, &args.org).await?;

    if let Some(country) = args.default_country {
        users::set_default_country_unscoped(&mut db, org, country).await?;
    }

    let user = users::ensure_user_unscoped(&mut db, org, &args.email, Role::OrgAdmin).await?;
    let principal = users::principal_unscoped(&mut db, user).await?;
    if principal.is_none_or(|principal| principal.org != org) {
        bail!(
            "{} belongs to another organisation; choose another --email or --org",
            args.email
        );
    }

    let trunk = ensure_trunk(&mut db, context, org, args).await?;

    let phone = caller_numbers::create_unscoped(
        &mut db,
        &NewCallerNumber {
            org,
            user,
            trunk,
            number: args.number.clone(),
        },
    )
    .await?;

    let agent = agents::ensure_unscoped(
        &mut db,
        &NewAgent {
            org,
            user,
            name: args.agent_name.clone(),
            first_response_message: args.agent_message.clone(),
            recording_enabled: args.recording,
            machine_detection: args.machine_detection,
        },
    )
    .await?;

    let keys = &context.config.keys;
    let api_key = api_keys::create_unscoped(&mut db, keys, org, user, "bootstrap").await?;

    let now = context.clock.now();
    if args.credit_usd.is_positive() {
        operator_credit::grant_unscoped(&mut db, user, args.credit_usd, now).await?;
    }
    let available_usd = operator_credit::available_unscoped(&mut db, user, now).await?;

    db.commit().await.context("nothing was created")?;
    Ok(BootstrapReport {
        org_id: org,
        user_id: user,
        agent_id: agent,
        trunk_id: trunk,
        phone_id: phone,
        api_key,
        available_usd,
        hint: (!available_usd.is_positive()).then_some(EMPTY_WALLET_HINT),
    })
}

async fn ensure_trunk(
    db: &mut PgConnection,
    context: &Context,
    org: OrgId,
    args: &BootstrapArgs,
) -> anyhow::Result<TrunkId> {
    let kind = match args.trunk_kind {
        TrunkVendor::Twilio => CarrierKind::Twilio,
    };

    let new = NewTrunk {
        org: Some(org),
        name: format!("{} {}", args.org, args.trunk_account)
            .chars()
            .take(MAX_NAME_CHARS)
            .collect(),
        account: CarrierAccount {
            kind,
            account_id: args.trunk_account.clone(),
            credentials: CarrierCredentials {
                username: None,
                password: args.trunk_token.clone(),
                signing_secrets: Vec::new(),
            },
            api_base_url: args.trunk_base_url.clone(),
        },
        cps: args.trunk_cps,
        max_concurrent: args.trunk_max_concurrent,
        ring_timeout_secs: args.ring_timeout_secs,
    };

    let keys = &context.config.keys;
    let account = &args.trunk_account;
    match trunks::find_by_account_unscoped(&mut *db, org, kind, account).await? {
        Some(id) => {
            trunks::replace_unscoped(db, keys, id, &new).await?;
            Ok(id)
        }
        None => Ok(trunks::create_unscoped(db, keys, &new).await?),
    }
}

const MAX_NAME_CHARS: usize = 200;

pub(crate) fn parse_name(text: &str) -> Result<String, String> {
    let name = text.trim();
    match name.chars().count() {
        1..=MAX_NAME_CHARS => Ok(name.to_owned()),
        _ => Err(format!("must have 1 to {MAX_NAME_CHARS} characters")),
    }
}

pub(crate) fn parse_email(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.split_once('@') {
        Some((name, host)) if !name.is_empty() && !host.is_empty() && text.len() <= 320 => {
            Ok(text.to_owned())
        }
        _ => Err("must be an e-mail address".to_owned()),
    }
}

fn parse_secret(text: &str) -> Result<SecretString, String> {
    match text.trim() {
        "" => Err("must not be empty".to_owned()),
        secret => Ok(secret.into()),
    }
}

fn parse_credit(text: &str) -> Result<Usd, String> {
    let amount: Usd = text
        .parse()
        .map_err(|error: InvalidAmount| error.to_string())?;
    match amount >= Usd::ZERO {
        true => Ok(amount),
        false => Err("must not be negative".to_owned()),
    }
}

fn parse_cps(text: &str) -> Result<Decimal, String> {
    text.parse()
        .ok()
        .filter(|cps| *cps >= Decimal::new(1, 3) && *cps <= Decimal::from(10_000))
        .ok_or_else(|| "must be between 0.001 and 10000".to_owned())
}

fn parse_number(text: &str) -> Result<E164, String> {
    let lenient = E164::parse(text, None).map_err(|error| error.to_string());
    // Carriers' test numbers are well-formed but in no numbering plan.
    lenient.or_else(|why| E164::try_from(text.trim().to_owned()).map_err(|_e| why))
}
