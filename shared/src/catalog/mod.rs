pub mod background_noises;
pub mod providers;
