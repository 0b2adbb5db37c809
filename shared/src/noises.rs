//! The sounds that may be heard behind an agent's voice. They are part of the program: agents
//! name them by ids that stay.

use serde::Serialize;
use utoipa::ToSchema;

/// A sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = NoiseAsset, example = json!({"id": "office", "name": "Office"}))]
pub struct Noise {
    /// What an agent's `background_noise_id` names.
    pub id: &'static str,
    pub name: &'static str,
}

/// All of them.
pub const ALL: [Noise; 6] = [
    Noise {
        id: "office",
        name: "Office",
    },
    Noise {
        id: "call-centre",
        name: "Call centre",
    },
    Noise {
        id: "cafe",
        name: "Café",
    },
    Noise {
        id: "street",
        name: "Street",
    },
    Noise {
        id: "rain",
        name: "Rain",
    },
    Noise {
        id: "room",
        name: "Quiet room",
    },
];

/// Whether there is a sound of this id.
#[must_use]
pub fn is_known(id: &str) -> bool {
    ALL.iter().any(|noise| noise.id == id)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_sound_has_an_id_of_its_own() {
        let ids: HashSet<&str> = ALL.iter().map(|noise| noise.id).collect();
        assert_eq!(ids.len(), ALL.len());
        assert!(ALL.iter().all(|noise| is_known(noise.id)));
        assert!(!is_known("office.wav") && !is_known(""));
    }
}
