//! Tests of the adapter against results of the vendor's Python SDK in `tests/vectors`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quick_xml::events::Event;
use serde::Deserialize;
use url::Url;

use super::fake::TOKEN;
use super::{create, fake, records, signature, twiml, wire};
use crate::telephony::{AnswerDocument, CallSearch, CallTermination, CallVerb, CarrierCallback};

const SIGNATURES: &str = include_str!("../../../../tests/vectors/twilio_signatures.json");
const DOCUMENTS: &str = include_str!("../../../../tests/vectors/twilio_documents.json");
const REQUESTS: &str = include_str!("../../../../tests/vectors/twilio_requests.json");

#[derive(Deserialize)]
struct SignatureCase {
    name: String,
    method: String,
    #[serde(deserialize_with = "parsed")]
    url: Url,
    content_type: Option<String>,
    body: String,
    secrets: Vec<String>,
    signature: Option<String>,
    accepted: bool,
}

fn parsed<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map_err(serde::de::Error::custom)
}

#[test]
fn signatures_are_judged_as_the_vendor_judges_them() {
    let cases: Vec<SignatureCase> = serde_json::from_str(SIGNATURES).unwrap();
    assert!(cases.iter().any(|case| case.accepted));
    assert!(cases.iter().any(|case| !case.accepted));
    for case in cases {
        let mut account = fake::account(None);
        account.credentials.password = "not this one".into();
        account.credentials.signing_secrets = case.secrets.into_iter().map(Into::into).collect();
        let callback = CarrierCallback {
            method: &case.method,
            url: &case.url,
            content_type: case.content_type.as_deref(),
            signature: case.signature.as_deref(),
            body: &Bytes::from(case.body),
        };
        let verdict = signature::verify(&account, &callback);
        assert_eq!(verdict, case.accepted, "{}", case.name);
    }
}

#[test]
fn the_password_signs_only_where_no_other_secret_does() {
    let cases: Vec<SignatureCase> = serde_json::from_str(SIGNATURES).unwrap();
    let case = cases.iter().find(|case| case.name == "no parameters");
    let case = case.unwrap();
    let body = Bytes::new();
    let callback = CarrierCallback {
        method: "POST",
        url: &case.url,
        content_type: None,
        signature: case.signature.as_deref(),
        body: &body,
    };
    let mut account = fake::account(None);
    assert!(signature::verify(&account, &callback));
    account.credentials.signing_secrets = vec!["rotated".into()];
    assert!(!signature::verify(&account, &callback));
    account.credentials.signing_secrets = vec!["rotated".into(), TOKEN.into()];
    assert!(signature::verify(&account, &callback));
}

#[test]
fn an_empty_secret_signs_nothing() {
    let mut account = fake::account(None);
    account.credentials.password = "".into();
    let url = "https://dialer.example.com/x".parse().unwrap();
    let body = Bytes::new();
    let callback = CarrierCallback {
        method: "POST",
        url: &url,
        content_type: None,
        // HMAC-SHA1 of the URL under an empty key.
        signature: Some("a33n89hDfEmwSdEmdylwKmY625Y="),
        body: &body,
    };
    assert!(!signature::verify(&account, &callback));
}

#[test]
fn a_body_that_the_signature_does_not_cover_is_refused() {
    let cases: Vec<SignatureCase> = serde_json::from_str(SIGNATURES).unwrap();
    let case = cases.iter().find(|case| case.name == "get").unwrap();
    let account = fake::account(None);
    let verdict = |body: &'static str| {
        let callback = CarrierCallback {
            method: "GET",
            url: &case.url,
            content_type: Some("application/x-www-form-urlencoded"),
            signature: case.signature.as_deref(),
            body: &Bytes::from_static(body.as_bytes()),
        };
        signature::verify(&account, &callback)
    };
    assert!(verdict(""));
    assert!(!verdict("CallStatus=completed"));
}

#[derive(Deserialize)]
struct DocumentCase {
    name: String,
    xml: String,
}

#[test]
fn documents_are_written_as_the_vendor_writes_them() {
    let cases: Vec<DocumentCase> = serde_json::from_str(DOCUMENTS).unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let rendered = twiml::render(&document(&case.name));
        assert_eq!(parse(&rendered.body), parse(&case.xml), "{}", case.name);
    }
}

fn document(name: &str) -> AnswerDocument {
    let url = |text: &str| Url::parse(text).unwrap();
    let say = |text: &str, language: &str, voice: Option<&str>| CallVerb::Say {
        text: text.to_owned(),
        language: language.to_owned(),
        voice: voice.map(str::to_owned),
    };

    let verbs = match name {
        "hang up" => return AnswerDocument::hang_up(),
        "say, pause and play" => vec![
            say("Hello there.", "en-US", Some("Polly.Joanna")),
            CallVerb::Pause { secs: 2 },
            CallVerb::Play {
                url: url("https://cdn.example.com/a.mp3?x=1&y=2"),
            },
        ],
        "gather, then redirect" => vec![
            CallVerb::Gather {
                action: url("https://dialer.example.com/turn?n=1&m=2"),
                language: "de-DE".to_owned(),
                timeout_secs: 5,
                hints: ["ja", "nein", "\"vielleicht\""].map(str::to_owned).to_vec(),
                prompt: vec![
                    say("Möchten Sie <fortfahren> & \"bleiben\"?", "de-DE", None),
                    CallVerb::Pause { secs: 1 },
                    // Has no meaning inside and is left out.
                    CallVerb::Hangup,
                ],
            },
            CallVerb::Redirect {
                url: url("https://dialer.example.com/silence?a=1&b=2"),
            },
        ],
        "gather without hints or prompt" => vec![CallVerb::Gather {
            action: url("https://dialer.example.com/turn"),
            language: "en-US".to_owned(),
            timeout_secs: 3,
            hints: Vec::new(),
            prompt: vec![say(" ", "en-US", None)],
        }],
        "record" => vec![
            say("Leave a message.", "en-GB", None),
            CallVerb::Record {
                action: url("https://dialer.example.com/recorded"),
                max_secs: 90,
            },
            CallVerb::Hangup,
        ],
        "stream" => vec![CallVerb::Stream {
            url: url("wss://media.example.com/socket"),
            parameters: [("call", "0190"), ("näme", "Zoë \"Z\" <&>\n'end'")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
        }],
        "escaping" => vec![say(
            "山田さん 🔔 'quoted' \"twice\" a < b > c && d ]]> é",
            "ja-JP",
            None,
        )],
        _ => panic!("no document is called {name}"),
    };

    AnswerDocument { verbs }
}

/// Lists the elements and texts of an XML document, independent of the order of attributes and
/// the form of empty elements.
fn parse(xml: &str) -> Vec<String> {
    let mut reader = quick_xml::Reader::from_str(xml);
    reader.config_mut().expand_empty_elements = true;
    let mut parts = Vec::new();
    let mut text = String::new();

    loop {
        match reader.read_event().unwrap() {
            Event::Text(part) => text.push_str(&part),
            Event::GeneralRef(part) => {
                let reference = format!("&{};", &*part);
                text.push_str(&quick_xml::escape::unescape(&reference).unwrap());
            }
            event => {
                if !text.is_empty() {
                    parts.push(format!("text {}", std::mem::take(&mut text)));
                }
                match event {
                    Event::Start(start) => {
                        let attributes: BTreeMap<String, String> = start
                            .attributes()
                            .map(|attribute| {
                                let attribute = attribute.unwrap();
                                let value = quick_xml::escape::unescape(&attribute.value).unwrap();
                                (attribute.key.as_ref().to_owned(), value.into_owned())
                            })
                            .collect();
                        let name = start.name();
                        parts.push(format!("open {} {attributes:?}", name.as_ref()));
                    }
                    Event::End(_) => parts.push("close".to_owned()),
                    Event::Eof => return parts,
                    Event::Decl(_) => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_speech_survives_the_writing(text in "\\PC{0,40}|[\\x00-\\x7f]{0,40}") {
        let rendered = twiml::render(&AnswerDocument {
            verbs: vec![CallVerb::Stream {
                url: "wss://media.example.com/".parse().unwrap(),
                parameters: vec![("spoken".to_owned(), text.clone())],
            }],
        });
        let writable: String = text
            .chars()
            .filter(|c| *c >= ' ' || matches!(c, '\t' | '\n' | '\r'))
            .filter(|c| !matches!(c, '\u{fffe}' | '\u{ffff}'))
            .collect();
        let attributes = BTreeMap::from([("name", "spoken"), ("value", &writable)]);
        let expected = format!("open Parameter {attributes:?}");
        proptest::prop_assert!(parse(&rendered.body).contains(&expected));
    }
}

#[derive(Deserialize)]
struct RequestCase {
    name: String,
    url: String,
    query: Vec<(String, String)>,
    form: Vec<(String, String)>,
}

#[test]
fn requests_equal_those_of_the_vendors_sdk() {
    let cases: Vec<RequestCase> = serde_json::from_str(REQUESTS).unwrap();
    assert_eq!(cases.len(), 5);
    let search = CallSearch {
        to: fake::number("+15550100002"),
        from: fake::number("+15550100001"),
        created_from: "2026-03-04T09:30:00Z".parse().unwrap(),
        created_until: "2026-03-04T09:31:00Z".parse().unwrap(),
    };
    let call = format!("{}.json", fake::CALL_SID);
    let calls: &[&str] = &["Calls.json"];
    let one: &[&str] = &["Calls", &call];

    let account = fake::account(None);
    for case in cases {
        let (tail, query, form) = match case.name.as_str() {
            "create" => (calls, vec![], create::request_form(&fake::new_call())),
            "create with everything" => {
                let form = create::request_form(&fake::new_call_with_everything());
                (calls, vec![], form)
            }
            "search" => (calls, records::search_query(&search).to_vec(), vec![]),
            "cancel" => (
                one,
                vec![],
                owned(records::end_form(CallTermination::Cancel)),
            ),
            "hang up" => (
                one,
                vec![],
                owned(records::end_form(CallTermination::HangUp)),
            ),
            other => panic!("no request is called {other}"),
        };

        let url = wire::address(&account, tail).unwrap();
        assert_eq!(url.as_str(), case.url, "{}", case.name);
        assert_eq!(to_set(&query), to_set(&case.query), "{}", case.name);
        assert_eq!(to_set(&form), to_set(&case.form), "{}", case.name);
        assert_eq!(form.len(), case.form.len(), "{}", case.name);
    }
}

fn owned<const N: usize>(pairs: [(&'static str, &'static str); N]) -> Vec<(&'static str, String)> {
    pairs
        .into_iter()
        .map(|(name, value)| (name, value.to_owned()))
        .collect()
}

fn to_set(pairs: &[(impl AsRef<str>, impl AsRef<str>)]) -> BTreeSet<(&str, &str)> {
    pairs
        .iter()
        .map(|(name, value)| (name.as_ref(), value.as_ref()))
        .collect()
}
