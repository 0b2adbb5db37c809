//! Maximum cost of a call, estimated before it is placed.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::price_catalogue;
use super::quote::{CallPrices, PricedCall, ResellerTerms, max_cost};
use crate::platform::e164::E164;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{AgentId, OrgId, UserId, WalletId};
use crate::platform::money::Usd;
use crate::wallets::holds::Refusal;
use crate::wallets::read_unscoped;

/// Moment and limits of an estimate.
#[derive(Clone, Copy, Debug)]
pub struct EstimateBasis {
    /// Prices and grants are those of this moment.
    pub at: DateTime<Utc>,
    /// Maximum seconds of talk that are held for.
    pub hold_max_secs: i32,
}

/// Maximum cost of a call, and the wallet that pays.
#[derive(Clone, Debug)]
pub struct CallEstimate {
    pub org: OrgId,
    pub wallet: WalletId,
    pub prices: CallPrices,
    /// Amount to hold.
    pub max_cost: Usd,
}

/// Estimates a call of an agent for a member of its organisation. Both were found in the caller's
/// scope before.
///
/// # Errors
/// [`Error::NotFound`] when the user has no wallet in the agent's organisation.
pub async fn estimate_unscoped(
    db: &mut PgConnection,
    agent: AgentId,
    user: UserId,
    to: &E164,
    basis: EstimateBasis,
) -> Result<CallEstimate> {
    let facts = sqlx::query!(
        r#"select a.org_id as "org_id: OrgId", w.id as "wallet_id: WalletId", a.session_timeout_secs,
                  a.model_config ->> 'model_name' as model, a.tts_config ->> 'tts_model_name' as speech,
                  t.reseller_org_id as "reseller_org_id?: OrgId", t.org_type as "org_type?",
                  t.markup_percent as "markup_percent?", t.commission_percent as "commission_percent?"
           from agents a
           join wallets w on w.org_id = a.org_id and w.user_id = $2
           left join lateral reseller_terms(a.org_id) t on true
           where a.id = $1"#,
        agent as AgentId,
        user as UserId,
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("Wallet"))?;

    let catalogue = price_catalogue::in_force_unscoped(db, basis.at).await?;
    let destination = PricedCall {
        to,
        model: facts.model.as_deref(),
        speech: facts.speech.as_deref(),
    };

    let prices = CallPrices {
        rates: catalogue.rates_for(&destination),
        terms: ResellerTerms::new(
            facts.reseller_org_id,
            facts.org_type,
            facts.markup_percent,
            facts.commission_percent,
        ),
    };

    let seconds = facts.session_timeout_secs.min(basis.hold_max_secs);
    Ok(CallEstimate {
        org: facts.org_id,
        wallet: facts.wallet_id,
        max_cost: max_cost(&prices, seconds),
        prices,
    })
}

impl CallEstimate {
    /// Returns the reason why the wallet cannot pay; `None` when it can.
    pub async fn shortage(
        &self,
        db: &mut PgConnection,
        basis: EstimateBasis,
    ) -> Result<Option<Refusal>> {
        let wallets = read_unscoped(db, &[self.wallet], basis.at).await?;
        let Some(wallet) = wallets.get(&self.wallet) else {
            return Ok(Some(Refusal::InsufficientCredits));
        };
        Ok(wallet.refusal(self.max_cost))
    }
}
