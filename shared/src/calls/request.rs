//! Direct calls: one call to one person, as soon as possible. They wait for the same slots as the
//! rows of batches and are claimed by the same claim; their money is held from the request on.

use serde::Serialize;
use sqlx::PgConnection;

use crate::access::Scope;
use crate::agents::Agent;
use crate::billing::estimate::{EstimateBasis, estimate_unscoped};
use crate::billing::snapshots::freeze_unscoped;
use crate::caller_numbers::CallerNumber;
use crate::platform::e164::E164;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{AgentId, CallId, OrgId, PhoneId, TrunkId, UserId};
use crate::platform::privacy::Variables;
use crate::wallets::holds::{HoldRequest, Refusal, insert_unscoped, try_hold};
use crate::wallets::lock_unscoped;
use crate::{trunks, users};

/// A direct call to make.
#[derive(Clone, Debug)]
pub struct NewDirectCall {
    pub user: UserId,
    pub to: E164,
    pub variable_values: Variables,
    /// Basis of the hold.
    pub basis: EstimateBasis,
}

/// A direct call that waits for its slot.
#[derive(Clone, Debug, Serialize)]
pub struct QueuedCall {
    pub id: CallId,
    pub org_id: OrgId,
    pub trunk_id: TrunkId,
}

/// Queues a direct call, from a number and for an agent that were found in the caller's scope.
/// Refused on a paused trunk, where it would wait until it expires.
///
/// # Errors
/// [`Error::Conflict`] while the trunk is paused, or when its user is no longer a member;
/// [`Error::InsufficientCredit`] when its user's wallet cannot pay it; [`Error::Unexpected`] when
/// agent and number belong to different organisations.
pub async fn queue_call(
    db: &mut PgConnection,
    _scope: &Scope,
    agent: &Agent,
    caller: &CallerNumber,
    new: &NewDirectCall,
) -> Result<QueuedCall> {
    // 1. Refuse while the trunk is paused, or after the user has left.
    let paused = sqlx::query!(
        "select status_reason from trunks where id = $1 and status = 'paused'",
        caller.trunk_id as TrunkId,
    )
    .fetch_optional(&mut *db)
    .await?;
    if let Some(trunk) = paused {
        return Err(Error::conflict(
            "trunk_paused",
            format!(
                "{}; call again when it has been resumed",
                trunks::paused_message(trunk.status_reason.as_deref())
            ),
        ));
    }
    if !users::lock_member_unscoped(db, new.user).await? {
        return Err(Error::conflict(
            "owner_removed",
            "the call's user is no longer a member of the organization",
        ));
    }

    // 2. Insert the call, then hold its money: the call is the hold's foreign key.
    let id = CallId::new();
    sqlx::query!(
        "insert into calls (id, org_id, user_id, agent_id, phone_id, trunk_id, from_number, to_number,
                            variable_values, status, hipaa_compliance)
         select $1, a.org_id, $3, a.id, $5, $6, $7, $8, $9, 'queued', a.hipaa_compliance or o.hipaa_compliance
         from agents a
         join organizations o on o.id = a.org_id
         where a.id = $4
           and a.org_id = $2",
        id as CallId,
        agent.org_id as OrgId,
        new.user as UserId,
        agent.id as AgentId,
        caller.id as PhoneId,
        caller.trunk_id as TrunkId,
        caller.phone_number.as_str(),
        new.to.as_str(),
        &new.variable_values as &Variables,
    )
    .execute(&mut *db)
    .await?;
    hold_funds(db, agent, new, id).await?;

    Ok(QueuedCall {
        id,
        org_id: agent.org_id,
        trunk_id: caller.trunk_id,
    })
}

/// Holds the money for a queued call.
async fn hold_funds(
    db: &mut PgConnection,
    agent: &Agent,
    new: &NewDirectCall,
    call: CallId,
) -> Result<()> {
    let basis = new.basis;
    let estimate = estimate_unscoped(db, agent.id, new.user, &new.to, basis).await?;
    let snapshots = freeze_unscoped(db, &[(estimate.org, estimate.prices)])
        .await?
        .ids;
    let mut wallets = lock_unscoped(db, &[estimate.wallet], basis.at).await?;
    let (Some(wallet), Some(snapshot)) = (wallets.get_mut(&estimate.wallet), snapshots.first())
    else {
        return Err(Refusal::InsufficientCredits.error());
    };
    let wanted = HoldRequest {
        call,
        org: estimate.org,
        wallet: estimate.wallet,
        snapshot: *snapshot,
        amount: estimate.max_cost,
    };
    let hold = try_hold(wallet, &wanted).map_err(Refusal::error)?;
    insert_unscoped(db, &[hold]).await
}
