//! Request and response bodies of `/api/v1/wallets`.

use chrono::{DateTime, Utc};
use peal_shared::platform::money::Usd;
use peal_shared::wallets::grants::{GrantChange, NewGrant};
use peal_shared::wallets::queries::{ExpiringAmount, Grant, LedgerPage, Wallet};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use crate::http::error::Result;
use crate::http::extract::FieldErrors;
use crate::http::openapi::ProblemDocument;

/// Default priority of a grant.
const DEFAULT_PRIORITY: i16 = 50;
/// Maximum of one transfer, and of a cap.
const MAX_AMOUNT: Usd = Usd::dollars(1_000_000_000);

/// The organization's wallet has less than the amount.
#[derive(IntoResponses)]
#[response(status = 402, content_type = "application/problem+json")]
#[expect(dead_code, reason = "read by the macro alone")]
pub struct InsufficientFundsResponse(ProblemDocument);

/// Page of a ledger.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LedgerQuery {
    /// Entries older than the one with this number.
    pub after: Option<i64>,
    /// 1 to 200; 50 when left out.
    pub limit: Option<i64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Wallets)]
pub struct WalletPage {
    pub wallets: Vec<Wallet>,
    #[schema(example = 1)]
    pub total: i64,
    pub page: i64,
    pub page_size: i64,
}

#[derive(Serialize, ToSchema)]
pub struct MemberWallets {
    pub organization_wallet: Wallet,
    pub wallets: Vec<Wallet>,
    #[schema(example = 1)]
    pub total: i64,
    pub page: i64,
    pub page_size: i64,
}

#[derive(Serialize, ToSchema)]
pub struct WalletDetail {
    #[serde(flatten)]
    pub wallet: Wallet,
    pub grants: Vec<Grant>,
    pub upcoming_expiry: Vec<ExpiringAmount>,
    pub ledger: LedgerPage,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Granted)]
pub struct GrantedCredit {
    #[schema(example = "credit granted")]
    pub message: &'static str,
    pub grant: Grant,
    pub wallet: Wallet,
    pub ledger_entry_id: i64,
}

#[derive(Serialize, ToSchema)]
pub struct WalletSet {
    #[schema(example = "cap set")]
    pub message: &'static str,
    pub wallet: Wallet,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Adjusted)]
pub struct AdjustedBalance {
    #[schema(example = "balance adjusted")]
    pub message: &'static str,
    pub wallet: Wallet,
    pub ledger_entry_id: i64,
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GiveCredit {
    /// Greater than 0.
    amount_usd: Usd,
    /// It never expires when left out.
    expires_at: Option<DateTime<Utc>>,
    /// 0 is spent first, 100 last; 50 when left out.
    priority: Option<i16>,
    note: Option<String>,
    /// Alternative to the header.
    pub idempotency_key: Option<String>,
}

impl GiveCredit {
    pub fn check(&self) -> Result<()> {
        let mut fields = FieldErrors::default();
        fields.check(
            self.amount_usd.is_positive() && self.amount_usd <= MAX_AMOUNT,
            "amount_usd",
            "range",
            "must be more than 0, and at most 1000000000",
        );
        check_priority(&mut fields, self.priority);
        if let Some(note) = &self.note {
            fields.check_text(note, "note", 1, 500);
        }
        fields.finish()
    }

    /// Builds the grant, without its key.
    pub fn to_grant(&self) -> NewGrant {
        NewGrant {
            amount: self.amount_usd,
            expires_at: self.expires_at,
            priority: self.priority.unwrap_or(DEFAULT_PRIORITY),
            note: self.note.clone(),
            idem_key: String::new(),
        }
    }
}

/// Absent fields stay unchanged.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditGrant {
    /// null removes the expiry.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<DateTime<Utc>>)]
    expires_at: Option<Option<DateTime<Utc>>>,
    /// A locked grant pays for nothing.
    locked: Option<bool>,
    /// 0 is spent first, 100 last.
    priority: Option<i16>,
}

impl EditGrant {
    pub fn validated(self) -> Result<GrantChange> {
        let mut fields = FieldErrors::default();
        check_priority(&mut fields, self.priority);
        fields.finish()?;
        Ok(GrantChange {
            expires_at: self.expires_at,
            locked: self.locked,
            priority: self.priority,
        })
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetCap {
    /// null clears it.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required = true)]
    monthly_cap_usd: Option<Usd>,
}

impl SetCap {
    pub fn validated(self) -> Result<Option<Usd>> {
        let fits = |cap: Usd| (Usd::ZERO..=MAX_AMOUNT).contains(&cap);
        let mut fields = FieldErrors::default();
        fields.check(
            self.monthly_cap_usd.is_none_or(fits),
            "monthly_cap_usd",
            "range",
            "must be between 0 and 1000000000, or null for no cap",
        );
        fields.finish()?;
        Ok(self.monthly_cap_usd)
    }
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdjustBalance {
    /// Not 0; a negative amount reduces the balance.
    pub delta_usd: Usd,
    /// Stored with the ledger entry.
    pub reason: String,
    /// Permits a negative spendable balance.
    #[serde(default)]
    pub allow_negative: bool,
    /// Alternative to the header.
    pub idempotency_key: Option<String>,
}

impl AdjustBalance {
    pub fn check(&self) -> Result<()> {
        let mut fields = FieldErrors::default();
        fields.check(
            !self.delta_usd.is_zero() && (-MAX_AMOUNT..=MAX_AMOUNT).contains(&self.delta_usd),
            "delta_usd",
            "range",
            "must not be 0, and at most 1000000000 either way",
        );
        fields.check_text(self.reason.trim(), "reason", 1, 500);
        fields.finish()
    }
}

fn check_priority(fields: &mut FieldErrors, priority: Option<i16>) {
    if let Some(priority) = priority {
        fields.check_range(i32::from(priority), "priority", 0, 100);
    }
}

/// Distinguishes a null field from an absent one.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
