//! Interpreter of answer documents, without I/O: from a document and a callee it derives the
//! next wait, the next document to fetch, and the end of the call.

use std::collections::VecDeque;

use crate::call::Method;
use crate::callee::{Behavior, Plan};
use crate::twiml::{Gather, Verb};

/// The next step of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Prompts and speech of this many call seconds.
    Wait(f64),
    Ask(Ask),
    /// Keep the call open until either side hangs up.
    Hold,
    Hangup,
}

/// Reason of a document fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskKind {
    Answer,
    Fallback,
    Gather,
    Record,
    Redirect,
}

/// A document to fetch. `url` may be relative to the document that named it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) kind: AskKind,
    pub(crate) url: String,
    pub(crate) method: Method,
    pub(crate) params: Vec<(&'static str, String)>,
}

/// A document in progress.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    verbs: VecDeque<Verb>,
    /// The fetch after the current wait.
    pending: Option<Ask>,
    /// URL of the document; empty for an inline one.
    pub(crate) url: String,
}

impl Talk {
    pub(crate) fn new(url: String, verbs: Vec<Verb>) -> Self {
        Self {
            verbs: verbs.into(),
            pending: None,
            url,
        }
    }

    /// Takes the next step. `turn` counts the callee's utterances over all documents.
    pub(crate) fn step(
        &mut self,
        behavior: &Behavior,
        plan: &Plan,
        turn: &mut usize,
        recording_url: &str,
    ) -> Step {
        if let Some(ask) = self.pending.take() {
            return Step::Ask(ask);
        }
        loop {
            let Some(verb) = self.verbs.pop_front() else {
                return Step::Hangup;
            };
            match verb {
                Verb::Say { .. } | Verb::Play { .. } | Verb::Pause { .. } => {
                    return Step::Wait(prompt_secs(behavior, &verb));
                }
                Verb::Gather(gather) => {
                    return Step::Wait(self.gather(behavior, plan, turn, gather));
                }
                Verb::Record(record) => {
                    self.pending = Some(Ask {
                        kind: AskKind::Record,
                        url: record.action,
                        method: record.method,
                        params: vec![
                            ("RecordingUrl", recording_url.to_owned()),
                            ("RecordingDuration", format!("{:.0}", record.secs)),
                        ],
                    });
                    return Step::Wait(record.secs);
                }
                Verb::Redirect { url, method } => {
                    return Step::Ask(Ask {
                        kind: AskKind::Redirect,
                        url,
                        method,
                        params: Vec::new(),
                    });
                }
                Verb::Hangup => return Step::Hangup,
                Verb::Hold => return Step::Hold,
                Verb::Aside => {}
            }
        }
    }

    /// Sets the fetch that follows the callee's words and returns the seconds that they take.
    fn gather(
        &mut self,
        behavior: &Behavior,
        plan: &Plan,
        turn: &mut usize,
        gather: Gather,
    ) -> f64 {
        let prompt: f64 = gather
            .prompts
            .iter()
            .map(|prompt| prompt_secs(behavior, prompt))
            .sum();
        let words = behavior.utterance(plan, *turn);
        let keyed = words.is_some_and(|words| words.bytes().all(|b| b.is_ascii_digit()));
        let heard = words.filter(|_| if keyed { gather.digits } else { gather.speech });

        let mut ask = Ask {
            kind: AskKind::Gather,
            url: gather.action,
            method: gather.method,
            params: Vec::new(),
        };

        let Some(words) = heard else {
            if gather.on_empty_result {
                self.pending = Some(ask);
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
        self.pending = Some(ask);
        prompt + behavior.reply_after_secs + behavior.speech_secs(words)
    }
}

fn prompt_secs(behavior: &Behavior, verb: &Verb) -> f64 {
    match verb {
        Verb::Say { chars, times } => behavior.speech_secs(chars) * f64::from(*times),
        Verb::Play { times } => behavior.play_secs * f64::from(*times),
        Verb::Pause { secs } => *secs,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callee::Mix;
    use crate::twiml;

    const RECORDING: &str = "http://sim/rec";

    fn answering(script: &str) -> (Behavior, Plan) {
        let behavior = Behavior {
            mix: Mix::only(crate::Callee::Answers),
            scripts: vec![script.to_owned()],
            chars_per_sec: 10.0,
            reply_after_secs: 1.0,
            ..Behavior::default()
        };
        let plan = behavior.plan("+14155551234", 0);
        (behavior, plan)
    }

    fn run(document: &str, behavior: &Behavior, plan: &Plan, turn: &mut usize) -> Vec<Step> {
        let mut talk = Talk::new("http://app/a".to_owned(), twiml::parse(document).unwrap());
        let mut steps = Vec::new();
        loop {
            let step = talk.step(behavior, plan, turn, RECORDING);
            steps.push(step.clone());
            if !matches!(step, Step::Wait(_)) {
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
        assert_eq!(steps[0], Step::Wait(1.0 + 1.0 + 0.6));
        let Step::Ask(ask) = &steps[1] else {
            panic!("{steps:?}")
        };
        assert_eq!(ask.params[0], ("SpeechResult", "Hello?".to_owned()));
        let steps = run(document, &behavior, &plan, &mut turn);
        let Step::Ask(ask) = &steps[1] else {
            panic!("{steps:?}")
        };
        assert_eq!(ask.params, [("Digits", "12".to_owned())]);
        let steps = run(document, &behavior, &plan, &mut turn);
        assert_eq!(steps, [Step::Wait(5.0), Step::Hangup]);
    }

    #[test]
    fn an_empty_result_is_reported_only_when_asked_for() {
        let (behavior, plan) = answering("spoken words");
        let silent = r#"<Response><Gather actionOnEmptyResult="true" action="t"/></Response>"#;
        let steps = run(silent, &behavior, &plan, &mut 0);
        assert!(matches!(&steps[1], Step::Ask(ask) if ask.params.is_empty()));
        let steps = run("<Response><Gather/></Response>", &behavior, &plan, &mut 0);
        assert_eq!(steps, [Step::Wait(5.0), Step::Hangup]);
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
            [Step::Wait(2.0), Step::Wait(3.0), Step::Wait(2.0)]
        );
        assert_eq!(steps[3], Step::Wait(7.0));
        let Step::Ask(ask) = &steps[4] else {
            panic!("{steps:?}")
        };
        assert_eq!(ask.params[0], ("RecordingUrl", RECORDING.to_owned()));

        let steps = run(
            "<Response><Start/><Connect><Stream url='wss://x'/></Connect></Response>",
            &behavior,
            &plan,
            &mut 0,
        );
        assert_eq!(steps, [Step::Hold]);

        let steps = run(
            "<Response><Redirect>next</Redirect></Response>",
            &behavior,
            &plan,
            &mut 0,
        );
        assert!(matches!(&steps[0], Step::Ask(ask) if ask.url == "next"));
    }

    #[test]
    fn a_machine_says_its_greeting_once() {
        let (mut behavior, _) = answering("x");
        behavior.mix = Mix::only(crate::Callee::Machine);
        let plan = behavior.plan("+14155551234", 0);
        assert_eq!(
            behavior.utterance(&plan, 0),
            Some(behavior.greeting.as_str())
        );
        assert_eq!(behavior.utterance(&plan, 1), None);
    }
}
