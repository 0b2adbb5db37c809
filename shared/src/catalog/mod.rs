//! Catalogue that the platform keeps for all organisations: providers and background noises.

pub mod background_noises;
pub mod providers;
