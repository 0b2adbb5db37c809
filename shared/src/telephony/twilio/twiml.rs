//! Answer documents as TwiML.
//!
//! A `<Gather>` that hears nothing posts nothing: Twilio continues with the next verb, so a
//! document that must not end in silence puts a [`Verb::Redirect`] there. Parameters reach a
//! media server as `<Parameter>` elements, because Twilio drops the query of a stream's URL.

use crate::telephony::{AnswerDocument, CallVerb, RenderedDocument};

/// Renders a document.
pub(super) fn render(document: &AnswerDocument) -> RenderedDocument {
    let mut xml = XmlWriter::default();
    xml.open("Response", &[]);
    for verb in &document.verbs {
        write_verb(&mut xml, verb);
    }
    xml.close("Response");
    RenderedDocument {
        content_type: "text/xml; charset=utf-8",
        body: xml.text,
    }
}

fn write_verb(xml: &mut XmlWriter, verb: &CallVerb) {
    match verb {
        CallVerb::Say { .. } | CallVerb::Play { .. } | CallVerb::Pause { .. } => {
            write_nested_verb(xml, verb)
        }
        CallVerb::Gather {
            action,
            language,
            timeout_secs,
            hints,
            prompt,
        } => {
            let timeout = timeout_secs.to_string();
            let hints = hints.join(",");
            let mut attributes = vec![
                ("input", "speech dtmf"),
                ("action", action.as_str()),
                ("method", "POST"),
                ("language", language.as_str()),
                ("timeout", timeout.as_str()),
                ("speechTimeout", "auto"),
            ];

            if !hints.is_empty() {
                attributes.push(("hints", hints.as_str()));
            }

            xml.open("Gather", &attributes);
            for verb in prompt {
                write_nested_verb(xml, verb);
            }
            xml.close("Gather");
        }
        CallVerb::Record { action, max_secs } => xml.empty(
            "Record",
            &[
                ("action", action.as_str()),
                ("method", "POST"),
                ("maxLength", &max_secs.to_string()),
            ],
        ),
        CallVerb::Stream { url, parameters } => {
            xml.open("Connect", &[]);
            xml.open("Stream", &[("url", url.as_str())]);
            for (name, value) in parameters {
                xml.empty("Parameter", &[("name", name), ("value", value)]);
            }
            xml.close("Stream");
            xml.close("Connect");
        }
        CallVerb::Redirect { url } => xml.leaf("Redirect", &[("method", "POST")], url.as_str()),
        CallVerb::Hangup => xml.empty("Hangup", &[]),
    }
}

/// Writes a verb that is allowed inside a `<Gather>`. Others have no meaning there and are left
/// out; so is speech without text, for which Twilio fails the document.
fn write_nested_verb(xml: &mut XmlWriter, verb: &CallVerb) {
    match verb {
        CallVerb::Say {
            text,
            language,
            voice,
        } => {
            if text.trim().is_empty() {
                return;
            }
            let mut attributes = vec![("language", language.as_str())];
            if let Some(voice) = voice {
                attributes.push(("voice", voice));
            }
            xml.leaf("Say", &attributes, text);
        }
        CallVerb::Play { url } => xml.leaf("Play", &[], url.as_str()),
        CallVerb::Pause { secs } => xml.empty("Pause", &[("length", &secs.to_string())]),
        CallVerb::Gather { .. }
        | CallVerb::Record { .. }
        | CallVerb::Stream { .. }
        | CallVerb::Redirect { .. }
        | CallVerb::Hangup => {}
    }
}

/// Writer of an XML document. Names are constants; values and text are escaped.
struct XmlWriter {
    text: String,
}

impl Default for XmlWriter {
    fn default() -> Self {
        Self {
            text: r#"<?xml version="1.0" encoding="UTF-8"?>"#.to_owned(),
        }
    }
}

impl XmlWriter {
    fn open(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.begin(name, attributes);
        self.text.push('>');
    }

    fn close(&mut self, name: &str) {
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push('>');
    }

    fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.begin(name, attributes);
        self.text.push_str("/>");
    }

    fn leaf(&mut self, name: &str, attributes: &[(&str, &str)], content: &str) {
        self.open(name, attributes);
        self.escape(content);
        self.close(name);
    }

    fn begin(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.text.push('<');
        self.text.push_str(name);
        for (name, value) in attributes {
            self.text.push(' ');
            self.text.push_str(name);
            self.text.push_str("=\"");
            self.escape(value);
            self.text.push('"');
        }
    }

    /// Escapes a value or text. Characters that XML 1.0 cannot hold are dropped; white space that
    /// a parser would fold in an attribute is written as a reference.
    fn escape(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.text.push_str("&amp;"),
                '<' => self.text.push_str("&lt;"),
                '>' => self.text.push_str("&gt;"),
                '"' => self.text.push_str("&quot;"),
                '\'' => self.text.push_str("&apos;"),
                '\t' => self.text.push_str("&#9;"),
                '\n' => self.text.push_str("&#10;"),
                '\r' => self.text.push_str("&#13;"),
                '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {}
                _ => self.text.push(character),
            }
        }
    }
}
