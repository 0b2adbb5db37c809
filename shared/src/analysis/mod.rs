//! What is found out about a conversation once it has ended.
//!
//! A rule is its owner's: it asks a model for a summary or for fields, or it calls a tool.
//! Rules are attached to agents, in an order; which rules an agent has stands in `attached`.

pub mod attached;
pub mod rules;

pub use self::rules::{AnalysisType, NewRule, Rule, RuleField};
