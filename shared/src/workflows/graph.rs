//! The graph of a workflow and its rules:
//!
//! - exactly one node is the start, and every other node can be reached from it;
//! - from every node an end (`transfer` or `hangup`) can be reached, so nobody is kept on the
//!   phone for ever;
//! - `say` goes on in one way; `gather` and `branch` choose by `when` and have a way for
//!   everything else; `tool` may have a way for `failed`; ends have none.
//!
//! Faults name the place of the node or transition and the node's id.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::FieldError;
use crate::ids::ToolId;
use crate::phone::E164;
use crate::tools::schema::is_storable;

const MOST_NODES: usize = 200;
const MOST_TRANSITIONS: usize = 1000;
const LONGEST_TEXT: usize = 4000;
/// The one condition of a tool's transition.
const FAILED: &str = "failed";

/// What a `gather` listens for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    #[default]
    Speech,
    Digits,
}

/// What happens at a node.
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
        /// How long to wait for an answer, 1 to 60.
        #[serde(default = "five")]
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
    /// Connects the person with somebody else, and ends.
    Transfer {
        /// In E.164: +12125550100.
        number: String,
    },
    /// Ends the call, perhaps with a last word.
    Hangup {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
}

fn five() -> u32 {
    5
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Letters, digits, `_` and `-`; unique in the workflow.
    pub id: String,
    /// Whether the conversation begins here.
    #[serde(default)]
    pub start: bool,
    #[serde(flatten)]
    pub kind: NodeKind,
}

/// A way from one node to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    pub from: String,
    pub to: String,
    /// The answer or value for which this way is taken, or `failed` behind a tool; left out, it
    /// is the way for everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

/// Nodes and the ways between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub transitions: Vec<Transition>,
}

impl NodeKind {
    fn is_end(&self) -> bool {
        matches!(self, Self::Transfer { .. } | Self::Hangup { .. })
    }
}

impl Graph {
    /// The tools that nodes call, with the place of each node.
    pub fn tools(&self) -> impl Iterator<Item = (usize, &str, ToolId)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(place, node)| match node.kind {
            NodeKind::Tool { tool_id, .. } => Some((place, node.id.as_str(), tool_id)),
            _ => None,
        })
    }

    /// Everything that is wrong with the graph.
    #[must_use]
    pub fn faults(&self) -> Vec<FieldError> {
        let mut faults = Faults::default();
        if self.nodes.is_empty() || self.nodes.len() > MOST_NODES {
            faults.of_all("nodes", format!("must have 1 to {MOST_NODES} nodes"));
        }
        if self.transitions.len() > MOST_TRANSITIONS {
            let told = format!("must have {MOST_TRANSITIONS} transitions or fewer");
            faults.of_all("transitions", told);
        }
        let written = serde_json::to_value((&self.nodes, &self.transitions));
        if !written.is_ok_and(|written| is_storable(&written)) {
            faults.of_all("nodes", "must not have a NUL character".to_owned());
        }
        if !faults.0.is_empty() {
            return faults.0;
        }
        self.judge_nodes(&mut faults);
        self.judge_transitions(&mut faults);
        for (place, node) in self.nodes.iter().enumerate() {
            self.judge_ways(place, node, &mut faults);
        }
        // Ways through a graph whose parts are wrong would only repeat what is said already.
        if faults.0.is_empty() {
            self.judge_walks(&mut faults);
        }
        faults.0
    }

    fn judge_nodes(&self, faults: &mut Faults) {
        let mut seen = HashSet::new();
        for (place, node) in self.nodes.iter().enumerate() {
            if !is_name(&node.id) {
                let told = "must be 1 to 64 letters, digits, underscores and dashes";
                faults.of_node(place, node, "id", told);
            }
            if !seen.insert(node.id.as_str()) {
                faults.of_node(place, node, "id", "is the id of another node as well");
            }
            if let Some((field, told)) = fault_of(&node.kind) {
                faults.of_node(place, node, field, told);
            }
        }
        let mut starts = self.nodes.iter().enumerate().filter(|(_, node)| node.start);
        if starts.next().is_none() {
            faults.of_all(
                "nodes",
                "must have one node with \"start\": true".to_owned(),
            );
        }
        for (place, node) in starts {
            faults.of_node(place, node, "start", "is a second start; keep one");
        }
    }

    fn judge_transitions(&self, faults: &mut Faults) {
        let ids: HashSet<&str> = self.nodes.iter().map(|node| node.id.as_str()).collect();
        let mut seen = HashSet::new();
        for (place, way) in self.transitions.iter().enumerate() {
            for (field, id) in [("from", &way.from), ("to", &way.to)] {
                if !ids.contains(id.as_str()) {
                    faults.of_way(place, field, format!("there is no node {id:?}"));
                }
            }
            if way
                .when
                .as_ref()
                .is_some_and(|when| when.is_empty() || when.len() > 200)
            {
                faults.of_way(
                    place,
                    "when",
                    "must have 1 to 200 bytes, or be left out".to_owned(),
                );
            }
            if !seen.insert((&way.from, &way.when)) {
                let told = format!("node {:?} has two transitions for the same", way.from);
                faults.of_way(place, "when", told);
            }
        }
    }

    /// Whether a node's transitions are those that its kind has.
    fn judge_ways(&self, place: usize, node: &Node, faults: &mut Faults) {
        let ways = self.transitions.iter().filter(|way| way.from == node.id);
        let (conditional, rest): (Vec<_>, Vec<_>) = ways.partition(|way| way.when.is_some());
        let goes_on = rest.len() == 1;
        let told = match &node.kind {
            kind if kind.is_end() && !(rest.is_empty() && conditional.is_empty()) => {
                "ends the call, so no transition can lead on from it"
            }
            NodeKind::Say { .. } if !goes_on || !conditional.is_empty() => {
                "needs exactly one transition, without \"when\""
            }
            NodeKind::Gather { .. } | NodeKind::Branch { .. }
                if !goes_on || conditional.is_empty() =>
            {
                "needs a transition with \"when\" for at least one answer, and one without for all others"
            }
            NodeKind::Tool { .. }
                if !goes_on
                    || conditional
                        .iter()
                        .any(|way| way.when.as_deref() != Some(FAILED)) =>
            {
                "needs one transition without \"when\"; another may have \"when\": \"failed\""
            }
            _ => return,
        };
        faults.of_node(place, node, "transitions", told);
    }

    /// Whether every node can be reached, and can reach an end.
    fn judge_walks(&self, faults: &mut Faults) {
        let mut onward: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut back: HashMap<&str, Vec<&str>> = HashMap::new();
        for way in &self.transitions {
            onward.entry(&way.from).or_default().push(&way.to);
            back.entry(&way.to).or_default().push(&way.from);
        }
        let ids = |wanted: fn(&Node) -> bool| {
            let nodes = self.nodes.iter().filter(move |node| wanted(node));
            nodes.map(|node| node.id.as_str()).collect()
        };
        let reached = walked(&onward, ids(|node| node.start));
        let ending = walked(&back, ids(|node| node.kind.is_end()));
        for (place, node) in self.nodes.iter().enumerate() {
            if !reached.contains(node.id.as_str()) {
                faults.of_node(place, node, "id", "cannot be reached from the start");
            } else if !ending.contains(node.id.as_str()) {
                let told = "never leads to an end; let some way reach a transfer or hangup";
                faults.of_node(place, node, "id", told);
            }
        }
    }
}

/// Every node that can be walked to from some.
fn walked<'a>(ways: &HashMap<&'a str, Vec<&'a str>>, from: Vec<&'a str>) -> HashSet<&'a str> {
    let mut seen: HashSet<&str> = from.iter().copied().collect();
    let mut open = from;
    while let Some(id) = open.pop() {
        for next in ways.get(id).into_iter().flatten() {
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    seen
}

/// What is wrong inside of a node.
fn fault_of(kind: &NodeKind) -> Option<(&'static str, &'static str)> {
    let is_text = |text: &str| (1..=LONGEST_TEXT).contains(&text.trim().len());
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
struct Faults(Vec<FieldError>);

impl Faults {
    fn of_all(&mut self, list: &str, told: String) {
        self.0.push(FieldError::new("body", [list], "graph", told));
    }

    fn of_node(&mut self, place: usize, node: &Node, field: &str, told: &str) {
        let path = ["nodes".to_owned(), place.to_string(), field.to_owned()];
        let told = format!("node {:?} {told}", node.id);
        self.0.push(FieldError::new("body", path, "graph", told));
    }

    fn of_way(&mut self, place: usize, field: &str, told: String) {
        let path = [
            "transitions".to_owned(),
            place.to_string(),
            field.to_owned(),
        ];
        self.0.push(FieldError::new("body", path, "graph", told));
    }
}

#[cfg(test)]
mod tests;
