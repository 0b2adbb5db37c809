pub mod changes;
pub mod cors;
pub mod idempotency;
pub mod in_use;
pub mod json_shape;
pub mod lists;
pub mod scoping;
