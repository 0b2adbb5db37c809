//! Interpreter of answer documents, without I/O: from a document and a callee it derives the
//! next wait, the next document to fetch, and the end of the call.

use std::collections::VecDeque;

use crate::call::HttpMethod;
use crate::callee::{CallPlan, CalleeBehavior};
use crate::twiml::{GatherVerb, TwimlVerb};

/// The next step of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DialogStep {
    /// Prompts and speech of this many call seconds.
    Wait(f64),
    Fetch(DocumentRequest),
    /// Keep the call open until either side hangs up.
    Hold,
    Hangup,
}

/// Reason of a document fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DocumentKind {
    Answer,
    Fallback,
    Gather,
    Record,
    Redirect,
}

/// A document to fetch. `url` may be relative to the document that named it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DocumentRequest {
    pub(crate) kind: DocumentKind,
    pub(crate) url: String,
    pub(crate) method: HttpMethod,
    pub(crate) params: Vec<(&'static str, String)>,
}

/// A document in progress.
#[derive(Clone, Debug)]
pub(crate) struct TwimlInterpreter {
    verbs: VecDeque<TwimlVerb>,
    /// The fetch after the current wait.
    next_fetch: Option<DocumentRequest>,
    /// URL of the document; empty for an inline one.
    pub(crate) url: String,
}

impl TwimlInterpreter {
    pub(crate) fn new(url: String, verbs: Vec<TwimlVerb>) -> Self {
        Self {
            verbs: verbs.into(),
            next_fetch: None,
            url,
        }
    }

    /// Takes the next step. `turn` counts the callee's utterances over all documents.
    pub(crate) fn next_step(
        &mut self,
        behavior: &CalleeBehavior,
        plan: &CallPlan,
        turn: &mut usize,
        recording_url: &str,
    ) -> DialogStep {
        if let Some(ask) = self.next_fetch.take() {
            return DialogStep::Fetch(ask);
        }
        loop {
            let Some(verb) = self.verbs.pop_front() else {
                return DialogStep::Hangup;
            };
            match verb {
                TwimlVerb::Say { .. } | TwimlVerb::Play { .. } | TwimlVerb::Pause { .. } => {
                    return DialogStep::Wait(prompt_secs(behavior, &verb));
                }
                TwimlVerb::Gather(gather) => {
                    return DialogStep::Wait(self.gather(behavior, plan, turn, gather));
                }
                TwimlVerb::Record(record) => {
                    self.next_fetch = Some(DocumentRequest {
                        kind: DocumentKind::Record,
                        url: record.action,
                        method: record.method,
                        params: vec![
                            ("RecordingUrl", recording_url.to_owned()),
                            ("RecordingDuration", format!("{:.0}", record.secs)),
                        ],
                    });
                    return DialogStep::Wait(record.secs);
                }
                TwimlVerb::Redirect { url, method } => {
                    return DialogStep::Fetch(DocumentRequest {
                        kind: DocumentKind::Redirect,
                        url,
                        method,
                        params: Vec::new(),
                    });
                }
                TwimlVerb::Hangup => return DialogStep::Hangup,
                TwimlVerb::Hold => return DialogStep::Hold,
                TwimlVerb::Background => {}
            }
        }
    }

    /// Sets the fetch that follows the callee's words and returns the seconds that they take.
    fn gather(
        &mut self,
        behavior: &CalleeBehavior,
        plan: &CallPlan,
        turn: &mut usize,
        gather: GatherVerb,
    ) -> f64 {
        let prompt: f64 = gather
            .prompts
            .iter()
            .map(|prompt| prompt_secs(behavior, prompt))
            .sum();
        let words = behavior.utterance(plan, *turn);
        let keyed = words.is_some_and(|words| words.bytes().all(|b| b.is_ascii_digit()));
        let heard = words.filter(|_| if keyed { gather.digits } else { gather.speech });

        let mut ask = DocumentRequest {
            kind: DocumentKind::Gather,
            url: gather.action,
            method: gather.method,
            params: Vec::new(),
        };

        let Some(words) = heard else {
            if gather.on_empty_result {
                self.next_fetch = Some(ask);
            }
            return prompt + gather.timeout_secs;
        };

        *turn += 1;
        if keyed {
            ask.params.push(("Digits", words.to_owned()));
        } else {
            ask.params.push(("SpeechResult", words.to_owned()));
            ask.params
                .push(("Confidence", format!("{}", behavior.confidence)));
        }
        self.next_fetch = Some(ask);
        prompt + behavior.reply_after_secs + behavior.speech_secs(words)
    }
}

fn prompt_secs(behavior: &CalleeBehavior, verb: &TwimlVerb) -> f64 {
    match verb {
        TwimlVerb::Say { chars, times } => behavior.speech_secs(chars) * f64::from(*times),
        TwimlVerb::Play { times } => behavior.play_secs * f64::from(*times),
        TwimlVerb::Pause { secs } => *secs,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callee::OutcomeMix;
    use crate::twiml;

    const RECORDING: &str = "http://sim/rec";

    fn answering(script: &str) -> (CalleeBehavior, CallPlan) {
        let behavior = CalleeBehavior {
            mix: OutcomeMix::only(crate::CallOutcome::Answers),
            scripts: vec![script.to_owned()],
            chars_per_sec: 10.0,
            reply_after_secs: 1.0,
            ..CalleeBehavior::default()
        };
        let plan = behavior.plan("+14155551234", 0);
        (behavior, plan)
    }

    fn run(
        document: &str,
        behavior: &CalleeBehavior,
        plan: &CallPlan,
        turn: &mut usize,
    ) -> Vec<DialogStep> {
        let mut talk =
            TwimlInterpreter::new("http://app/a".to_owned(), twiml::parse(document).unwrap());
        let mut steps = Vec::new();
        loop {
            let step = talk.next_step(behavior, plan, turn, RECORDING);
            steps.push(step.clone());
            if !matches!(step, DialogStep::Wait(_)) {
                return steps;
            }
        }
    }

    #[test]
    fn a_person_answers_each_gather_with_the_next_turn_and_then_falls_silent() {
        let (behavior, plan) = answering("Hello?|12");
        let document = r#"<Response><Gather input="speech dtmf" action="t" timeout="4">
            <Say>0123456789</Say></Gather><Hangup/></Response>"#;
        let mut turn = 0;
        let steps = run(document, &behavior, &plan, &mut turn);
        assert_eq!(steps[0], DialogStep::Wait(1.0 + 1.0 + 0.6));
        let DialogStep::Fetch(ask) = &steps[1] else {
            panic!("{steps:?}")
        };
        assert_eq!(ask.params[0], ("SpeechResult", "Hello?".to_owned()));
        let steps = run(document, &behavior, &plan, &mut turn);
        let DialogStep::Fetch(ask) = &steps[1] else {
            panic!("{steps:?}")
        };
        assert_eq!(ask.params, [("Digits", "12".to_owned())]);
        let steps = run(document, &behavior, &plan, &mut turn);
        assert_eq!(steps, [DialogStep::Wait(5.0), DialogStep::Hangup]);
    }

    #[test]
    fn an_empty_result_is_reported_only_when_asked_for() {
        let (behavior, plan) = answering("spoken words");
        let silent = r#"<Response><Gather actionOnEmptyResult="true" action="t"/></Response>"#;
        let steps = run(silent, &behavior, &plan, &mut 0);
        assert!(matches!(&steps[1], DialogStep::Fetch(ask) if ask.params.is_empty()));
        let steps = run("<Response><Gather/></Response>", &behavior, &plan, &mut 0);
        assert_eq!(steps, [DialogStep::Wait(5.0), DialogStep::Hangup]);
    }

    #[test]
    fn verbs_take_their_time_and_lead_on() {
        let (behavior, plan) = answering("x");
        let steps = run(
            r#"<Response><Say loop="2">0123456789</Say><Play>a</Play><Pause length="2"/>
            <Record maxLength="7" action="r"/></Response>"#,
            &behavior,
            &plan,
            &mut 0,
        );
        assert_eq!(
            steps[..3],
            [
                DialogStep::Wait(2.0),
                DialogStep::Wait(3.0),
                DialogStep::Wait(2.0)
            ]
        );
        assert_eq!(steps[3], DialogStep::Wait(7.0));
        let DialogStep::Fetch(ask) = &steps[4] else {
            panic!("{steps:?}")
        };
        assert_eq!(ask.params[0], ("RecordingUrl", RECORDING.to_owned()));

        let steps = run(
            "<Response><Start/><Connect><Stream url='wss://x'/></Connect></Response>",
            &behavior,
            &plan,
            &mut 0,
        );
        assert_eq!(steps, [DialogStep::Hold]);

        let steps = run(
            "<Response><Redirect>next</Redirect></Response>",
            &behavior,
            &plan,
            &mut 0,
        );
        assert!(matches!(&steps[0], DialogStep::Fetch(ask) if ask.url == "next"));
    }

    #[test]
    fn a_machine_says_its_greeting_once() {
        let (mut behavior, _) = answering("x");
        behavior.mix = OutcomeMix::only(crate::CallOutcome::Machine);
        let plan = behavior.plan("+14155551234", 0);
        assert_eq!(
            behavior.utterance(&plan, 0),
            Some(behavior.greeting.as_str())
        );
        assert_eq!(behavior.utterance(&plan, 1), None);
    }
}
