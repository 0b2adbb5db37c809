//! Post-call analysis of conversations.
//!
//! A rule belongs to a user. It asks a model for a summary or for fields, or it calls a tool
//! ([`rules`]). Rules are attached to agents, in an order ([`attached`]).

pub mod attached;
pub mod rules;

pub use self::rules::{AnalysisType, NewRule, Rule, RuleField};
