//! What a call says when it is answered, and the fence in front of it.
//!
//! The carrier fetches the answer document from a URL with the call's id in it. The first
//! carrier call that fetches it owns the attempt: if a second one exists (a create request that
//! was processed twice), it hears nothing and is hung up. So is a call nobody wants any more.
//! Fetching twice gives the same document.

use sqlx::PgConnection;

use crate::agents::fill_in;
use crate::error::{Error, Result};
use crate::ids::{CallId, TrunkId};
use crate::telephony::{CallStatus, Document, Verb};

/// The key of the event that says that a carrier fetched the answer document; the first one of
/// a call owns it.
pub const ANSWERED: &str = "answer";
/// Silence before the first word, so that its beginning is not cut off.
const LEAD_IN_SECS: u32 = 1;

/// The document for a call that was answered as `carrier_call_id`. To be called after the
/// answer has been appended to the inbox, which decides who came first.
///
/// # Errors
/// [`Error::NotFound`] for a call that does not exist on this trunk.
pub async fn document_unscoped(
    db: &mut PgConnection,
    trunk: TrunkId,
    call: CallId,
    carrier_call_id: &str,
) -> Result<Document> {
    let row = sqlx::query!(
        r#"select c.status as "status: CallStatus", c.carrier_call_id, c.variable_values,
                  a.first_response_message, a.language, a.voice,
                  b.status as "batch_status?",
                  (select e.carrier_call_id from call_events e
                   where e.call_id = c.id and e.dedup_key = 'answer') as first_answer
           from calls c
           join agents a on a.id = c.agent_id
           left join call_batches b on b.id = c.batch_id
           where c.id = $1
             and c.trunk_id = $2"#,
        call as CallId,
        trunk as TrunkId,
    )
    .fetch_optional(&mut *db)
    .await?
    .ok_or(Error::NotFound("Call"))?;
    let owner = row.carrier_call_id.or(row.first_answer);
    let wanted = !matches!(
        row.status,
        CallStatus::Canceling | CallStatus::Final | CallStatus::Queued
    ) && row.batch_status.as_deref() != Some("stopped")
        && owner.as_deref() == Some(carrier_call_id);
    if !wanted {
        return Ok(Document::hang_up());
    }
    let text = fill_in(&row.first_response_message, &row.variable_values);
    if text.trim().is_empty() {
        return Ok(Document::hang_up());
    }
    Ok(Document {
        verbs: vec![
            Verb::Pause { secs: LEAD_IN_SECS },
            Verb::Say {
                text,
                language: row.language,
                voice: row.voice,
            },
            Verb::Hangup,
        ],
    })
}

/// Writes down what agents said first on calls that were answered, in bulk.
///
/// # Errors
/// [`Error::Unexpected`] from the database.
pub async fn note_first_turns_unscoped(db: &mut PgConnection, calls: &[CallId]) -> Result<()> {
    if calls.is_empty() {
        return Ok(());
    }
    let rows = sqlx::query!(
        r#"select c.id as "id: CallId", c.variable_values, a.first_response_message
           from calls c
           join agents a on a.id = c.agent_id
           where c.id = any($1)
             and c.answered_at is not null
             and a.first_response_message <> ''"#,
        calls as &[CallId],
    )
    .fetch_all(&mut *db)
    .await?;
    let (ids, texts): (Vec<CallId>, Vec<String>) = rows
        .into_iter()
        .map(|row| {
            (
                row.id,
                fill_in(&row.first_response_message, &row.variable_values),
            )
        })
        .unzip();
    sqlx::query!(
        "insert into call_turns (org_id, call_id, turn_no, role, text)
         select c.org_id, c.id, 1, 'agent', t.text
         from unnest($1::uuid[], $2::text[]) as t (id, text)
         join calls c on c.id = t.id
         on conflict do nothing",
        &ids as &[CallId],
        &texts,
    )
    .execute(db)
    .await?;
    Ok(())
}
