//! Configurations of an agent, under the contract's field names. The API checks the limits of
//! the values.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::voices::TtsConfig;

use super::webhooks;
use super::webhooks::{OutgoingWebhook, Webhooks};

/// All configurations of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSetup {
    pub agent: ProfileConfig,
    #[serde(default)]
    pub agent_model_config: ModelConfig,
    #[serde(default)]
    pub tts_config: TtsConfig,
    pub transcriber_config: Option<TranscriberConfig>,
    pub vad_config: Option<VadConfig>,
    #[serde(default)]
    pub agent_specific_config: SpecificConfig,
}

/// Identity of the agent, and its first message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Profile)]
pub struct ProfileConfig {
    #[schema(min_length = 1, max_length = 200, example = "Support voice agent")]
    pub name: String,
    #[schema(max_length = 2000)]
    pub description: Option<String>,
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub is_active: bool,
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub recording_enabled: bool,
    /// First message on a call; `{{name}}` is a variable. Alias: `welcome_message`.
    #[serde(default, alias = "welcome_message")]
    #[schema(
        default = "",
        max_length = 4000,
        example = "Hello {{name}}, this is Acme."
    )]
    pub first_response_message: String,
    #[serde(default)]
    #[schema(default = false)]
    pub apply_noise_reduction: bool,
    /// Ask the carrier whether a person or a machine answered.
    #[serde(default)]
    #[schema(default = false)]
    pub machine_detection: bool,
    /// Puts future calls under HIPAA, as for all calls of an organization with the flag: they are
    /// not recorded, whatever `recording_enabled` says, and their variables' values are hidden.
    /// Clearing the flag does not change that for calls made under it, and setting it does not
    /// change earlier calls. The rows of the agent's batches show no values while it is set. It
    /// may be changed (by force) while a batch runs.
    #[serde(default)]
    #[schema(default = false)]
    pub hipaa_compliance: bool,
}

/// The language model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// A code or an id of `GET /api/v1/providers/model`. Alias: `model_provider_id`.
    #[serde(alias = "model_provider_id")]
    #[schema(max_length = 200, example = "gpt-4.1-mini")]
    pub model_name: Option<String>,
    #[schema(minimum = 0.0, maximum = 2.0, example = 0.7)]
    pub temperature: Option<f64>,
    #[schema(minimum = 1, maximum = 100_000, example = 256)]
    pub max_tokens: Option<i32>,
    /// May contain `{{variables}}`.
    #[schema(default = "", max_length = 50_000)]
    pub system_prompt: String,
}

/// Speech recognition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TranscriberConfig {
    /// A code or an id of `GET /api/v1/providers/stt`. Alias: `provider_id`.
    #[serde(alias = "provider_id")]
    #[schema(min_length = 1, max_length = 200)]
    pub transcriber_model_name: String,
    /// Language tag, or a list with one tag.
    #[serde(deserialize_with = "one_language")]
    #[schema(pattern = "^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$", example = "hi-IN")]
    pub language: String,
}

/// Voice activity detection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VadConfig {
    /// A code or an id of `GET /api/v1/providers/vad`.
    #[schema(min_length = 1, max_length = 200)]
    pub vad_provider_id: String,
    #[serde(default = "half")]
    #[schema(default = 0.5, minimum = 0.0, maximum = 1.0)]
    pub threshold: f64,
    #[serde(default = "quarter_second")]
    #[schema(default = 250, minimum = 0, maximum = 60_000)]
    pub min_speech_duration_ms: i32,
    #[serde(default = "half_second")]
    #[schema(default = 500, minimum = 0, maximum = 60_000)]
    pub min_silence_duration_ms: i32,
    /// Seconds; 0 means no limit.
    #[serde(default)]
    #[schema(default = 0, minimum = 0, maximum = 86_400)]
    pub max_allowed_silence_duration: i32,
    /// Hertz.
    #[serde(default = "wide_band")]
    #[schema(default = 16_000, minimum = 8_000, maximum = 48_000)]
    pub sampling_rate: i32,
}

/// Behaviour on a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpecificConfig {
    /// The longest call, in seconds.
    #[schema(default = 180, minimum = 1, maximum = 86_400)]
    pub session_timeout: i32,
    /// Seconds of silence after which the callee has finished.
    #[schema(default = 1.5, minimum = 0.0, maximum = 60.0)]
    pub end_of_speech_timeout: f64,
    #[schema(default = false)]
    pub llm_conversation_stop_enabled: bool,
    #[schema(default = false)]
    pub auto_terminate_call: bool,
    #[schema(default = 370, minimum = 1, maximum = 100_000)]
    pub max_output_tokens: i32,
    /// An IANA name.
    #[schema(default = "Asia/Kolkata")]
    pub timezone: String,
    #[schema(max_items = 20)]
    pub inbound_transfer_routes: Vec<TransferRoute>,
    /// Seconds after which the agent ends the call.
    #[schema(minimum = 1, maximum = 86_400)]
    pub time_to_cut: Option<i32>,
    /// Message before the agent ends the call at `time_to_cut`.
    #[schema(max_length = 2000)]
    pub message_of_cut: Option<String>,
    pub end_call_message_mode: EndCallMessageMode,
    /// An id of `GET /api/v1/noise-assets`; an empty string means none.
    #[serde(deserialize_with = "none_when_empty")]
    #[schema(max_length = 200)]
    pub background_noise_id: Option<String>,
    #[schema(default = 100, minimum = 0, maximum = 100)]
    pub background_noise_volume: i32,
    pub webhooks: Option<Webhooks>,
}

impl Default for SpecificConfig {
    fn default() -> Self {
        Self {
            session_timeout: 180,
            end_of_speech_timeout: 1.5,
            llm_conversation_stop_enabled: false,
            auto_terminate_call: false,
            max_output_tokens: 370,
            timezone: "Asia/Kolkata".to_owned(),
            inbound_transfer_routes: Vec::new(),
            time_to_cut: None,
            message_of_cut: None,
            end_call_message_mode: EndCallMessageMode::Fixed,
            background_noise_id: None,
            background_noise_volume: 100,
            webhooks: None,
        }
    }
}

/// Number that the agent may transfer a call to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferRoute {
    /// Assigned when absent: `route-1`, `route-2` ...
    #[schema(max_length = 64)]
    pub route_id: Option<String>,
    #[schema(max_length = 200)]
    pub display_name: Option<String>,
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub enabled: bool,
    #[schema(max_length = 2000)]
    pub condition_when_to_transfer: Option<String>,
    /// In E.164.
    #[schema(example = "+12125550123")]
    pub phone_number: String,
}

/// Source of the last message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndCallMessageMode {
    /// The message as it is written.
    Fixed,
    /// A message that fits the conversation.
    ContextAware,
}

impl AgentSetup {
    /// Webhook that is sent when a call has ended.
    #[must_use]
    pub fn outgoing_webhook(&self) -> Option<&OutgoingWebhook> {
        self.agent_specific_config
            .webhooks
            .as_ref()
            .and_then(|webhooks| webhooks.outgoing.as_ref())
    }

    /// Assigns an id to every transfer route, and removes null parameters.
    pub fn normalize(&mut self) {
        self.tts_config
            .voice_parameters
            .retain(|_, value| !value.is_null());

        let routes = &mut self.agent_specific_config.inbound_transfer_routes;
        let mut taken: Vec<String> = routes
            .iter()
            .filter_map(|route| route.route_id.clone())
            .collect();

        let mut n = 0;
        for route in routes {
            while route.route_id.is_none() {
                n += 1;
                let id = format!("route-{n}");
                if !taken.contains(&id) {
                    taken.push(id.clone());
                    route.route_id = Some(id);
                }
            }
        }
    }

    /// Merges a partial update: objects are merged, all other values are replaced. The result is
    /// untyped JSON.
    pub fn merged_with(&self, mut part: Value) -> crate::Result<Value> {
        let mut whole = serde_json::to_value(self)?;

        for (section, alias, name) in ALIASES {
            if let Some(section) = part.get_mut(section).and_then(Value::as_object_mut)
                && !section.contains_key(name)
                && let Some(value) = section.remove(alias)
            {
                section.insert(name.to_owned(), value);
            }
        }

        webhooks::remove_replaced(&mut whole, &part);
        merge_json(&mut whole, part);
        webhooks::drop_nulls(&mut whole);
        Ok(whole)
    }
}

/// Aliases of fields: section, alias, name.
const ALIASES: [(&str, &str, &str); 4] = [
    ("agent", "welcome_message", "first_response_message"),
    ("agent_model_config", "model_provider_id", "model_name"),
    ("tts_config", "tts_provider_id", "tts_model_name"),
    (
        "transcriber_config",
        "provider_id",
        "transcriber_model_name",
    ),
];

fn merge_json(whole: &mut Value, part: Value) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (name, value) in part {
                merge_json(whole.entry(name).or_insert(Value::Null), value);
            }
        }
        (whole, part) => *whole = part,
    }
}

fn one_language<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum LanguageInput {
        One(String),
        List([String; 1]),
    }
    match LanguageInput::deserialize(input) {
        Ok(LanguageInput::One(one) | LanguageInput::List([one])) => Ok(one),
        Err(_) => Err(serde::de::Error::custom(
            "must be a language such as hi-IN, or a list of one",
        )),
    }
}

fn none_when_empty<'de, D: Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(input)?.filter(|text| !text.is_empty()))
}

fn yes() -> bool {
    true
}

fn half() -> f64 {
    0.5
}

fn quarter_second() -> i32 {
    250
}

fn half_second() -> i32 {
    500
}

fn wide_band() -> i32 {
    16_000
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn setup(value: Value) -> AgentSetup {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn absent_fields_have_the_documented_default() {
        let ada = setup(json!({"agent": {"name": "Ada"}}));
        assert!(ada.agent.is_active && ada.agent.recording_enabled);
        assert!(!ada.agent.apply_noise_reduction && !ada.agent.machine_detection);
        let specific = ada.agent_specific_config;
        assert_eq!(specific.session_timeout, 180);
        assert_eq!(specific.max_output_tokens, 370);
        assert_eq!(specific.timezone, "Asia/Kolkata");
        assert!((specific.end_of_speech_timeout - 1.5).abs() < f64::EPSILON);
        let vad: VadConfig = serde_json::from_value(json!({"vad_provider_id": "silero"})).unwrap();
        assert_eq!(
            (vad.sampling_rate, vad.min_silence_duration_ms),
            (16_000, 500)
        );
    }

    #[test]
    fn a_partial_update_changes_only_its_fields() {
        let ada = setup(json!({
            "agent": {"name": "Ada", "first_response_message": "Hi"},
            "agent_model_config": {"model_name": "m", "temperature": 0.2},
            "tts_config": {"voice_parameters": {"speed": 1, "pitch": {"low": 1}}},
        }));

        let part = json!({
            "agent": {"welcome_message": "Hello"},
            "agent_model_config": {"temperature": null},
            "tts_config": {"voice_parameters": {"speed": null, "pitch": {"high": 2}}},
            "transcriber_config": {"provider_id": "whisper", "language": ["hi-IN"]},
        });

        let mut changed = setup(ada.merged_with(part).unwrap());
        changed.normalize();
        assert_eq!(changed.agent.first_response_message, "Hello");
        assert_eq!(changed.agent.name, "Ada");
        assert_eq!(changed.agent_model_config.model_name.as_deref(), Some("m"));
        assert_eq!(changed.agent_model_config.temperature, None);

        let parameters = Value::Object(changed.tts_config.voice_parameters);
        assert_eq!(parameters, json!({"pitch": {"low": 1, "high": 2}}));
        let transcriber = changed.transcriber_config.unwrap();
        assert_eq!(transcriber.transcriber_model_name, "whisper");
        assert_eq!(transcriber.language, "hi-IN");
    }

    #[test]
    fn a_partial_webhook_update_changes_headers_and_authentication() {
        let outgoing = |outgoing: Value| json!({"agent_specific_config": {"webhooks": {"outgoing": outgoing}}});
        let mut whole = outgoing(json!({
            "url": "https://crm.test", "headers": {"X-Key": "a", "X-Tenant": "b", "Accept": "*/*"},
            "auth": {"type": "bearer", "token": "c"},
        }));
        whole["agent"] = json!({"name": "Ada"});
        let ada = setup(whole);

        // A new authentication type replaces the old one.
        let part = outgoing(json!({
            "headers": {"x-key": "d", "X-Tenant": null},
            "auth": {"type": "basic", "username": "e", "password": "f"},
        }));
        let changed = setup(ada.merged_with(part).unwrap());
        let changed = serde_json::to_value(changed.outgoing_webhook().unwrap()).unwrap();
        assert_eq!(changed["headers"], json!({"Accept": "*/*", "x-key": "d"}));
        assert_eq!(
            changed["auth"],
            json!({"type": "basic", "username": "e", "password": "f"})
        );

        // The same type is merged.
        let part = outgoing(json!({"auth": {"token": "g"}}));
        let changed = setup(ada.merged_with(part).unwrap());
        let changed = serde_json::to_value(changed.outgoing_webhook().unwrap()).unwrap();
        assert_eq!(changed["auth"], json!({"type": "bearer", "token": "g"}));

        // Nulls remove.
        let part = outgoing(json!({"headers": null, "auth": null}));
        let changed = setup(ada.merged_with(part).unwrap());
        let changed = serde_json::to_value(changed.outgoing_webhook().unwrap()).unwrap();
        assert_eq!(changed["headers"], json!({}));
        assert_eq!(changed["auth"], json!({"type": "none"}));

        assert!(!format!("{ada:?}").contains("X-Key"));
    }

    #[test]
    fn routes_without_an_id_get_one_that_is_free() {
        let mut ada = setup(json!({
            "agent": {"name": "Ada"},
            "agent_specific_config": {"inbound_transfer_routes": [
                {"phone_number": "+12125550100"},
                {"phone_number": "+12125550101", "route_id": "route-1"},
                {"phone_number": "+12125550102"},
            ]},
        }));
        ada.normalize();
        let ids: Vec<_> = ada
            .agent_specific_config
            .inbound_transfer_routes
            .iter()
            .filter_map(|route| route.route_id.as_deref())
            .collect();
        assert_eq!(ids, ["route-2", "route-1", "route-3"]);
    }
}
