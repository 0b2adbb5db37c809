pub mod noise_assets;
pub mod providers;
pub mod voices;
