//! Background noises for agents' voices. They are part of the program; agents refer to them by
//! stable ids.

use serde::Serialize;
use utoipa::ToSchema;

/// Background noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = NoiseAsset, example = json!({"id": "office", "name": "Office"}))]
pub struct Noise {
    /// Value for an agent's `background_noise_id`.
    pub id: &'static str,
    pub name: &'static str,
}

/// All background noises.
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

/// True for the id of a background noise.
#[must_use]
pub fn is_known(id: &str) -> bool {
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
        assert!(ALL.iter().all(|noise| is_known(noise.id)));
        assert!(!is_known("office.wav") && !is_known(""));
    }
}
