//! Commands of `peal-api` besides serving: `bootstrap` and `admin`.

pub mod admin;
pub mod bootstrap;
