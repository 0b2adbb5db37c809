//! Graph of a workflow and its rules:
//!
//! - exactly one node is the start, and every other node can be reached from it;
//! - from every node an end (`transfer` or `hangup`) can be reached, so that a call always ends;
//! - `say` has one transition; `gather` and `branch` choose by `when` and have a transition for
//!   everything else; `tool` may have one for `failed`; ends have none.
//!
//! Errors give the position of the node or transition, and the node's id.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::platform::e164::E164;
use crate::platform::error::FieldError;
use crate::platform::ids::ToolId;
use crate::tools::schema::is_storable;

const MAX_NODES: usize = 200;
const MAX_TRANSITIONS: usize = 1000;
const MAX_TEXT_BYTES: usize = 4000;
/// Only condition of a tool's transition.
const FAILED: &str = "failed";

/// Kind of answer that a `gather` accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    #[default]
    Speech,
    Digits,
}

/// Action of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum NodeKind {
    /// Says a text; `{{variables}}` are filled in.
    Say { text: String },
    /// Asks, and chooses a transition by the answer.
    Gather {
        text: String,
        #[serde(default)]
        input: Input,
        /// Time to wait for an answer, in seconds, 1 to 60.
        #[serde(default = "default_timeout_seconds")]
        timeout_seconds: u32,
    },
    /// Chooses a transition by the value of a variable.
    Branch { variable: String },
    /// Calls an HTTP tool and may keep its answer in a variable.
    Tool {
        tool_id: ToolId,
        #[serde(default)]
        #[schema(value_type = Object)]
        arguments: Map<String, Value>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        save_as: Option<String>,
    },
    /// Transfers the call to another number, and ends.
    Transfer {
        /// In E.164: +12125550100.
        number: String,
    },
    /// Ends the call, after an optional text.
    Hangup {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
}

fn default_timeout_seconds() -> u32 {
    5
}

/// Node of a workflow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Letters, digits, `_` and `-`; unique in the workflow.
    pub id: String,
    /// True for the node where the conversation begins.
    #[serde(default)]
    pub start: bool,
    #[serde(flatten)]
    pub kind: NodeKind,
}

/// Transition from one node to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    pub from: String,
    pub to: String,
    /// Answer or value that selects this transition, or `failed` after a tool. When left out,
    /// the transition is taken for everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

/// Nodes and the transitions between them.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkflowGraph {
    pub nodes: Vec<Node>,
    pub transitions: Vec<Transition>,
}

impl NodeKind {
    fn is_end(&self) -> bool {
        matches!(self, Self::Transfer { .. } | Self::Hangup { .. })
    }
}

impl WorkflowGraph {
    /// Lists the tools that nodes call, with the position of each node.
    pub fn tools(&self) -> impl Iterator<Item = (usize, &str, ToolId)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(index, node)| match node.kind {
            NodeKind::Tool { tool_id, .. } => Some((index, node.id.as_str(), tool_id)),
            _ => None,
        })
    }

    /// Lists all errors of the graph.
    #[must_use]
    pub fn errors(&self) -> Vec<FieldError> {
        let mut errors = GraphErrors::default();
        if self.nodes.is_empty() || self.nodes.len() > MAX_NODES {
            errors.add_for_list("nodes", format!("must have 1 to {MAX_NODES} nodes"));
        }
        if self.transitions.len() > MAX_TRANSITIONS {
            let message = format!("must have {MAX_TRANSITIONS} transitions or fewer");
            errors.add_for_list("transitions", message);
        }
        let json = serde_json::to_value((&self.nodes, &self.transitions));
        if !json.is_ok_and(|json| is_storable(&json)) {
            errors.add_for_list("nodes", "must not have a NUL character".to_owned());
        }

        if !errors.0.is_empty() {
            return errors.0;
        }

        self.check_nodes(&mut errors);
        self.check_transitions(&mut errors);
        for (index, node) in self.nodes.iter().enumerate() {
            self.check_outgoing(index, node, &mut errors);
        }

        // Paths through a graph with faulty parts would only repeat the errors.
        if errors.0.is_empty() {
            self.check_reachability(&mut errors);
        }
        errors.0
    }

    fn check_nodes(&self, errors: &mut GraphErrors) {
        let mut seen = HashSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if !is_name(&node.id) {
                let message = "must be 1 to 64 letters, digits, underscores and dashes";
                errors.add_for_node(index, node, "id", message);
            }
            if !seen.insert(node.id.as_str()) {
                errors.add_for_node(index, node, "id", "is the id of another node");
            }
            if let Some((field, message)) = node_error(&node.kind) {
                errors.add_for_node(index, node, field, message);
            }
        }

        let mut starts = self.nodes.iter().enumerate().filter(|(_, node)| node.start);
        if starts.next().is_none() {
            errors.add_for_list(
                "nodes",
                "must have one node with \"start\": true".to_owned(),
            );
        }
        for (index, node) in starts {
            errors.add_for_node(index, node, "start", "is a second start; keep one");
        }
    }

    fn check_transitions(&self, errors: &mut GraphErrors) {
        let ids: HashSet<&str> = self.nodes.iter().map(|node| node.id.as_str()).collect();
        let mut seen = HashSet::new();
        for (index, transition) in self.transitions.iter().enumerate() {
            for (field, id) in [("from", &transition.from), ("to", &transition.to)] {
                if !ids.contains(id.as_str()) {
                    errors.add_for_transition(index, field, format!("there is no node {id:?}"));
                }
            }

            if transition
                .when
                .as_ref()
                .is_some_and(|when| when.is_empty() || when.len() > 200)
            {
                errors.add_for_transition(
                    index,
                    "when",
                    "must have 1 to 200 bytes, or be left out".to_owned(),
                );
            }

            if !seen.insert((&transition.from, &transition.when)) {
                let message = format!("node {:?} has two equal transitions", transition.from);
                errors.add_for_transition(index, "when", message);
            }
        }
    }

    /// Checks a node's transitions against its kind.
    fn check_outgoing(&self, index: usize, node: &Node, errors: &mut GraphErrors) {
        let outgoing = self
            .transitions
            .iter()
            .filter(|transition| transition.from == node.id);
        let (conditional, rest): (Vec<_>, Vec<_>) =
            outgoing.partition(|transition| transition.when.is_some());
        let has_default = rest.len() == 1;

        let message = match &node.kind {
            kind if kind.is_end() && !(rest.is_empty() && conditional.is_empty()) => {
                "ends the call, so no transition may start from it"
            }
            NodeKind::Say { .. } if !has_default || !conditional.is_empty() => {
                "needs exactly one transition, without \"when\""
            }
            NodeKind::Gather { .. } | NodeKind::Branch { .. }
                if !has_default || conditional.is_empty() =>
            {
                "needs a transition with \"when\" for at least one answer, and one without for all others"
            }
            NodeKind::Tool { .. }
                if !has_default
                    || conditional
                        .iter()
                        .any(|transition| transition.when.as_deref() != Some(FAILED)) =>
            {
                "needs one transition without \"when\"; another may have \"when\": \"failed\""
            }
            _ => return,
        };

        errors.add_for_node(index, node, "transitions", message);
    }

    /// Checks that every node can be reached, and can reach an end.
    fn check_reachability(&self, errors: &mut GraphErrors) {
        let mut onward: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut back: HashMap<&str, Vec<&str>> = HashMap::new();
        for transition in &self.transitions {
            onward
                .entry(&transition.from)
                .or_default()
                .push(&transition.to);
            back.entry(&transition.to)
                .or_default()
                .push(&transition.from);
        }

        let ids = |wanted: fn(&Node) -> bool| {
            let nodes = self.nodes.iter().filter(move |node| wanted(node));
            nodes.map(|node| node.id.as_str()).collect()
        };

        let reached = reachable(&onward, ids(|node| node.start));
        let ending = reachable(&back, ids(|node| node.kind.is_end()));

        for (index, node) in self.nodes.iter().enumerate() {
            if !reached.contains(node.id.as_str()) {
                errors.add_for_node(index, node, "id", "cannot be reached from the start");
            } else if !ending.contains(node.id.as_str()) {
                let message = "never leads to an end; add a path to a transfer or hangup";
                errors.add_for_node(index, node, "id", message);
            }
        }
    }
}

/// Collects the nodes that can be reached from `from`.
fn reachable<'a>(edges: &HashMap<&'a str, Vec<&'a str>>, from: Vec<&'a str>) -> HashSet<&'a str> {
    let mut seen: HashSet<&str> = from.iter().copied().collect();
    let mut pending = from;
    while let Some(id) = pending.pop() {
        for next in edges.get(id).into_iter().flatten() {
            if seen.insert(next) {
                pending.push(next);
            }
        }
    }
    seen
}

/// Reports the faulty field of a node and its error.
fn node_error(kind: &NodeKind) -> Option<(&'static str, &'static str)> {
    let is_text = |text: &str| (1..=MAX_TEXT_BYTES).contains(&text.trim().len());

    match kind {
        NodeKind::Say { text }
        | NodeKind::Gather { text, .. }
        | NodeKind::Hangup { text: Some(text) }
            if !is_text(text) =>
        {
            Some(("text", "must have 1 to 4000 bytes to say"))
        }
        NodeKind::Gather {
            timeout_seconds, ..
        } if !(1..=60).contains(timeout_seconds) => {
            Some(("timeout_seconds", "must be between 1 and 60"))
        }
        NodeKind::Branch { variable } if !is_name(variable) => {
            Some(("variable", "must be the name of a variable"))
        }
        NodeKind::Tool {
            save_as: Some(name),
            ..
        } if !is_name(name) => Some(("save_as", "must be the name of a variable")),
        NodeKind::Transfer { number }
            if E164::parse(number, None).map_or(true, |parsed| parsed.as_str() != number) =>
        {
            Some((
                "number",
                "must be a phone number in E.164, such as +12125550100",
            ))
        }
        _ => None,
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[derive(Default)]
struct GraphErrors(Vec<FieldError>);

impl GraphErrors {
    fn add_for_list(&mut self, list: &str, message: String) {
        self.0
            .push(FieldError::new("body", [list], "graph", message));
    }

    fn add_for_node(&mut self, index: usize, node: &Node, field: &str, message: &str) {
        let path = ["nodes".to_owned(), index.to_string(), field.to_owned()];
        let message = format!("node {:?} {message}", node.id);
        self.0.push(FieldError::new("body", path, "graph", message));
    }

    fn add_for_transition(&mut self, index: usize, field: &str, message: String) {
        let path = [
            "transitions".to_owned(),
            index.to_string(),
            field.to_owned(),
        ];
        self.0.push(FieldError::new("body", path, "graph", message));
    }
}

#[cfg(test)]
mod tests;
