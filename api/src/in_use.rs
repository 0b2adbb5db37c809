//! How a client insists on changing or deleting what is in use.

use serde::Deserialize;
use utoipa::IntoParams;

/// Whether to change what a running batch or a call uses.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ForceUpdate {
    /// Change it although a running batch or a call under way uses it; the calls that follow get
    /// it as it is then.
    force_update: Option<bool>,
}

impl ForceUpdate {
    /// Whether it was said.
    pub fn is_said(&self) -> bool {
        self.force_update.unwrap_or_default()
    }
}

/// Whether to delete what is in use.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Force {
    /// Take it away from the agents that have it; rules and workflows that call it become inactive.
    pub force: Option<bool>,
}
