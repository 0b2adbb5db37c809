//! Settings of holds: money reserved for calls.

use clap::Args;

use super::ConfigErrors;

/// Money settings, as typed.
#[derive(Args, Clone, Debug, Default)]
pub struct MoneySettings {
    /// Most seconds of talk covered by the hold that is placed before a call is dialled; longer
    /// talk is still charged [default: 600].
    #[arg(long, env = "PEAL_HOLD_MAX_SECS", global = true)]
    pub hold_max_secs: Option<String>,
}

impl MoneySettings {
    pub(super) fn validate(&self, errors: &mut ConfigErrors) -> Option<i32> {
        match &self.hold_max_secs {
            Some(text) if !text.is_empty() => {
                errors.parse_number("PEAL_HOLD_MAX_SECS", text, 1, 86_400)
            }
            _ => Some(600),
        }
    }
}
