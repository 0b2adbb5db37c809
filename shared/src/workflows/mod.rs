//! Workflows: conversations that follow a graph instead of a prompt.
//!
//! A node speaks, asks, branches on a variable, calls a tool, transfers the call or hangs up;
//! transitions lead from node to node. `graph` checks that a graph leads to an end and names the
//! faulty nodes; `kept` stores workflows.

pub mod graph;
pub mod store;

pub use self::graph::{Node, NodeKind, Transition, WorkflowGraph};
pub use crate::workflows::store::{NewWorkflow, Workflow};
