pub mod admin;
pub mod bootstrap;
