//! `peal-api admin`: what the platform's operator does without a session.

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use peal_shared::access::Role;
use peal_shared::agents::webhooks;
use peal_shared::api_keys::{self, credentials};
use peal_shared::context::Context;
use peal_shared::ids::{OrgId, UserId};
use peal_shared::sign_in::passwords::{self, Hasher, weakness};
use peal_shared::sign_in::sessions;
use peal_shared::tools::{definitions, servers};
use peal_shared::{trunks, users};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use crate::bootstrap::{email, name};

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Admin {
    /// Make a user, or give one a new role and password. Every session of theirs ends.
    CreateUser(CreateUser),
    /// Seal stored secrets under PEAL_MASTER_KEY that are under one of PEAL_MASTER_KEY_PREVIOUS.
    RotateMasterKey,
}

/// A user to make.
#[derive(Args, Clone, Debug)]
pub struct CreateUser {
    /// E-mail address.
    #[arg(long, value_parser = email)]
    pub email: String,
    /// Name of the organisation; it is founded when there is none of that name.
    #[arg(long, value_parser = name)]
    pub org: String,
    /// What the user may do.
    #[arg(long, value_enum, default_value_t = AdminRole::User)]
    pub role: AdminRole,
    /// The password, 12 to 128 characters. Without one the user signs in elsewhere.
    #[arg(long, env = "PEAL_NEW_PASSWORD", hide_env_values = true)]
    pub password: Option<SecretString>,
}

/// A role, as it is typed.
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

/// Who was made.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    pub org_id: OrgId,
    pub user_id: UserId,
    pub role: Role,
}

/// Makes a user, or nothing.
///
/// # Errors
/// When the password is weak, the address belongs to another organisation, or with the database.
pub async fn create_user(context: &Context, wanted: &CreateUser) -> anyhow::Result<Made> {
    let password = wanted.password.as_ref();
    if let Some(why) = password.and_then(|text| weakness(text.expose_secret(), &wanted.email)) {
        bail!("PEAL_NEW_PASSWORD {why}");
    }
    let hash = match password {
        Some(password) => Some(Hasher::default().hash(password.clone()).await?),
        None => None,
    };
    let role = Role::from(wanted.role);
    let mut db = context.pool.begin().await?;
    let org = users::ensure_org_unscoped(&mut db, &wanted.org).await?;
    let user = users::ensure_user_unscoped(&mut db, org, &wanted.email, role).await?;
    let known = users::principal_unscoped(&mut db, user).await?;
    if known.is_none_or(|principal| principal.org != org) {
        bail!(
            "{} belongs to another organisation; remove the user there first",
            wanted.email
        );
    }
    users::set_role_unscoped(&mut db, user, role).await?;
    if let Some(hash) = &hash {
        passwords::set_unscoped(&mut db, org, user, hash).await?;
    }
    sessions::end_all_unscoped(&mut db, user, None).await?;
    db.commit().await.context("nobody was made")?;
    Ok(Made {
        org_id: org,
        user_id: user,
        role,
    })
}

/// What was sealed anew, and what is still under an earlier master key.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rotated {
    pub trunks: u64,
    pub provider_credentials: u64,
    pub tools: u64,
    pub mcp_servers: u64,
    /// Outgoing webhooks of agents.
    pub webhooks: u64,
    /// Keys that have to be used once, or revoked, before the earlier master key can go.
    pub api_keys_left: i64,
}

/// Seals everything anew, or nothing. May be run again, and while requests are served.
///
/// # Errors
/// When a secret opens under no key that is set, or with the database.
pub async fn rotate_master_key(context: &Context) -> anyhow::Result<Rotated> {
    let keys = &context.config.keys;
    let mut db = context.pool.begin().await?;
    let rotated = Rotated {
        trunks: trunks::reseal_unscoped(&mut db, keys).await?,
        provider_credentials: credentials::rewrap_unscoped(&mut db, keys).await?,
        tools: definitions::reseal_unscoped(&mut db, keys).await?,
        mcp_servers: servers::reseal_unscoped(&mut db, keys).await?,
        webhooks: webhooks::reseal_unscoped(&mut db, keys).await?,
        api_keys_left: api_keys::count_under_earlier_unscoped(&mut db, keys).await?,
    };
    db.commit().await.context("nothing was sealed anew")?;
    Ok(rotated)
}
