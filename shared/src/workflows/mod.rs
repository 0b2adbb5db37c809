//! Workflows: conversations that follow a graph instead of a prompt.
//!
//! A node says something, asks something, branches on a variable, calls a tool, transfers the
//! call or hangs up; transitions lead from node to node. `graph` knows which graphs can be
//! walked to an end and says of every other one which node is at fault; `kept` keeps them.

pub mod graph;
pub mod kept;

pub use self::graph::{Graph, Node, NodeKind, Transition};
pub use self::kept::{NewWorkflow, Workflow};
