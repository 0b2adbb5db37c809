//! Force parameters of updates and deletions of resources in use.

use serde::Deserialize;
use utoipa::IntoParams;

/// Force parameter of an update.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ForceUpdate {
    /// Update the resource although a running batch or a call in progress uses it; later calls use
    /// the new version.
    force_update: Option<bool>,
}

impl ForceUpdate {
    /// True when the force parameter was sent as true.
    pub fn requested(&self) -> bool {
        self.force_update.unwrap_or_default()
    }
}

/// Force parameter of a deletion.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ForceRemoval {
    /// Remove the resource from all agents that have it; rules and workflows that call it become
    /// inactive.
    pub force: Option<bool>,
}
