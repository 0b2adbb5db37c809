use serde_json::json;

use super::*;

fn graph(nodes: Value, ways: &[(&str, &str, Option<&str>)]) -> WorkflowGraph {
    let way = |(from, to, when): &(&str, &str, Option<&str>)| Transition {
        from: (*from).to_owned(),
        to: (*to).to_owned(),
        when: when.map(str::to_owned),
    };
    WorkflowGraph {
        nodes: serde_json::from_value(nodes).unwrap(),
        transitions: ways.iter().map(way).collect(),
    }
}

fn survey() -> Value {
    json!([
        {"id": "hello", "start": true, "type": "say", "text": "Hi {{name}}"},
        {"id": "ask", "type": "gather", "text": "Buy or talk?", "input": "digits"},
        {"id": "look", "type": "tool", "tool_id": uuid::Uuid::nil(), "save_as": "stock"},
        {"id": "if", "type": "branch", "variable": "stock"},
        {"id": "desk", "type": "transfer", "number": "+12125550100"},
        {"id": "bye", "type": "hangup"},
    ])
}

const WAYS: [(&str, &str, Option<&str>); 8] = [
    ("hello", "ask", None),
    ("ask", "look", Some("1")),
    ("ask", "desk", Some("2")),
    ("ask", "ask", None),
    ("look", "if", None),
    ("look", "bye", Some("failed")),
    ("if", "desk", Some("yes")),
    ("if", "bye", None),
];

fn messages(graph: &WorkflowGraph) -> Vec<String> {
    let faults = graph.errors();
    faults
        .iter()
        .map(|fault| format!("{}: {}", fault.loc[1..].join("."), fault.msg))
        .collect()
}

#[test]
fn a_graph_that_leads_to_an_end_is_valid() {
    let survey = graph(survey(), &WAYS);
    assert!(messages(&survey).is_empty(), "{:?}", messages(&survey));
    assert_eq!(survey.tools().count(), 1);
    let written = serde_json::to_value(&survey.nodes).unwrap();
    assert_eq!(
        written[5],
        json!({"id": "bye", "start": false, "type": "hangup"})
    );
}

#[test]
fn a_faulty_node_is_named() {
    for (place, field, value, fault) in [
        (0, "start", json!(false), "nodes: must have one node"),
        (
            1,
            "start",
            json!(true),
            "nodes.1.start: node \"ask\" is a second start",
        ),
        (
            1,
            "id",
            json!("hello"),
            "nodes.1.id: node \"hello\" is the id of another",
        ),
        (
            1,
            "id",
            json!("a b"),
            "nodes.1.id: node \"a b\" must be 1 to 64",
        ),
        (
            0,
            "text",
            json!(" "),
            "nodes.0.text: node \"hello\" must have",
        ),
        (
            1,
            "timeout_seconds",
            json!(0),
            "nodes.1.timeout_seconds: node \"ask\" must be",
        ),
        (
            3,
            "variable",
            json!(""),
            "nodes.3.variable: node \"if\" must be",
        ),
        (
            2,
            "save_as",
            json!("a.b"),
            "nodes.2.save_as: node \"look\" must be",
        ),
        (
            4,
            "number",
            json!("555"),
            "nodes.4.number: node \"desk\" must be a phone",
        ),
        (
            4,
            "number",
            json!("+1 212 555 0100"),
            "nodes.4.number: node \"desk\" must be a phone",
        ),
    ] {
        let mut nodes = survey();
        nodes[place][field] = value;
        let found = messages(&graph(nodes, &WAYS));

        assert!(
            found.iter().any(|message| message.starts_with(fault)),
            "{fault}: {found:?}"
        );
    }
}

#[test]
fn a_graph_has_nodes() {
    assert_eq!(
        messages(&graph(json!([]), &[])),
        ["nodes: must have 1 to 200 nodes"]
    );
}

#[test]
fn a_faulty_transition_is_named() {
    let without = |at: usize| {
        let mut ways = WAYS.to_vec();
        ways.remove(at);
        ways
    };
    let with = |way| [&WAYS[..], &[way]].concat();
    for (ways, fault) in [
        (
            with(("if", "nowhere", Some("x"))),
            "transitions.8.to: there is no node \"nowhere\"",
        ),
        (
            with(("nowhere", "bye", None)),
            "transitions.8.from: there is no node \"nowhere\"",
        ),
        (
            with(("if", "desk", Some("yes"))),
            "transitions.8.when: node \"if\" has two",
        ),
        (
            with(("if", "desk", Some(""))),
            "transitions.8.when: must have",
        ),
        (
            with(("bye", "hello", None)),
            "nodes.5.transitions: node \"bye\" ends",
        ),
        (
            with(("hello", "bye", Some("x"))),
            "nodes.0.transitions: node \"hello\" needs",
        ),
        (
            with(("look", "bye", Some("odd"))),
            "nodes.2.transitions: node \"look\" needs",
        ),
        (
            without(0),
            "nodes.0.transitions: node \"hello\" needs exactly one",
        ),
        (
            without(3),
            "nodes.1.transitions: node \"ask\" needs a transition with",
        ),
        (
            without(6),
            "nodes.3.transitions: node \"if\" needs a transition with",
        ),
        (without(4), "nodes.2.transitions: node \"look\" needs one"),
    ] {
        let found = messages(&graph(survey(), &ways));

        assert!(
            found.iter().any(|message| message.starts_with(fault)),
            "{fault}: {found:?}"
        );
    }
}

#[test]
fn unreachable_and_endless_nodes_are_named() {
    let mut nodes = survey();
    nodes.as_array_mut().unwrap().extend([
        json!({"id": "island", "type": "hangup"}),
        json!({"id": "round", "type": "say", "text": "and"}),
        json!({"id": "again", "type": "say", "text": "again"}),
    ]);
    let circle = [
        ("round", "again", None),
        ("again", "round", None),
        ("if", "round", Some("no")),
    ];
    let found = messages(&graph(nodes, &[&WAYS[..], &circle].concat()));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("nodes.6.id: node \"island\" cannot be reached"));
    assert!(found[1].starts_with("nodes.7.id: node \"round\" never leads to an end"));
    assert!(found[2].starts_with("nodes.8.id: node \"again\" never leads to an end"));
}
