//! How money is set aside for calls.

use clap::Args;

use super::Complaints;

/// Settings of money as they are typed.
#[derive(Args, Clone, Debug, Default)]
pub struct MoneySettings {
    /// Seconds of talk that money is held for before a call is dialled, where its agent allows
    /// more; what a call costs beyond is still charged [default: 600].
    #[arg(long, env = "PEAL_HOLD_MAX_SECS", global = true)]
    pub hold_max_secs: Option<String>,
}

impl MoneySettings {
    pub(super) fn check(&self, bad: &mut Complaints) -> Option<i32> {
        match &self.hold_max_secs {
            Some(text) if !text.is_empty() => bad.number("PEAL_HOLD_MAX_SECS", text, 1, 86_400),
            _ => Some(600),
        }
    }
}
