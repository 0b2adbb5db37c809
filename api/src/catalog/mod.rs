//! Catalogue routes: providers of models and voices, voices, background noises.

pub mod noise_assets;
pub mod providers;
pub mod voices;
