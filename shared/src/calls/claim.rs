//! The claim: one transaction that turns free send slots into calls.
//!
//! Order of locks, the same in every claim: the trunk's pacer, deferred calls, then the
//! organisations by id, then rows (skipping locked ones), then wallets by id. The pacer's lock
//! keeps other workers from leasing slots of this trunk, the organisations' locks keep them from
//! raising the number of live calls, so limits counted from live call rows are exact over any
//! number of workers.
//!
//! Slots go first to deferred calls, which already count against the limits, then by turns
//! ([`super::fair`]) to direct calls, whose money is held since their request, and to batch
//! rows, which become calls only where their money can be held ([`super::claim_rows`]). Every claimed
//! call is `submitting`, is committed before its request may be sent, and may be sent only by
//! the worker named in it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rust_decimal::prelude::ToPrimitive;
use sqlx::{Connection, PgConnection, PgPool};

use super::claim_rows::Funding;
use super::fair::{DialLane, OrgShare, SlotDivision};
use super::server_time::ClockReading;
use super::{claim_rows, fair};
use crate::billing::price_cache::PriceCache;
use crate::platform::e164::E164;
use crate::platform::error::Result;
use crate::platform::failpoint;
use crate::platform::ids::{BatchId, CallId, OrgId, TrunkId};
use crate::trunks::pacer::{SlotLease, TrunkPace};
use crate::wallets::holds::Refusal;

/// A call that its worker may send, once.
#[derive(Clone, Debug)]
pub struct ClaimedCall {
    pub id: CallId,
    pub org: OrgId,
    pub batch: Option<BatchId>,
    pub to: E164,
    pub from: E164,
    pub submit_count: i32,
    pub ring_timeout_secs: i32,
    pub max_duration_secs: i32,
    /// False on a call under HIPAA.
    pub recording_enabled: bool,
    pub machine_detection: bool,
    /// By the database's clock.
    pub claimed_at: DateTime<Utc>,
}

/// Reason for a claim without calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleReason {
    /// The trunk is paused, deleted, or has no pacer.
    TrunkInactive,
    /// Every slot up to the horizon is leased.
    NoFreeSlot,
    /// The trunk is at its limit of live calls.
    AtCapacity,
    /// No call and no row is due, or their limits are reached.
    NoWork,
    /// The commit's result is unknown: the calls must not be sent.
    CommitUnknown,
}

/// Claimed calls, and a lease of slots to send them in. There are more slots than calls when
/// the worker asked for slots for calls it still holds.
#[derive(Debug)]
pub struct CallClaim {
    pub calls: Vec<ClaimedCall>,
    pub lease: SlotLease,
    /// The database's time at or after the end of the claim; slots are offsets from it.
    pub now: DateTime<Utc>,
    /// The same moment by this machine's monotonic clock, or a little later.
    pub read_at: Instant,
    /// Duration of the reading: `now` may be earlier than `read_at` by this much.
    pub read_uncertainty: Duration,
    pub idle: Option<IdleReason>,
    /// Time spent on prices and holds.
    pub funding_time: Duration,
}

/// A worker's request for calls of one trunk.
#[derive(Clone, Copy, Debug)]
pub struct ClaimRequest<'a> {
    pub trunk: TrunkId,
    pub worker: &'a str,
    /// Calls the worker can send beyond those it holds.
    pub max_calls: u32,
    /// Calls claimed earlier whose slots were burned: they need slots only.
    pub held_calls: u32,
    /// Longest talk that money is held for.
    pub hold_max_secs: i32,
    pub price_cache: &'a PriceCache,
}

struct LockedTrunk {
    pace: TrunkPace,
    now: DateTime<Utc>,
    turn: i64,
    capacity: u32,
}

/// Claims calls for free slots of a trunk. The dialler acts for every tenant on the trunk.
pub async fn claim_unscoped(pool: &PgPool, request: ClaimRequest<'_>) -> Result<CallClaim> {
    let mut connection = pool.acquire().await?;
    let mut db = connection.begin().await?;

    // 1. Lock the trunk's pacer, and lease no more slots than the worker can use.
    let Some(trunk) = lock_trunk(&mut db, request.trunk).await? else {
        return Ok(empty_claim(IdleReason::TrunkInactive));
    };
    let free = trunk.pace.lease(trunk.now);
    let wanted = free
        .count
        .min(request.held_calls.saturating_add(request.max_calls));
    if wanted == 0 {
        return Ok(CallClaim {
            lease: free.at_most(0),
            now: trunk.now,
            ..empty_claim(IdleReason::NoFreeSlot)
        });
    }
    let slots = wanted.saturating_sub(request.held_calls);

    // 2. Lock and resubmit deferred calls: they come first, and are within the limits already.
    let mut calls = resubmit_deferred(&mut db, request, slots).await?;
    let left = slots
        .saturating_sub(saturating_count(calls.len()))
        .min(trunk.capacity);
    let mut division = SlotDivision {
        turn: trunk.turn,
        ..SlotDivision::default()
    };
    let mut fates = HashMap::new();
    let mut money_took = Duration::ZERO;

    if left > 0 {
        // 3. Lock the organisations, and divide the slots that are left.
        let orgs = lock_orgs(&mut db, request.trunk).await?;
        let (shares, lanes) = load_lanes(&mut db, request.trunk, left, &orgs).await?;
        division = fair::divide_slots(left, trunk.turn, &shares, lanes);

        // 4. Claim direct calls, then lock rows and wallets.
        calls.extend(claim_direct(&mut db, request, &division).await?);
        let rows = claim_rows::claim_rows(&mut db, request, &division, trunk.now).await?;
        calls.extend(rows.calls);
        (fates, money_took) = (rows.funding, rows.funding_time);
    }

    // 5. Lease the slots. Slots that passed while rows were picked and priced are skipped.
    let made = calls.iter().map(|call| call.claimed_at).max();
    let free = trunk.pace.lease(made.unwrap_or(trunk.now));
    let lease =
        free.at_most(saturating_count(calls.len()).saturating_add(request.held_calls.min(wanted)));
    let sent_at = Instant::now();
    let now = advance_turns(&mut db, request.trunk, &lease, &division, &fates).await?;
    let reading = ClockReading::new(now, sent_at);

    // 6. Commit: only then may a call be sent.
    failpoint::hit("claim.uncommitted");
    let committed = db.commit().await;
    failpoint::hit("claim.committed");

    let ClockReading {
        now,
        read_at,
        uncertainty: read_within,
    } = match committed {
        Ok(()) => reading.refined_unscoped(&mut connection).await,
        Err(_) => reading,
    };

    let idle = idle_reason(committed, lease.count, trunk.capacity);

    Ok(CallClaim {
        calls,
        lease,
        now,
        read_at,
        read_uncertainty: read_within,
        idle,
        funding_time: money_took,
    })
}

/// Returns why a claim has leased no slot; `None` when it has leased some.
fn idle_reason(
    committed: sqlx::Result<()>,
    leased_slots: u32,
    capacity: u32,
) -> Option<IdleReason> {
    match (committed, leased_slots, capacity) {
        (Err(error), ..) => {
            tracing::warn!(%error, "the commit of a claim has an unknown result");
            Some(IdleReason::CommitUnknown)
        }
        (Ok(()), 0, 0) => Some(IdleReason::AtCapacity),
        (Ok(()), 0, _) => Some(IdleReason::NoWork),
        (Ok(()), ..) => None,
    }
}

fn empty_claim(reason: IdleReason) -> CallClaim {
    CallClaim {
        calls: Vec::new(),
        lease: SlotLease {
            count: 0,
            first: DateTime::<Utc>::MIN_UTC,
            interval: chrono::TimeDelta::zero(),
        },
        now: DateTime::<Utc>::MIN_UTC,
        read_at: Instant::now(),
        read_uncertainty: Duration::ZERO,
        idle: Some(reason),
        funding_time: Duration::ZERO,
    }
}

fn saturating_count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

async fn lock_trunk(db: &mut PgConnection, trunk: TrunkId) -> Result<Option<LockedTrunk>> {
    let pacer = sqlx::query!(
        "select next_slot, slowdown, slowed_at, turn from pacers where trunk_id = $1 for update",
        trunk as TrunkId,
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(pacer) = pacer else { return Ok(None) };

    // A statement of its own: its snapshot must be taken after the lock is held.
    let limits = sqlx::query!(
        r#"select t.cps, t.max_concurrent, clock_timestamp() as "now!",
                  (select count(*) from calls c where c.trunk_id = t.id and c.live) as "live!"
           from trunks t
           where t.id = $1
             and t.status = 'active'"#,
        trunk as TrunkId,
    )
    .fetch_optional(db)
    .await?;

    Ok(limits.map(|limits| {
        let room = i64::from(limits.max_concurrent)
            .saturating_sub(limits.live)
            .max(0);
        LockedTrunk {
            pace: TrunkPace {
                cps: limits.cps.to_f64().unwrap_or_default(),
                next_slot: pacer.next_slot,
                slowdown: pacer.slowdown,
                slowed_at: pacer.slowed_at,
            },
            now: limits.now,
            turn: pacer.turn,
            capacity: u32::try_from(room).unwrap_or(u32::MAX),
        }
    }))
}

/// Locks every organisation with work on the trunk, so that no other claim raises their number
/// of live calls while this one counts it.
async fn lock_orgs(db: &mut PgConnection, trunk: TrunkId) -> Result<Vec<OrgId>> {
    let orgs = sqlx::query_scalar!(
        r#"select o.id as "id: OrgId"
           from organizations o
           where o.id in (
               select org_id from call_batches
               where trunk_id = $1 and status = 'in_progress' and launched_at is not null
               union
               select org_id from calls where trunk_id = $1 and queued)
           order by o.id
           for no key update"#,
        trunk as TrunkId,
    )
    .fetch_all(db)
    .await?;
    Ok(orgs)
}

/// Loads the lanes with due work on the trunk, and how many more calls each may have.
async fn load_lanes(
    db: &mut PgConnection,
    trunk: TrunkId,
    most: u32,
    orgs: &[OrgId],
) -> Result<(HashMap<OrgId, OrgShare>, Vec<DialLane>)> {
    let rows = sqlx::query_file!(
        "src/calls/lanes.sql",
        trunk as TrunkId,
        i64::from(most),
        orgs as &[OrgId]
    )
    .fetch_all(db)
    .await?;

    let room = |limit: i64, used: i64| {
        u32::try_from(limit.saturating_sub(used).max(0)).unwrap_or(u32::MAX)
    };
    let mut shares = HashMap::new();
    let mut lanes = Vec::with_capacity(rows.len());

    for row in rows {
        let org = OrgId(row.org_id);
        shares.insert(
            org,
            OrgShare {
                turn: row.org_turn,
                capacity: room(row.org_limit, row.org_live),
            },
        );
        lanes.push(DialLane {
            org,
            batch: row.batch_id.map(BatchId),
            turn: row.turn,
            capacity: room(row.lane_limit, row.lane_live).min(room(row.due, 0)),
        });
    }
    Ok((shares, lanes))
}

/// Gives another slot to calls whose request provably did nothing.
async fn resubmit_deferred(
    db: &mut PgConnection,
    request: ClaimRequest<'_>,
    most: u32,
) -> Result<Vec<ClaimedCall>> {
    let due = sqlx::query_scalar!(
        r#"select c.id as "id: CallId"
           from calls c
           left join call_batches b on b.id = c.batch_id
           where c.trunk_id = $1
             and c.deferred
             and c.check_at <= now()
             and (b.id is null or b.status = 'in_progress')
           order by c.check_at
           limit $2
           for update of c skip locked"#,
        request.trunk as TrunkId,
        i64::from(most),
    )
    .fetch_all(&mut *db)
    .await?;
    submit_calls(db, request, &due).await
}

/// Claims direct calls, one per number: two that wait for the same person go one after the other.
async fn claim_direct(
    db: &mut PgConnection,
    request: ClaimRequest<'_>,
    division: &SlotDivision,
) -> Result<Vec<ClaimedCall>> {
    let (orgs, counts): (Vec<OrgId>, Vec<i64>) = division
        .grants
        .iter()
        .filter(|grant| grant.batch.is_none())
        .map(|grant| (grant.org, i64::from(grant.count)))
        .unzip();
    if orgs.is_empty() {
        return Ok(Vec::new());
    }

    let picked = sqlx::query_scalar!(
        r#"select q.id as "id!: CallId"
           from unnest($2::uuid[], $3::bigint[]) as w (org_id, n)
           cross join lateral (
               select distinct on (c.created_at, c.to_number) c.id
               from calls c
               where c.trunk_id = $1
                 and c.org_id = w.org_id
                 and c.queued
                 and not exists (select from calls l
                                 where l.org_id = c.org_id and l.to_number = c.to_number and l.live
                                 -- Looked up call by call, as in pick_rows.sql.
                                 offset 0)
                 and not exists (select from calls e
                                 where e.trunk_id = $1 and e.org_id = c.org_id and e.to_number = c.to_number
                                   and e.queued and (e.created_at, e.id) < (c.created_at, c.id))
               order by c.created_at, c.to_number
               limit w.n
           ) q"#,
        request.trunk as TrunkId,
        &orgs as &[OrgId],
        &counts,
    )
    .fetch_all(&mut *db)
    .await?;

    submit_calls(db, request, &picked).await
}

/// Assigns those calls that are still queued or deferred to the worker.
async fn submit_calls(
    db: &mut PgConnection,
    request: ClaimRequest<'_>,
    calls: &[CallId],
) -> Result<Vec<ClaimedCall>> {
    if calls.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query_as!(
        ClaimedCallRow,
        r#"update calls c
           set status = 'submitting', worker = $1, submit_count = c.submit_count + 1,
               submitted_at = now(), changed_at = now(), check_at = null
           from agents a, trunks t
           where c.id = any ($2)
             and (c.queued or c.deferred)
             and a.id = c.agent_id
             and t.id = c.trunk_id
           returning c.id, c.org_id, c.batch_id, c.to_number as "to_number: E164", c.from_number as "from_number: E164",
                     c.submit_count, t.ring_timeout_secs, a.session_timeout_secs,
                     a.recording_enabled and not c.hipaa_compliance as "recording_enabled!", a.machine_detection,
                     clock_timestamp() as "claimed_at!""#,
        request.worker,
        calls as &[CallId],
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(ClaimedCall::from).collect())
}

/// Moves the trunk's next slot past the leased ones and each lane's turn past its grant, and
/// stores which batches could not be funded.
async fn advance_turns(
    db: &mut PgConnection,
    trunk: TrunkId,
    lease: &SlotLease,
    division: &SlotDivision,
    fates: &HashMap<BatchId, Funding>,
) -> Result<DateTime<Utc>> {
    let (orgs, org_turns): (Vec<OrgId>, Vec<i64>) = division.org_turns.iter().copied().unzip();
    let (batches, batch_turns): (Vec<BatchId>, Vec<i64>) = division
        .grants
        .iter()
        .filter_map(|grant| Some((grant.batch?, grant.turn)))
        .unzip();

    let (direct_orgs, direct_turns): (Vec<OrgId>, Vec<i64>) = division
        .grants
        .iter()
        .filter(|grant| grant.batch.is_none())
        .map(|grant| (grant.org, grant.turn))
        .unzip();

    let fed: Vec<bool> = batches
        .iter()
        .map(|id| matches!(fates.get(id), Some(Funding::Funded)))
        .collect();
    let starved: Vec<Option<Refusal>> = batches
        .iter()
        .map(|id| match fates.get(id) {
            Some(Funding::Unfunded(refusal)) => Some(*refusal),
            _ => None,
        })
        .collect();

    let now = sqlx::query_file_scalar!(
        "src/calls/advance.sql",
        trunk as TrunkId,
        lease.next_slot(),
        division.turn,
        &orgs as &[OrgId],
        &org_turns,
        &batches as &[BatchId],
        &batch_turns,
        &direct_orgs as &[OrgId],
        &direct_turns,
        lease.count > 0,
        &fed,
        &starved as &[Option<Refusal>],
    )
    .fetch_one(db)
    .await?;
    Ok(now)
}

pub(super) struct ClaimedCallRow {
    pub id: uuid::Uuid,
    pub org_id: uuid::Uuid,
    pub batch_id: Option<uuid::Uuid>,
    pub to_number: E164,
    pub from_number: E164,
    pub submit_count: i32,
    pub ring_timeout_secs: i32,
    pub session_timeout_secs: i32,
    pub recording_enabled: bool,
    pub machine_detection: bool,
    pub claimed_at: DateTime<Utc>,
}

impl From<ClaimedCallRow> for ClaimedCall {
    fn from(row: ClaimedCallRow) -> Self {
        Self {
            id: CallId(row.id),
            org: OrgId(row.org_id),
            batch: row.batch_id.map(BatchId),
            to: row.to_number,
            from: row.from_number,
            submit_count: row.submit_count,
            ring_timeout_secs: row.ring_timeout_secs,
            max_duration_secs: row.session_timeout_secs,
            recording_enabled: row.recording_enabled,
            machine_detection: row.machine_detection,
            claimed_at: row.claimed_at,
        }
    }
}
