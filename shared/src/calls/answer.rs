//! Answer documents, and the fence against duplicate and unwanted calls.
//!
//! The carrier fetches the answer document from a URL with the call's id in it. The first
//! carrier call that fetches it owns the attempt. A second one (the create request was processed
//! twice) is hung up, and so is a call that is no longer wanted. Fetching twice gives the same
//! document.

use std::collections::HashMap;

use sqlx::PgConnection;

use crate::agents::fill_placeholders;
use crate::platform::error::Result;
use crate::platform::ids::CallId;
use crate::platform::privacy::Variables;
use crate::telephony::{AnswerDocument, CallStatus, CallVerb};

/// Deduplication key of the event for a fetched answer document: the first fetch owns the call.
pub const ANSWER_EVENT_KEY: &str = "answer";
/// Silence before the first word, which would be cut off otherwise.
const LEAD_IN_SECS: u32 = 1;

/// A carrier's request for the answer document of a call.
#[derive(Clone, Debug)]
pub struct AnswerRequest {
    /// Index of the request in the caller's list.
    pub index: usize,
    pub call: CallId,
    /// The carrier call that fetched the document.
    pub carrier_call_id: String,
}

/// Builds the answer documents, each with the index of its request. Call it after the answers
/// have been appended to the inbox, which decides the first fetch and checks that the calls
/// belong to the requesting trunks.
pub async fn answer_documents_unscoped(
    db: &mut PgConnection,
    answered: &[AnswerRequest],
) -> Result<Vec<(usize, AnswerDocument)>> {
    // 1. Load the calls, with the first fetch of each.
    let calls: Vec<CallId> = answered.iter().map(|answered| answered.call).collect();
    let rows = sqlx::query!(
        r#"select c.id as "id!: CallId", c.status as "status!: CallStatus", c.carrier_call_id,
                  c.variable_values as "variable_values!: Variables", a.first_response_message as "first_response_message!",
                  a.language as "language!", a.voice,
                  b.status as "batch_status?", e.carrier_call_id as "first_answer?"
           from calls c
           join agents a on a.id = c.agent_id
           left join call_batches b on b.id = c.batch_id
           left join call_events e on e.call_id = c.id and e.dedup_key = 'answer'
           where c.id = any($1)"#,
        &calls as &[CallId],
    )
    .fetch_all(db)
    .await?;

    // 2. Group the requests by call.
    let mut requests: HashMap<CallId, Vec<&AnswerRequest>> = HashMap::new();
    for answered in answered {
        requests.entry(answered.call).or_default().push(answered);
    }

    // 3. Only the owner of a call that is still wanted gets the opening.
    let mut documents = Vec::with_capacity(answered.len());
    for row in rows {
        let owner = row.carrier_call_id.or(row.first_answer);
        let wanted = !matches!(
            row.status,
            CallStatus::Canceling | CallStatus::Final | CallStatus::Queued
        ) && row.batch_status.as_deref() != Some("stopped");

        let opening = opening_document(
            fill_placeholders(
                &row.first_response_message,
                row.variable_values.for_speech(),
            ),
            row.language,
            row.voice,
        );

        for AnswerRequest {
            index: n,
            carrier_call_id,
            ..
        } in requests.remove(&row.id).unwrap_or_default()
        {
            let document = match wanted && owner.as_deref() == Some(carrier_call_id) {
                true => opening.clone(),
                false => AnswerDocument::hang_up(),
            };
            documents.push((*n, document));
        }
    }
    Ok(documents)
}

/// Builds the document of an agent's first message; hangs up when the message is empty.
fn opening_document(text: String, language: String, voice: Option<String>) -> AnswerDocument {
    if text.trim().is_empty() {
        return AnswerDocument::hang_up();
    }
    AnswerDocument {
        verbs: vec![
            CallVerb::Pause { secs: LEAD_IN_SECS },
            CallVerb::Say {
                text,
                language,
                voice,
            },
            CallVerb::Hangup,
        ],
    }
}

/// Stores the agents' first messages of answered calls as turns, in bulk.
pub async fn store_first_turns_unscoped(db: &mut PgConnection, calls: &[CallId]) -> Result<()> {
    if calls.is_empty() {
        return Ok(());
    }

    let rows = sqlx::query!(
        r#"select c.id as "id: CallId", c.variable_values as "variable_values: Variables", a.first_response_message
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
                fill_placeholders(
                    &row.first_response_message,
                    row.variable_values.for_speech(),
                ),
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
