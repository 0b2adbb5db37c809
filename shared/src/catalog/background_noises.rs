//! Background noises for agents' voices. They are part of the program; agents refer to them by
//! stable ids.

use serde::Serialize;
use utoipa::ToSchema;

/// Background noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = NoiseAsset, example = json!({"id": "office", "name": "Office"}))]
pub struct BackgroundNoise {
    /// Value for an agent's `background_noise_id`.
    pub id: &'static str,
    pub name: &'static str,
}

/// All background noises.
pub const ALL: [BackgroundNoise; 6] = [
    BackgroundNoise {
        id: "office",
        name: "Office",
    },
    BackgroundNoise {
        id: "call-centre",
        name: "Call centre",
    },
    BackgroundNoise {
        id: "cafe",
        name: "Café",
    },
    BackgroundNoise {
        id: "street",
        name: "Street",
    },
    BackgroundNoise {
        id: "rain",
        name: "Rain",
    },
    BackgroundNoise {
        id: "room",
        name: "Quiet room",
    },
];

/// True for the id of a background noise.
#[must_use]
pub fn exists(id: &str) -> bool {
    ALL.iter().any(|noise| noise.id == id)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique() {
        let ids: HashSet<&str> = ALL.iter().map(|noise| noise.id).collect();
        assert_eq!(ids.len(), ALL.len());
        assert!(ALL.iter().all(|noise| exists(noise.id)));
        assert!(!exists("office.wav") && !exists(""));
    }
}
