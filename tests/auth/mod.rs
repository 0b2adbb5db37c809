//! Authentication: login, session tokens, API keys.

pub mod api_keys;
pub mod login;
pub mod tokens;
