//! `peal-api admin <noun> <verb>`: the operator's commands, and those that create users and rotate
//! the master key. The other nouns are in [`operator`](super::operator).

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use peal_shared::access::Role;
use peal_shared::agents::webhooks;
use peal_shared::api_keys::credentials;
use peal_shared::auth::passwords::{PasswordHasher, weakness};
use peal_shared::auth::{passwords, sessions};
use peal_shared::context::Context;
use peal_shared::platform::ids::{OrgId, UserId};
use peal_shared::tools::{definitions, servers};
use peal_shared::{api_keys, trunks, users};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::bootstrap::{parse_email, parse_name};
use super::operator::{
    JobCommand, LedgerCommand, NumberCommand, QueueCommand, TrunkCommand, WalletCommand,
};
use super::print_lines;

/// Nouns of `peal-api admin`.
#[derive(Clone, Debug, Subcommand)]
pub enum AdminCommand {
    /// Users: create.
    #[command(subcommand)]
    User(UserCommand),
    /// The master key: rotate.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Queues of jobs: list, pause, resume.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Jobs that failed for good: list, retry.
    #[command(subcommand)]
    Job(JobCommand),
    /// Trunks: list, resume.
    #[command(subcommand)]
    Trunk(TrunkCommand),
    /// Caller numbers: list.
    #[command(subcommand)]
    Number(NumberCommand),
    /// Wallets: list.
    #[command(subcommand)]
    Wallet(WalletCommand),
    /// The ledger: verify.
    #[command(subcommand)]
    Ledger(LedgerCommand),
}

/// Verbs of `user`.
#[derive(Clone, Debug, Subcommand)]
pub enum UserCommand {
    /// Creates a user, or sets the role and password of one that exists. All its sessions end.
    Create(CreateUser),
}

/// Verbs of `key`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum KeyCommand {
    /// Reseals under PEAL_MASTER_KEY all secrets that are sealed under PEAL_MASTER_KEY_PREVIOUS.
    Rotate,
}

impl AdminCommand {
    /// Runs the command and prints its result.
    ///
    /// # Errors
    /// Fails when the command is refused or a step of it fails.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::User(UserCommand::Create(user)) => {
                print_lines([create_user(context, &user).await?])
            }
            Self::Key(KeyCommand::Rotate) => print_lines([rotate_master_key(context).await?]),
            Self::Queue(command) => command.run(context).await,
            Self::Job(command) => command.run(context).await,
            Self::Trunk(command) => command.run(context).await,
            Self::Number(command) => command.run(context).await,
            Self::Wallet(command) => command.run(context).await,
            Self::Ledger(command) => command.run(context).await,
        }
    }
}

/// Arguments of `user create`.
#[derive(Args, Clone, Debug)]
pub struct CreateUser {
    /// E-mail address.
    #[arg(long, value_parser = parse_email)]
    pub email: String,
    /// Name of the organisation; created when it does not exist.
    #[arg(long, value_parser = parse_name)]
    pub org: String,
    /// Role of the user.
    #[arg(long, value_enum, default_value_t = AdminRole::User)]
    pub role: AdminRole,
    /// The password, 12 to 128 characters. Without one the user signs in through the issuer of
    /// external tokens.
    #[arg(long, env = "PEAL_NEW_PASSWORD", hide_env_values = true)]
    pub password: Option<SecretString>,
}

/// A role as a command-line value.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum AdminRole {
    User,
    OrgAdmin,
    SuperAdmin,
}

impl From<AdminRole> for Role {
    fn from(role: AdminRole) -> Self {
        match role {
            AdminRole::User => Self::User,
            AdminRole::OrgAdmin => Self::OrgAdmin,
            AdminRole::SuperAdmin => Self::SuperAdmin,
        }
    }
}

/// The user, as printed on success.
#[derive(Clone, Debug, Serialize)]
pub struct CreatedUser {
    pub org_id: OrgId,
    pub user_id: UserId,
    pub role: Role,
}

/// Creates or updates a user in one transaction.
///
/// # Errors
/// When the password is weak or the address belongs to another organisation.
pub async fn create_user(context: &Context, args: &CreateUser) -> anyhow::Result<CreatedUser> {
    let password = args.password.as_ref();
    if let Some(why) = password.and_then(|text| weakness(text.expose_secret(), &args.email)) {
        bail!("PEAL_NEW_PASSWORD {why}");
    }

    let hash = match password {
        Some(password) => Some(PasswordHasher::default().hash(password.clone()).await?),
        None => None,
    };
    let role = Role::from(args.role);

    let mut db = context.pool.begin().await?;
    let org = users::ensure_org_unscoped(&mut db, &args.org).await?;
    let user = users::ensure_user_unscoped(&mut db, org, &args.email, role).await?;
    let principal = users::principal_unscoped(&mut db, user).await?;
    if principal.is_none_or(|principal| principal.org != org) {
        bail!(
            "{} belongs to another organisation; remove the user there first",
            args.email
        );
    }

    users::set_role_unscoped(&mut db, user, role).await?;
    if let Some(hash) = &hash {
        passwords::set_unscoped(&mut db, org, user, hash).await?;
    }
    sessions::end_all_unscoped(&mut db, user, None).await?;

    db.commit().await.context("no user was created")?;
    Ok(CreatedUser {
        org_id: org,
        user_id: user,
        role,
    })
}

/// Numbers of resealed secrets, by kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MasterKeyRotation {
    pub trunks: u64,
    pub provider_credentials: u64,
    pub tools: u64,
    pub mcp_servers: u64,
    /// Outgoing webhooks of agents.
    pub webhooks: u64,
    /// API keys still under an earlier master key. Each must be used once, or revoked, before
    /// that master key can be removed.
    pub api_keys_left: i64,
}

/// Reseals all secrets in one transaction. Safe to repeat, and while the API serves requests.
///
/// # Errors
/// When no configured key opens a secret.
pub async fn rotate_master_key(context: &Context) -> anyhow::Result<MasterKeyRotation> {
    let keys = &context.config.keys;

    let mut db = context.pool.begin().await?;

    let rotated = MasterKeyRotation {
        trunks: trunks::reseal_unscoped(&mut db, keys).await?,
        provider_credentials: credentials::rewrap_unscoped(&mut db, keys).await?,
        tools: definitions::reseal_unscoped(&mut db, keys).await?,
        mcp_servers: servers::reseal_unscoped(&mut db, keys).await?,
        webhooks: webhooks::reseal_unscoped(&mut db, keys).await?,
        api_keys_left: api_keys::count_outdated_hashes_unscoped(&mut db, keys).await?,
    };

    db.commit().await.context("no secret was resealed")?;
    Ok(rotated)
}
