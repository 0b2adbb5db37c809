//! What is repaired without anybody asking: workers that died, carriers that fell silent,
//! batches that ended unnoticed. Every repair is one statement that any replica may run at any
//! time; running it twice changes nothing.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use peal_shared::Result;
use peal_shared::bells::Bell;
use peal_shared::calls::apply::complete_finished_unscoped;
use peal_shared::calls::inbox::{NewEvent, Source, append_unscoped};
use peal_shared::calls::reconcile::{
    Silent, abandon_submissions_unscoped, bound_unscoped, lost, release_unscoped,
    take_silent_unscoped,
};
use peal_shared::context::Context;
use peal_shared::telephony::{CallEvent, CallStatus, Ending, Search};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often the quick repairs run.
const REPAIR_EVERY: Duration = Duration::from_secs(2);
/// Silent calls asked about in one round.
const ASK_LIMIT: i64 = 50;
/// Within how long of the request the carrier's record of a call must have been made.
const CREATED_BEFORE: TimeDelta = TimeDelta::seconds(5);
const CREATED_BEHIND: TimeDelta = TimeDelta::seconds(30);

/// Repairs until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut repairs = interval(REPAIR_EVERY);
    let mut questions = interval(context.config.reconcile_every);
    repairs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    questions.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = repairs.tick() => repair(&context).await,
            _ = questions.tick() => ask_about_silent(&context, &shutdown).await,
        };
        if let Err(error) = done {
            tracing::warn!(%error, "a periodic repair failed; it runs again shortly");
        }
    }
}

async fn repair(context: &Context) -> Result<()> {
    let mut db = context.pool.acquire().await?;
    let abandoned = abandon_submissions_unscoped(&mut db).await?;
    if abandoned > 0 {
        tracing::warn!(calls = abandoned, "a worker died while it placed calls");
    }
    let released = release_unscoped(&mut db).await?;
    let completed = complete_finished_unscoped(&mut db).await?;
    if released > 0 || !completed.is_empty() {
        context.bells.ring(Bell::Dial);
    }
    Ok(())
}

async fn ask_about_silent(context: &Context, shutdown: &CancellationToken) -> Result<()> {
    let every =
        TimeDelta::from_std(context.config.reconcile_every).unwrap_or(TimeDelta::seconds(30));
    let deadline =
        TimeDelta::from_std(context.config.unknown_deadline).unwrap_or(TimeDelta::minutes(5));
    loop {
        let silent = take_silent_unscoped(&context.pool, ASK_LIMIT, every, deadline).await?;
        let full = silent.len() >= usize::try_from(ASK_LIMIT).unwrap_or(usize::MAX);
        for call in silent {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            if let Err(error) = ask(context, &call).await {
                tracing::warn!(%error, call.id = %call.id, "the carrier could not be asked about a silent call");
            }
        }
        if !full {
            return Ok(());
        }
    }
}

/// Asks the carrier about one call and writes down what it says.
async fn ask(context: &Context, call: &Silent) -> Result<()> {
    let account = context
        .accounts
        .get(&context.pool, &context.config.keys, call.trunk)
        .await?;
    let carrier = context.carriers.of(account.kind);
    let now = context.clock.now();
    let learnt = match &call.carrier_call_id {
        Some(id) => match carrier.fetch(&account, id).await? {
            Some(record) if record.event.status != Some(CallStatus::Final) => {
                // Alive beyond its longest time: end it, the next look sees how it ended.
                tracing::warn!(call.id = %call.id, "a call outlived its limit: hanging it up");
                carrier.end(&account, id, Ending::HangUp).await?;
                Some(record.event)
            }
            Some(record) => Some(record.event),
            None => None,
        },
        None => find(context, call).await?,
    };
    let event = match learnt {
        Some(event) => event,
        None if now >= call.deadline => {
            tracing::error!(call.id = %call.id, "no trace of a call at its carrier: it is lost");
            lost(now)
        }
        None => return Ok(()),
    };
    let new = NewEvent {
        call: call.id,
        trunk: call.trunk,
        source: Source::Poll,
        event,
    };
    let mut db = context.pool.acquire().await?;
    append_unscoped(&mut db, &[new]).await?;
    context.bells.ring(Bell::Inbox);
    Ok(())
}

/// Looks for the call of a create request that had no answer: exactly one record of the right
/// time that belongs to no other call of ours.
async fn find(context: &Context, call: &Silent) -> Result<Option<CallEvent>> {
    let account = context
        .accounts
        .get(&context.pool, &context.config.keys, call.trunk)
        .await?;
    let search = Search {
        to: call.to.clone(),
        from: call.from.clone(),
        created_from: call.submitted_at - CREATED_BEFORE,
        created_until: call.submitted_at + CREATED_BEHIND,
    };
    let mut found = context
        .carriers
        .of(account.kind)
        .search(&account, &search)
        .await?;
    let ids: Vec<String> = found
        .iter()
        .map(|record| record.carrier_call_id.clone())
        .collect();
    let bound = bound_unscoped(&context.pool, call.trunk, &ids).await?;
    found.retain(|record| !bound.contains(&record.carrier_call_id));
    if found.len() > 1 {
        tracing::error!(call.id = %call.id, candidates = found.len(), "several calls could be this one: adopting none");
        return Ok(None);
    }
    Ok(found.pop().map(|record| record.event))
}
