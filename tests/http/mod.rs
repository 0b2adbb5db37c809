//! Rules of all routes: lists, scopes, idempotency, CORS, shapes of bodies.

pub mod changes;
pub mod cors;
pub mod idempotency;
pub mod in_use;
pub mod json_shape;
pub mod lists;
pub mod scoping;
