//! Recordings: a second of silence for every recorded call.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::call::TwilioSid;
use crate::refusal::TwilioError;
use crate::runtime::SimulatorRuntime;

/// Returns the metadata for `.json`, otherwise the audio.
pub(super) async fn fetch(
    State(sim): State<Arc<SimulatorRuntime>>,
    Path((account, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let path = format!("/2010-04-01/Accounts/{account}/Recordings/{file}");
    let (name, kind) = file.split_once('.').unwrap_or((&file, "wav"));
    let Some(sid) = TwilioSid::parse(name, "RE") else {
        return TwilioError::not_found(&path).into_response();
    };

    let metadata = sim.with_board(|board, _| {
        let owner = board
            .accounts
            .authenticate(&account, super::login(&headers).as_ref())
            .ok_or_else(TwilioError::unauthenticated)?;
        let clock = board.clock;
        board
            .find_call(&sid.text("CA"), Some(owner))
            .and_then(|call| board.call(call))
            .filter(|call| call.recorded)
            .map(|call| {
                json!({
                    "sid": call.recording_sid(),
                    "account_sid": account,
                    "call_sid": call.sid.text("CA"),
                    "status": "completed",
                    "duration": call.duration_secs.to_string(),
                    "channels": 1,
                    "source": "OutboundAPI",
                    "start_time": call.answered.map(|at| clock.rfc2822(at)),
                    "date_created": call.answered.map(|at| clock.rfc2822(at)),
                    "api_version": "2010-04-01",
                    "uri": format!("/2010-04-01/Accounts/{account}/Recordings/{name}.json"),
                })
            })
            .ok_or_else(|| TwilioError::not_found(&path))
    });

    match (metadata, kind) {
        (Err(refusal), _) => refusal.into_response(),
        (Ok(metadata), "json") => Json(metadata).into_response(),
        (Ok(_), "wav") => ([(header::CONTENT_TYPE, "audio/x-wav")], silence()).into_response(),
        (Ok(_), _) => TwilioError::not_found(&path).into_response(),
    }
}

/// One second of 8 kHz, 16 bit mono.
fn silence() -> Vec<u8> {
    const RATE: u32 = 8000;
    const DATA: u32 = RATE * 2;
    let mut wav = Vec::new();
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(36 + DATA).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt ");
    wav.extend_from_slice(&16_u32.to_le_bytes());
    for half in [1_u16, 1] {
        wav.extend_from_slice(&half.to_le_bytes());
    }
    wav.extend_from_slice(&RATE.to_le_bytes());
    wav.extend_from_slice(&DATA.to_le_bytes());
    for half in [2_u16, 16] {
        wav.extend_from_slice(&half.to_le_bytes());
    }
    wav.extend_from_slice(b"data");
    wav.extend_from_slice(&DATA.to_le_bytes());
    wav.resize(wav.len() + usize::try_from(DATA).unwrap_or(0), 0);
    wav
}
