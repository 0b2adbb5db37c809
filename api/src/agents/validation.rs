//! Validation of an agent's settings.

use std::collections::HashSet;

use chrono_tz::Tz;
use peal_shared::agents::config::{
    AgentSetup, ModelConfig, ProfileConfig, SpecificConfig, TransferRoute, VadConfig,
};
use peal_shared::agents::webhooks::{IncomingWebhook, OUTGOING_PATH, OutgoingWebhook};
use peal_shared::catalog::background_noises;
use peal_shared::outbound::OutboundClient;
use peal_shared::platform::e164::E164;
use peal_shared::voices::TtsConfig;

use crate::http::extract::FieldErrors;

const MAX_CODE_CHARS: usize = 200;
const MAX_TEXT_CHARS: usize = 2000;
/// Carriers refuse to speak longer texts in one go.
const MAX_SPOKEN_CHARS: usize = 4000;
const MAX_PROMPT_CHARS: usize = 50_000;
const MAX_PARAMETER_BYTES: usize = 8 * 1024;
const MAX_ROUTES: usize = 20;
const MAX_ATTACHED_VARIABLES: usize = 50;
const DAY_SECS: i32 = 86_400;

/// Collects all errors in an agent's settings. The webhook's URL and the background noise are
/// checked only when they change: an agent whose stored URL or noise is no longer valid can
/// still be changed otherwise.
pub fn check(
    fields: &mut FieldErrors,
    outbound: &OutboundClient,
    setup: &AgentSetup,
    before: Option<&AgentSetup>,
) {
    check_profile(fields, &setup.agent);
    check_model(fields, &setup.agent_model_config);
    check_voice(fields, &setup.tts_config);

    if let Some(transcriber) = &setup.transcriber_config {
        let path = "transcriber_config.transcriber_model_name";
        let name = &transcriber.transcriber_model_name;
        fields.check_text(name, path, 1, MAX_CODE_CHARS);
        check_language(fields, &transcriber.language, "transcriber_config.language");
    }

    if let Some(vad) = &setup.vad_config {
        check_vad(fields, vad);
    }

    check_specific(fields, &setup.agent_specific_config);

    let noise = |setup: &AgentSetup| setup.agent_specific_config.background_noise_id.clone();
    if let Some(id) = noise(setup)
        && before.and_then(noise).as_ref() != Some(&id)
    {
        fields.check(
            background_noises::exists(&id),
            "agent_specific_config.background_noise_id",
            "unknown",
            "must be an id that GET /api/v1/noise-assets lists, or null for none",
        );
    }

    if let Some(outgoing) = setup.outgoing_webhook() {
        let before = before.and_then(AgentSetup::outgoing_webhook);
        check_outgoing(fields, outbound, outgoing, before);
    }
}

fn check_profile(fields: &mut FieldErrors, agent: &ProfileConfig) {
    fields.check_text(agent.name.trim(), "agent.name", 1, 200);
    check_optional(
        fields,
        agent.description.as_deref(),
        "agent.description",
        0,
        MAX_TEXT_CHARS,
    );
    let spoken = &agent.first_response_message;
    fields.check_text(spoken, "agent.first_response_message", 0, MAX_SPOKEN_CHARS);
}

fn check_model(fields: &mut FieldErrors, model: &ModelConfig) {
    let name = model.model_name.as_deref();
    check_optional(
        fields,
        name,
        "agent_model_config.model_name",
        1,
        MAX_CODE_CHARS,
    );

    if let Some(temperature) = model.temperature {
        fields.check_fraction(temperature, "agent_model_config.temperature", 0.0, 2.0);
    }
    if let Some(tokens) = model.max_tokens {
        fields.check_range(tokens, "agent_model_config.max_tokens", 1, 100_000);
    }

    let path = "agent_model_config.system_prompt";
    fields.check_text(&model.system_prompt, path, 0, MAX_PROMPT_CHARS);
}

fn check_voice(fields: &mut FieldErrors, voice: &TtsConfig) {
    let model = voice.tts_model_name.as_deref();
    check_optional(
        fields,
        model,
        "tts_config.tts_model_name",
        1,
        MAX_CODE_CHARS,
    );

    check_language(fields, &voice.language, "tts_config.language");
    let name = voice.voice_name.as_deref();
    check_optional(fields, name, "tts_config.voice_name", 1, MAX_CODE_CHARS);

    let parameters = serde_json::to_string(&voice.voice_parameters).unwrap_or_default();
    let path = "tts_config.voice_parameters";

    fields.check(
        parameters.len() <= MAX_PARAMETER_BYTES,
        path,
        "length",
        "must be at most 8192 bytes of JSON",
    );
    fields.check(
        !parameters.contains("\\u0000"),
        path,
        "characters",
        "must not have NUL characters",
    );
}

fn check_vad(fields: &mut FieldErrors, vad: &VadConfig) {
    fields.check_text(
        &vad.vad_provider_id,
        "vad_config.vad_provider_id",
        1,
        MAX_CODE_CHARS,
    );

    fields.check_fraction(vad.threshold, "vad_config.threshold", 0.0, 1.0);
    let (speech, silence) = (vad.min_speech_duration_ms, vad.min_silence_duration_ms);
    fields.check_range(speech, "vad_config.min_speech_duration_ms", 0, 60_000);
    fields.check_range(silence, "vad_config.min_silence_duration_ms", 0, 60_000);

    let path = "vad_config.max_allowed_silence_duration";
    fields.check_range(vad.max_allowed_silence_duration, path, 0, DAY_SECS);
    fields.check_range(vad.sampling_rate, "vad_config.sampling_rate", 8_000, 48_000);
}

fn check_specific(fields: &mut FieldErrors, specific: &SpecificConfig) {
    let path = |field: &str| format!("agent_specific_config.{field}");

    let timeout = specific.session_timeout;
    fields.check_range(timeout, &path("session_timeout"), 1, DAY_SECS);
    let silence = specific.end_of_speech_timeout;
    fields.check_fraction(silence, &path("end_of_speech_timeout"), 0.0, 60.0);
    let tokens = specific.max_output_tokens;
    fields.check_range(tokens, &path("max_output_tokens"), 1, 100_000);

    fields.check(
        specific.timezone.parse::<Tz>().is_ok(),
        &path("timezone"),
        "timezone",
        "must be the IANA name of a time zone, such as Asia/Kolkata",
    );

    if let Some(secs) = specific.time_to_cut {
        fields.check_range(secs, &path("time_to_cut"), 1, DAY_SECS);
    }
    let cut_message = specific.message_of_cut.as_deref();
    check_optional(
        fields,
        cut_message,
        &path("message_of_cut"),
        0,
        MAX_TEXT_CHARS,
    );

    let volume = specific.background_noise_volume;
    fields.check_range(volume, &path("background_noise_volume"), 0, 100);

    check_routes(
        fields,
        &specific.inbound_transfer_routes,
        &path("inbound_transfer_routes"),
    );

    let webhooks = specific.webhooks.as_ref();
    if let Some(incoming) = webhooks.and_then(|webhooks| webhooks.incoming.as_ref()) {
        check_incoming(fields, incoming, &path("webhooks.incoming"));
    }
}

fn check_routes(fields: &mut FieldErrors, routes: &[TransferRoute], path: &str) {
    fields.check(
        routes.len() <= MAX_ROUTES,
        path,
        "length",
        format!("an agent has at most {MAX_ROUTES} transfer routes"),
    );

    let mut ids = HashSet::new();
    for (place, route) in routes.iter().enumerate() {
        let path = |field: &str| format!("{path}.{place}.{field}");

        if let Some(id) = &route.route_id {
            fields.check_text(id, &path("route_id"), 1, 64);
            let is_new = ids.insert(id);
            fields.check(
                is_new,
                &path("route_id"),
                "duplicate",
                "is a duplicate; change one",
            );
        }

        let (name, condition) = (&route.display_name, &route.condition_when_to_transfer);
        check_optional(fields, name.as_deref(), &path("display_name"), 0, 200);
        let condition_path = path("condition_when_to_transfer");
        check_optional(
            fields,
            condition.as_deref(),
            &condition_path,
            0,
            MAX_TEXT_CHARS,
        );

        if let Err(error) = E164::parse(&route.phone_number, None) {
            fields.check(
                false,
                &path("phone_number"),
                error.code(),
                error.to_string(),
            );
        }
    }
}

fn check_incoming(fields: &mut FieldErrors, incoming: &IncomingWebhook, path: &str) {
    let path = format!("{path}.attached_variables");
    fields.check(
        incoming.attached_variables.len() <= MAX_ATTACHED_VARIABLES,
        &path,
        "length",
        format!("at most {MAX_ATTACHED_VARIABLES} variables can be attached"),
    );

    for (place, variable) in incoming.attached_variables.iter().enumerate() {
        fields.check_text(&variable.name, &format!("{path}.{place}.name"), 1, 64);
        let default = variable.default_value.as_deref();
        let path = format!("{path}.{place}.default_value");
        check_optional(fields, default, &path, 0, MAX_TEXT_CHARS);
    }
}

fn check_outgoing(
    fields: &mut FieldErrors,
    outbound: &OutboundClient,
    outgoing: &OutgoingWebhook,
    before: Option<&OutgoingWebhook>,
) {
    let path = |field: &str| format!("{}.{field}", OUTGOING_PATH.join("."));

    if before.is_none_or(|before| before.url != outgoing.url) {
        match outbound.parse_url(&outgoing.url) {
            Ok(_target) => fields.check_text(&outgoing.url, &path("url"), 1, MAX_TEXT_CHARS),
            Err(why) => fields.check(false, &path("url"), "url", why),
        }
    }

    for (field, why) in outgoing.credentials().field_errors() {
        fields.check(false, &path(&field), "value_error", why);
    }

    fields.check_range(outgoing.retry_count, &path("retry_count"), 0, 10);
}

fn check_optional(
    fields: &mut FieldErrors,
    text: Option<&str>,
    path: &str,
    least: usize,
    most: usize,
) {
    if let Some(text) = text {
        fields.check_text(text, path, least, most);
    }
}

fn check_language(fields: &mut FieldErrors, language: &str, path: &str) {
    fields.check(
        is_language(language),
        path,
        "language",
        "must be a language tag, such as en-US or hi-IN",
    );
}

/// True for a language tag: `en`, `en-US`, `zh-Hant-TW`.
pub fn is_language(tag: &str) -> bool {
    let mut parts = tag.split('-');
    let first = parts.next().unwrap_or_default();
    (2..=3).contains(&first.len())
        && first.bytes().all(|b| b.is_ascii_alphabetic())
        && parts.all(|part| {
            (2..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
        })
        && tag.len() <= 35
}
