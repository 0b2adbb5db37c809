//! Parser of answer documents.
//!
//! The parser is strict where Twilio only warns: an unknown verb, a verb nested in the wrong
//! place, or an invalid number is an error, so a mistake in a rendered document ends the call
//! and shows in the oracle.

use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use crate::call::HttpMethod;

/// One instruction of a document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TwimlVerb {
    Say {
        chars: String,
        times: u32,
    },
    Play {
        times: u32,
    },
    Pause {
        secs: f64,
    },
    Gather(GatherVerb),
    Record(RecordVerb),
    Redirect {
        url: String,
        method: HttpMethod,
    },
    Hangup,
    /// A stream or a second leg: the call stays open until a side hangs up.
    Hold,
    /// Runs in parallel to the document and takes no time.
    Background,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatherVerb {
    pub(crate) prompts: Vec<TwimlVerb>,
    pub(crate) action: String,
    pub(crate) method: HttpMethod,
    pub(crate) speech: bool,
    pub(crate) digits: bool,
    pub(crate) timeout_secs: f64,
    pub(crate) on_empty_result: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RecordVerb {
    pub(crate) action: String,
    pub(crate) method: HttpMethod,
    pub(crate) secs: f64,
}

#[derive(Clone, Debug, Default)]
struct XmlElement {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    children: Vec<XmlElement>,
}

/// Parses a document into verbs; the error is a reason for people.
pub(crate) fn parse(document: &str) -> Result<Vec<TwimlVerb>, String> {
    let root = read_tree(document)?;
    if root.name != "Response" {
        return Err(format!("the root is <{}>, not <Response>", root.name));
    }
    root.children.into_iter().map(read_verb).collect()
}

fn read_tree(document: &str) -> Result<XmlElement, String> {
    let mut reader = Reader::from_str(document);
    let mut open: Vec<XmlElement> = Vec::new();
    loop {
        let event = reader.read_event().map_err(|error| error.to_string())?;
        let closed = match event {
            Event::Start(start) => {
                open.push(read_element(&start)?);
                None
            }
            Event::Empty(start) => Some(read_element(&start)?),
            Event::End(_) => open.pop(),
            Event::Text(text) => {
                push_text(&mut open, &text.xml_content(XmlVersion::Implicit1_0))?;
                None
            }
            Event::CData(text) => {
                push_text(&mut open, &text.xml_content(XmlVersion::Implicit1_0))?;
                None
            }
            Event::GeneralRef(reference) => {
                push_text(&mut open, &resolve_entity(&reference)?)?;
                None
            }
            Event::Eof => return Err("the document is truncated".to_owned()),
            _ => None,
        };

        if let Some(done) = closed {
            match open.last_mut() {
                Some(parent) => parent.children.push(done),
                None => return Ok(done),
            }
        }
    }
}

fn read_element(start: &BytesStart<'_>) -> Result<XmlElement, String> {
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute
            .normalized_value(XmlVersion::Implicit1_0)
            .map_err(|error| error.to_string())?;
        attributes.push((attribute.key.as_ref().to_owned(), value.into_owned()));
    }
    Ok(XmlElement {
        name: start.name().as_ref().to_owned(),
        attributes,
        ..XmlElement::default()
    })
}

fn push_text(open: &mut [XmlElement], text: &str) -> Result<(), String> {
    match open.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.trim().is_empty() => {}
        None => return Err("there is text outside the document".to_owned()),
    }
    Ok(())
}

fn resolve_entity(reference: &BytesRef<'_>) -> Result<String, String> {
    if let Some(character) = reference
        .resolve_char_ref()
        .map_err(|error| error.to_string())?
    {
        return Ok(character.to_string());
    }
    let name = reference.xml_content(XmlVersion::Implicit1_0);
    quick_xml::escape::resolve_predefined_entity(&name)
        .map(str::to_owned)
        .ok_or_else(|| format!("unknown entity &{name};"))
}

impl XmlElement {
    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, default: f64) -> Result<f64, String> {
        match self.attribute(name) {
            None | Some("auto") => Ok(default),
            Some(text) => match text.parse::<f64>() {
                Ok(number) if (0.0..=1e6).contains(&number) => Ok(number),
                _ => Err(format!("<{}> {name}=\"{text}\" is not a number", self.name)),
            },
        }
    }

    /// Number of repetitions, at most 1000, which also stands for 0 (for ever).
    fn times(&self) -> Result<u32, String> {
        match self.attribute("loop").map(str::parse::<u32>) {
            None => Ok(1),
            Some(Ok(0)) => Ok(1000),
            Some(Ok(times)) => Ok(times.min(1000)),
            Some(Err(error)) => Err(format!("<{}> loop: {error}", self.name)),
        }
    }

    fn method(&self) -> Result<HttpMethod, String> {
        match self
            .attribute("method")
            .map(str::to_ascii_uppercase)
            .as_deref()
        {
            None | Some("POST") => Ok(HttpMethod::Post),
            Some("GET") => Ok(HttpMethod::Get),
            Some(other) => Err(format!("<{}> method=\"{other}\"", self.name)),
        }
    }

    fn action(&self) -> String {
        self.attribute("action").unwrap_or_default().to_owned()
    }

    /// The text of the element and its children, without tags of speech markup.
    fn spoken(&self) -> String {
        let mut text = self.text.trim().to_owned();
        for child in &self.children {
            text.push_str(&child.spoken());
        }
        text
    }
}

fn read_verb(element: XmlElement) -> Result<TwimlVerb, String> {
    Ok(match element.name.as_str() {
        "Say" => TwimlVerb::Say {
            chars: element.spoken(),
            times: element.times()?,
        },
        "Play" => TwimlVerb::Play {
            times: element.times()?,
        },
        "Pause" => TwimlVerb::Pause {
            secs: element.number("length", 1.0)?,
        },
        "Gather" => TwimlVerb::Gather(read_gather(element)?),
        "Record" => TwimlVerb::Record(RecordVerb {
            action: element.action(),
            method: element.method()?,
            // Simulated callees speak at most ten seconds into a recording.
            secs: element.number("maxLength", 3600.0)?.min(10.0),
        }),
        "Redirect" => TwimlVerb::Redirect {
            url: element.text.trim().to_owned(),
            method: element.method()?,
        },
        "Hangup" | "Reject" => TwimlVerb::Hangup,
        "Connect" | "Dial" => TwimlVerb::Hold,
        "Start" | "Stop" => TwimlVerb::Background,
        other => return Err(format!("unknown verb <{other}>")),
    })
}

fn read_gather(element: XmlElement) -> Result<GatherVerb, String> {
    let input = element.attribute("input").unwrap_or("dtmf").to_owned();
    if let Some(other) = input
        .split_whitespace()
        .find(|word| !["speech", "dtmf"].contains(word))
    {
        return Err(format!("<Gather> input=\"{other}\""));
    }

    let (action, method) = (element.action(), element.method()?);
    let timeout_secs = element.number("timeout", 5.0)?;
    let on_empty_result = element.attribute("actionOnEmptyResult") == Some("true");

    let prompts: Vec<TwimlVerb> = element
        .children
        .into_iter()
        .map(read_verb)
        .collect::<Result<_, _>>()?;
    let playable = |prompt: &TwimlVerb| {
        matches!(
            prompt,
            TwimlVerb::Say { .. } | TwimlVerb::Play { .. } | TwimlVerb::Pause { .. }
        )
    };
    if !prompts.iter().all(playable) {
        return Err("<Gather> may hold only <Say>, <Play> and <Pause>".to_owned());
    }

    Ok(GatherVerb {
        prompts,
        action,
        method,
        speech: input.contains("speech"),
        digits: input.contains("dtmf"),
        timeout_secs,
        on_empty_result,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_turn_reads_into_verbs() {
        let verbs = parse(
            r#"<?xml version="1.0" encoding="UTF-8"?>
            <Response>
              <Gather input="speech dtmf" action="/turn?a=1&amp;b=2" timeout="3" speechTimeout="auto">
                <Say voice="alice">Fish &amp; chips, <break/>sir?</Say>
              </Gather>
              <Redirect method="GET">https://peal.example/x?a=1&amp;b=2</Redirect>
            </Response>"#,
        )
        .unwrap();

        let [TwimlVerb::Gather(gather), redirect] = verbs.as_slice() else {
            panic!("{verbs:?}");
        };

        assert_eq!(gather.action, "/turn?a=1&b=2");
        assert!(gather.speech && gather.digits);
        assert_eq!(gather.timeout_secs, 3.0);
        assert_eq!(
            gather.prompts,
            [TwimlVerb::Say {
                chars: "Fish & chips, sir?".to_owned(),
                times: 1
            }]
        );
        assert_eq!(
            *redirect,
            TwimlVerb::Redirect {
                url: "https://peal.example/x?a=1&b=2".to_owned(),
                method: HttpMethod::Get
            }
        );
    }

    #[test]
    fn every_other_verb_is_known() {
        let verbs = parse(
            r#"<Response><Play loop="2">a.mp3</Play><Pause length="4"/><Record maxLength="6"/>
            <Start><Stream url="wss://x"/></Start><Connect><Stream url="wss://x"/></Connect>
            <Hangup/></Response>"#,
        )
        .unwrap();
        assert_eq!(
            verbs,
            [
                TwimlVerb::Play { times: 2 },
                TwimlVerb::Pause { secs: 4.0 },
                TwimlVerb::Record(RecordVerb {
                    action: String::new(),
                    method: HttpMethod::Post,
                    secs: 6.0
                }),
                TwimlVerb::Background,
                TwimlVerb::Hold,
                TwimlVerb::Hangup,
            ]
        );
        assert_eq!(parse("<Response/>").unwrap(), []);
    }

    #[test]
    fn slips_are_errors() {
        for bad in [
            "",
            "not xml",
            "<Reply/>",
            "<Response><Say>hi</Response>",
            "<Response><Sey>hi</Sey></Response>",
            "<Response><Pause length=\"long\"/></Response>",
            "<Response><Gather input=\"spech\"/></Response>",
            "<Response><Gather><Hangup/></Gather></Response>",
            "<Response><Say>&nbsp;</Say></Response>",
            "<Response>",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
