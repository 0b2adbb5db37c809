//! Periodic repairs: calls of dead workers, calls without carrier events, batches whose end or
//! launch was missed, grants that expire, files and rows that are no longer needed.
//! Any replica may run every repair at any time; running it twice changes nothing.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures::stream;
use futures::stream::StreamExt;
use peal_shared::audit::purge_denied_unscoped;
use peal_shared::auth::sessions;
use peal_shared::billing::export;
use peal_shared::billing::verify::verify_unscoped;
use peal_shared::calls::apply::complete_all_finished_unscoped;
use peal_shared::calls::events::{EventSource, NewCallEvent, append_events_unscoped};
use peal_shared::calls::reconcile::{
    ReleasedCalls, StaleCall, abandon_submissions_unscoped, bound_carrier_ids_unscoped,
    claim_stale_unscoped, lost_event, release_unsent_unscoped,
};
use peal_shared::campaigns::lifecycle::requeue_launches_unscoped;
use peal_shared::campaigns::{ingest, insufficient_credit};
use peal_shared::context::Context;
use peal_shared::idempotency::purge_expired_unscoped;
use peal_shared::platform::queue::wakeup::WakeupChannel;
use peal_shared::telephony::{CallEvent, CallSearch, CallStatus, CallTermination, Outcome};
use peal_shared::wallets::expiry::expire_due_unscoped;
use peal_shared::{Result, mail};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Time between two runs of the quick repairs.
const REPAIR_INTERVAL: Duration = Duration::from_secs(2);
/// Time between two purges of old rows.
const PURGE_INTERVAL: Duration = Duration::from_secs(600);
/// Time between two checks of batches without credit.
const FUNDING_INTERVAL: Duration = Duration::from_secs(2);
/// Time between two checks for expired grants.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two verifications of the ledger.
const VERIFY_INTERVAL: Duration = Duration::from_secs(3600);
/// Time between two purges of uploads and exports.
const PURGE_FILES_INTERVAL: Duration = Duration::from_secs(60);
/// Concurrent carrier queries.
const CARRIER_CONCURRENCY: usize = 16;
/// Longest time past its deadline that a call waits for a carrier that answers with errors.
const CARRIER_ERROR_LIMIT: TimeDelta = TimeDelta::hours(1);
/// Maximum of stale calls in one round.
const STALE_CALLS_LIMIT: i64 = 50;
/// Longest time before the request at which the carrier's record of its call may be created.
const CREATED_BEFORE: TimeDelta = TimeDelta::seconds(5);
/// Longest time after the request at which the carrier's record of its call may be created.
const CREATED_AFTER: TimeDelta = TimeDelta::seconds(30);

/// Runs all repairs until `shutdown`. None waits for another: a carrier or a store that does not
/// answer must not delay the other repairs.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    tokio::join!(
        run_every(REPAIR_INTERVAL, &shutdown, || repair(&context)),
        run_every(PURGE_FILES_INTERVAL, &shutdown, || purge_uploads(&context)),
        run_every(PURGE_FILES_INTERVAL, &shutdown, || purge_exports(&context)),
        run_every(context.config.reconcile_interval, &shutdown, || {
            reconcile_stale_calls(&context, &shutdown)
        }),
        run_every(PURGE_INTERVAL, &shutdown, || purge_expired(&context)),
        run_every(FUNDING_INTERVAL, &shutdown, || update_funding(&context)),
        run_every(EXPIRY_INTERVAL, &shutdown, || expire_grants(&context)),
        run_every(VERIFY_INTERVAL, &shutdown, || verify_ledger(&context)),
    );
}

async fn run_every<F: Future<Output = Result<()>>>(
    period: Duration,
    shutdown: &CancellationToken,
    work: impl Fn() -> F,
) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // Boxed, because the futures of all repairs are part of one task.
        if let Err(error) = Box::pin(work()).await {
            tracing::warn!(%error, "a periodic repair failed; it runs again");
        }
    }
}

async fn repair(context: &Context) -> Result<()> {
    let mut db = context.pool.acquire().await?;
    let abandoned = abandon_submissions_unscoped(&mut db).await?;
    if abandoned > 0 {
        tracing::warn!(calls = abandoned, "a worker died while it placed calls");
    }

    let released = release_unsent_unscoped(&mut db).await?;
    record_released(context, released);
    let completed = complete_all_finished_unscoped(&mut db).await?;
    if released != ReleasedCalls::default() || !completed.is_empty() {
        context.wakeups.notify(WakeupChannel::Dial);
    }

    for job in requeue_launches_unscoped(&mut db).await? {
        tracing::warn!(job.id = %job.id, "a started batch had no launch job; queued one");
        context.wakeups.notify_job(&job);
    }
    Ok(())
}

async fn purge_expired(context: &Context) -> Result<()> {
    let mut db = context.pool.acquire().await?;
    purge_expired_unscoped(&mut db, context.clock.now()).await?;
    sessions::purge_expired_unscoped(&mut db, context.clock.now()).await?;
    mail::purge_unsent_unscoped(&mut db, context.clock.now()).await?;
    purge_denied_unscoped(&mut db, context.clock.now()).await?;
    Ok(())
}

/// Pauses batches without credit and resumes those with credit again.
async fn update_funding(context: &Context) -> Result<()> {
    for (batch, why) in insufficient_credit::pause_unfunded_unscoped(&context.pool).await? {
        tracing::info!(batch.id = %batch, why = why.code(), "batch paused");
    }
    for (batch, job) in
        insufficient_credit::resume_funded_unscoped(&context.pool, context.estimate_basis()).await?
    {
        tracing::info!(batch.id = %batch, "batch resumed: credit is available again");
        context.wakeups.notify_job(&job);
    }
    Ok(())
}

async fn expire_grants(context: &Context) -> Result<()> {
    let wallets = expire_due_unscoped(&context.pool, context.clock.now()).await?;
    if wallets > 0 {
        tracing::info!(wallets, "grants have expired");
    }
    Ok(())
}

/// Verifies the ledger. Every replica does so and exposes the result as a metric: it only reads.
async fn verify_ledger(context: &Context) -> Result<()> {
    let offenders = verify_unscoped(&context.pool).await?;
    context.metrics.money.set_violations(offenders.len());
    for offender in &offenders {
        tracing::error!(check = offender.check, of = %offender.of, "the ledger is inconsistent");
    }
    Ok(())
}

/// Counts calls that ended without a carrier event.
pub fn record_released(context: &Context, released: ReleasedCalls) {
    let dial = &context.metrics.dial;
    dial.record_ended(Outcome::Canceled, released.canceled);
    dial.record_ended(Outcome::Expired, released.expired);
}

async fn purge_uploads(context: &Context) -> Result<()> {
    let (pool, store) = (&context.pool, &context.store);
    for mail in ingest::give_up_jobless_unscoped(pool, store).await? {
        context.wakeups.notify_job(&mail);
    }
    ingest::purge_files_unscoped(pool, store, &context.config.uploads).await?;
    Ok(())
}

async fn purge_exports(context: &Context) -> Result<()> {
    let cleared = export::delete_expired_unscoped(&context.pool, &context.store).await?;
    if cleared > 0 {
        tracing::info!(files = cleared, "expired exports were deleted");
    }
    Ok(())
}

async fn reconcile_stale_calls(context: &Context, shutdown: &CancellationToken) -> Result<()> {
    let every =
        TimeDelta::from_std(context.config.reconcile_interval).unwrap_or(TimeDelta::seconds(30));
    let deadline =
        TimeDelta::from_std(context.config.unknown_deadline).unwrap_or(TimeDelta::minutes(5));

    while !shutdown.is_cancelled() {
        let silent =
            claim_stale_unscoped(&context.pool, STALE_CALLS_LIMIT, every, deadline).await?;
        let taken = silent.len();
        stream::iter(silent)
            .for_each_concurrent(CARRIER_CONCURRENCY, async |call| {
                if let Err(error) = reconcile_call(context, &call).await {
                    tracing::warn!(%error, call.id = %call.id, "a stale call could not be reconciled");
                }
            })
            .await;
        if taken < usize::try_from(STALE_CALLS_LIMIT).unwrap_or(usize::MAX) {
            break;
        }
    }
    Ok(())
}

/// Queries the carrier about one call and appends the result to the inbox: the call's state, or
/// its loss after the deadline.
async fn reconcile_call(context: &Context, call: &StaleCall) -> Result<()> {
    let now = context.clock.now();
    let event = match query_carrier(context, call).await {
        Ok(Some(event)) => event,
        Ok(None) if now < call.deadline => return Ok(()),
        // After this long, the carrier's errors count as "not found".
        Err(error) if now < call.deadline + CARRIER_ERROR_LIMIT => return Err(error),
        Ok(None) | Err(_) => {
            tracing::error!(call.id = %call.id, "the carrier has no record of a call: it is lost");
            lost_event(call.carrier_call_id.clone(), now)
        }
    };

    let new = NewCallEvent {
        call: call.id,
        trunk: call.trunk,
        source: EventSource::Poll,
        event,
    };

    let mut db = context.pool.acquire().await?;
    append_events_unscoped(&mut db, &[new]).await?;
    context.wakeups.notify(WakeupChannel::Inbox);
    Ok(())
}

async fn query_carrier(context: &Context, call: &StaleCall) -> Result<Option<CallEvent>> {
    let Some(id) = &call.carrier_call_id else {
        return search_carrier(context, call).await;
    };

    let keys = &context.config.keys;
    let account = context
        .accounts
        .get(&context.pool, keys, call.trunk)
        .await?;
    let carrier = context.carriers.adapter(account.kind);
    let Some(record) = carrier.fetch(&account, id).await? else {
        return Ok(None);
    };

    let rank = record.event.status.map_or(0, CallStatus::rank);
    if record.event.status != Some(CallStatus::Final) && rank <= call.status.rank() {
        // The carrier reports no progress, so the call exceeds its maximum duration: end it, and
        // the next round records its end. A call that progressed without an event continues.
        tracing::warn!(call.id = %call.id, "a call exceeds its maximum duration: hanging it up");
        carrier.end(&account, id, CallTermination::HangUp).await?;
    }
    Ok(Some(record.event))
}

/// Searches the carrier for the call of a create request without an answer: exactly one record of
/// the right time that is bound to no other call.
async fn search_carrier(context: &Context, call: &StaleCall) -> Result<Option<CallEvent>> {
    let account = context
        .accounts
        .get(&context.pool, &context.config.keys, call.trunk)
        .await?;

    let search = CallSearch {
        to: call.to.clone(),
        from: call.from.clone(),
        created_from: call.submitted_at - CREATED_BEFORE,
        created_until: call.submitted_at + CREATED_AFTER,
    };
    let mut found = context
        .carriers
        .adapter(account.kind)
        .search(&account, &search)
        .await?;

    // Records of other calls to the same number are no candidates.
    let ids: Vec<String> = found
        .iter()
        .map(|record| record.carrier_call_id.clone())
        .collect();
    let bound = bound_carrier_ids_unscoped(&context.pool, call.trunk, &ids).await?;
    found.retain(|record| !bound.contains(&record.carrier_call_id));

    if found.len() > 1 {
        tracing::error!(call.id = %call.id, candidates = found.len(), "several records match a call: adopting none");
        return Ok(None);
    }
    Ok(found.pop().map(|record| record.event))
}
