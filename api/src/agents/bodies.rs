//! Request bodies and error responses of agent updates, in which every field is optional. They
//! only describe the API: a body is merged into the agent, which is then validated as a whole.

use peal_shared::agents::config::{ModelConfig, SpecificConfig};
use peal_shared::voices::TtsConfig;
use serde::Deserialize;
use utoipa::{IntoResponses, ToSchema};

use crate::http::openapi::ProblemDocument;

/// The parts of an agent to change.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct UpdateAgent {
    #[schema(nullable = false)]
    agent: Option<ProfilePart>,
    #[schema(nullable = false)]
    agent_model_config: Option<ModelConfig>,
    #[schema(nullable = false)]
    tts_config: Option<TtsConfig>,
    /// Null removes the configuration.
    transcriber_config: Option<TranscriberPart>,
    /// Null removes the configuration.
    vad_config: Option<VadPart>,
    #[schema(nullable = false)]
    agent_specific_config: Option<SpecificConfig>,
}

/// Identity of the agent, and its first message.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct ProfilePart {
    #[schema(nullable = false, min_length = 1, max_length = 200)]
    name: Option<String>,
    #[schema(max_length = 2000)]
    description: Option<String>,
    #[schema(nullable = false)]
    is_active: Option<bool>,
    #[schema(nullable = false)]
    recording_enabled: Option<bool>,
    /// Alias: `welcome_message`.
    #[schema(nullable = false, max_length = 4000)]
    first_response_message: Option<String>,
    #[schema(nullable = false)]
    apply_noise_reduction: Option<bool>,
    #[schema(nullable = false)]
    machine_detection: Option<bool>,
    /// Covers future calls; calls that were made under it stay covered.
    #[schema(nullable = false)]
    hipaa_compliance: Option<bool>,
}

/// Speech recognition. Both fields are required the first time.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct TranscriberPart {
    #[schema(nullable = false, min_length = 1, max_length = 200)]
    transcriber_model_name: Option<String>,
    #[schema(nullable = false, example = "hi-IN")]
    language: Option<String>,
}

/// Voice activity detection. The provider is required the first time.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct VadPart {
    #[schema(nullable = false, min_length = 1, max_length = 200)]
    vad_provider_id: Option<String>,
    #[schema(nullable = false, minimum = 0.0, maximum = 1.0)]
    threshold: Option<f64>,
    #[schema(nullable = false, minimum = 0, maximum = 60_000)]
    min_speech_duration_ms: Option<i32>,
    #[schema(nullable = false, minimum = 0, maximum = 60_000)]
    min_silence_duration_ms: Option<i32>,
    #[schema(nullable = false, minimum = 0, maximum = 86_400)]
    max_allowed_silence_duration: Option<i32>,
    #[schema(nullable = false, minimum = 8_000, maximum = 48_000)]
    sampling_rate: Option<i32>,
}

/// Error responses of an agent update, besides the common ones.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "its variants are read by the macro alone")]
pub enum AgentUpdateErrors {
    /// The agent is active, and the force parameter was not sent.
    #[response(status = 400, content_type = "application/problem+json")]
    Active(ProblemDocument),
    /// No such agent.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(ProblemDocument),
    /// A running batch or a call in progress uses the agent.
    #[response(status = 409, content_type = "application/problem+json")]
    InUse(ProblemDocument),
}
