//! Simulated callees: the outcome of a call, its times, and the callee's words.
//!
//! The outcome is derived from the seed, the number and the count of its earlier calls, so the
//! third call to a number ends the same in every run. The last digits override the draw (longest
//! suffix first), see [`CalleeBehavior::suffixes`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::seeded_rng::SeededRng;

/// Outcome of a call to a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallOutcome {
    /// A person answers and talks.
    Answers,
    /// `busy`, SIP 486, without ringing.
    Busy,
    /// Rings until the caller's timeout: `no-answer`, SIP 487.
    NoAnswer,
    /// Answered by a machine (`machine_start`).
    Machine,
    /// The create is refused: 400, code 21211.
    Invalid,
    /// Rings, then declines: `failed`, SIP 603.
    Rejects,
    /// Answers and hangs up within seconds.
    HangsUpEarly,
    /// The network has no circuit: `failed`, SIP 503, without ringing.
    Fails,
    /// No such subscriber: `failed`, SIP 404, without ringing.
    Unallocated,
    /// Answered by a fax.
    Fax,
}

impl CallOutcome {
    pub(crate) const ALL: [(Self, &'static str); 10] = [
        (Self::Answers, "answers"),
        (Self::Busy, "busy"),
        (Self::NoAnswer, "no_answer"),
        (Self::Machine, "machine"),
        (Self::Invalid, "invalid"),
        (Self::Rejects, "rejects"),
        (Self::HangsUpEarly, "hangs_up_early"),
        (Self::Fails, "fails"),
        (Self::Unallocated, "unallocated"),
        (Self::Fax, "fax"),
    ];

    fn parse_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, word)| *word == name)
            .map(|(callee, _)| *callee)
    }

    /// Twilio's `AnsweredBy` value of an answered call.
    pub(crate) fn answered_by(self) -> &'static str {
        match self {
            Self::Machine => "machine_start",
            Self::Fax => "fax",
            _ => "human",
        }
    }
}

/// Relative weights of the outcomes; an outcome that is not named has weight 0.
/// As text: `answers=60,busy=5`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OutcomeMix(pub BTreeMap<CallOutcome, u32>);

impl Default for OutcomeMix {
    fn default() -> Self {
        Self(BTreeMap::from([
            (CallOutcome::Answers, 56),
            (CallOutcome::Machine, 15),
            (CallOutcome::NoAnswer, 17),
            (CallOutcome::Busy, 6),
            (CallOutcome::HangsUpEarly, 3),
            (CallOutcome::Rejects, 2),
            (CallOutcome::Fails, 1),
        ]))
    }
}

impl OutcomeMix {
    /// Every call has the same outcome.
    pub fn only(callee: CallOutcome) -> Self {
        Self(BTreeMap::from([(callee, 1)]))
    }

    fn pick(&self, draw: &mut SeededRng, without: Option<CallOutcome>) -> Option<CallOutcome> {
        let eligible = || {
            self.0
                .iter()
                .filter(|(callee, _)| Some(**callee) != without)
        };
        let total = eligible().map(|(_, weight)| u64::from(*weight)).sum();
        let mut ticket = draw.below(total);
        for (callee, weight) in eligible() {
            let weight = u64::from(*weight);
            if ticket < weight {
                return Some(*callee);
            }
            ticket -= weight;
        }
        None
    }
}

impl FromStr for OutcomeMix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, weight) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is not of the form outcome=weight"))?;
            let callee = CallOutcome::parse_name(name.trim())
                .ok_or_else(|| format!("`{name}` is not an outcome"))?;
            let weight = weight
                .trim()
                .parse()
                .map_err(|error| format!("weight of `{name}`: {error}"))?;
            weights.insert(callee, weight);
        }
        Ok(Self(weights))
    }
}

impl fmt::Display for OutcomeMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (callee, name) in CallOutcome::ALL {
            if let Some(weight) = self.0.get(&callee) {
                write!(f, "{separator}{name}={weight}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// A uniform range of call seconds. As text `20-90` or `5`, as
/// JSON `[20, 90]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "(f64, f64)", into = "(f64, f64)")]
pub struct SecondsRange {
    min: f64,
    max: f64,
}

impl SecondsRange {
    /// Rejects negative, infinite and inverted ranges.
    pub fn new(min: f64, max: f64) -> Result<Self, String> {
        if (0.0..=1e7).contains(&min) && (min..=1e7).contains(&max) {
            return Ok(Self { min, max });
        }
        Err(format!("{min}-{max} is not a range of seconds"))
    }

    const fn fixed(min: f64, max: f64) -> Self {
        Self { min, max }
    }

    fn draw(self, draw: &mut SeededRng) -> f64 {
        draw.between(self.min, self.max)
    }
}

impl TryFrom<(f64, f64)> for SecondsRange {
    type Error = String;

    fn try_from((min, max): (f64, f64)) -> Result<Self, String> {
        Self::new(min, max)
    }
}

impl From<SecondsRange> for (f64, f64) {
    fn from(span: SecondsRange) -> Self {
        (span.min, span.max)
    }
}

impl FromStr for SecondsRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let number = |word: &str| word.trim().parse::<f64>().map_err(|e| e.to_string());
        Self::new(number(min)?, number(max)?)
    }
}

impl fmt::Display for SecondsRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

/// Behavior of callees. All times are call seconds, compressed by the speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct CalleeBehavior {
    /// Seed of all random values about callees.
    #[arg(long, default_value_t = Self::default().seed)]
    pub seed: u64,
    /// Weights of the outcomes, such as answers=60,busy=5,no_answer=35.
    #[arg(long, default_value_t = Self::default().mix)]
    pub mix: OutcomeMix,
    /// Outcome of numbers that end in these digits; the longest suffix wins.
    /// With an empty map the mix decides for every number.
    #[arg(skip = Self::default().suffixes)]
    pub suffixes: BTreeMap<String, CallOutcome>,
    /// Seconds from `initiated` to `ringing`, or to a final status without ringing.
    #[arg(long, default_value_t = Self::default().setup_secs)]
    pub setup_secs: SecondsRange,
    /// Seconds from `ringing` to the answer or the decline.
    #[arg(long, default_value_t = Self::default().ring_secs)]
    pub ring_secs: SecondsRange,
    /// Seconds until a person hangs up, unless the document ends the call before.
    #[arg(long, default_value_t = Self::default().talk_secs)]
    pub talk_secs: SecondsRange,
    /// Seconds until a machine hangs up.
    #[arg(long, default_value_t = Self::default().machine_secs)]
    pub machine_secs: SecondsRange,
    /// Seconds until a person hangs up early.
    #[arg(long, default_value_t = Self::default().early_hangup_secs)]
    pub early_hangup_secs: SecondsRange,
    /// Seconds of answering-machine detection.
    #[arg(long, default_value_t = Self::default().detection_secs)]
    pub detection_secs: SecondsRange,
    /// Words of people, one script per flag, turns separated by `|`. Each call draws one
    /// script; after its last turn the person is silent. A turn of digits only is keyed
    /// instead of spoken.
    #[arg(long = "script", default_values_t = Self::default().scripts)]
    pub scripts: Vec<String>,
    /// Words of a machine in the first speech gather.
    #[arg(long, default_value_t = Self::default().greeting)]
    pub greeting: String,
    /// `Confidence` of recognised speech.
    #[arg(long, default_value_t = Self::default().confidence)]
    pub confidence: f64,
    /// Speaking rate of both sides, in characters per second.
    #[arg(long, default_value_t = Self::default().chars_per_sec)]
    pub chars_per_sec: f64,
    /// Seconds before a person replies.
    #[arg(long, default_value_t = Self::default().reply_after_secs)]
    pub reply_after_secs: f64,
    /// Assumed seconds of every played file.
    #[arg(long, default_value_t = Self::default().play_secs)]
    pub play_secs: f64,
    /// Price of each started minute of an answered call, in millionths of a dollar.
    #[arg(long, default_value_t = Self::default().price_per_minute_micros)]
    pub price_per_minute_micros: u64,
    /// Seconds from the end of a call to its price on the call resource.
    #[arg(long, default_value_t = Self::default().price_after_secs)]
    pub price_after_secs: f64,
}

impl Default for CalleeBehavior {
    fn default() -> Self {
        let suffix = |digits: &str, callee| (digits.to_owned(), callee);

        Self {
            seed: 1,
            mix: OutcomeMix::default(),
            suffixes: BTreeMap::from([
                suffix("0000", CallOutcome::Answers),
                suffix("0001", CallOutcome::Busy),
                suffix("0002", CallOutcome::NoAnswer),
                suffix("0003", CallOutcome::Machine),
                suffix("0004", CallOutcome::Invalid),
                suffix("0005", CallOutcome::Rejects),
                suffix("0006", CallOutcome::HangsUpEarly),
                suffix("0007", CallOutcome::Fails),
                suffix("0008", CallOutcome::Unallocated),
                suffix("0009", CallOutcome::Fax),
            ]),
            setup_secs: SecondsRange::fixed(0.5, 2.0),
            ring_secs: SecondsRange::fixed(3.0, 18.0),
            talk_secs: SecondsRange::fixed(20.0, 90.0),
            machine_secs: SecondsRange::fixed(25.0, 40.0),
            early_hangup_secs: SecondsRange::fixed(1.0, 4.0),
            detection_secs: SecondsRange::fixed(2.5, 4.5),
            scripts: vec![
                "Hello?|Yes, that sounds interesting.|Tuesday would work.|Thank you, goodbye."
                    .to_owned(),
                "Hello, who is this?|No, I am not interested.".to_owned(),
                "Yes?|Could you call me back tomorrow?".to_owned(),
            ],
            greeting: "You have reached the voicemail. Please leave a message after the tone."
                .to_owned(),
            confidence: 0.93,
            chars_per_sec: 15.0,
            reply_after_secs: 0.7,
            play_secs: 3.0,
            price_per_minute_micros: 14_000,
            price_after_secs: 2.0,
        }
    }
}

/// Outcome and times of one call, drawn at its creation.
#[derive(Clone, Debug)]
pub(crate) struct CallPlan {
    pub(crate) outcome: CallOutcome,
    pub(crate) setup_secs: f64,
    pub(crate) ring_secs: f64,
    pub(crate) talk_secs: f64,
    pub(crate) detection_secs: f64,
    /// Index of the person's script.
    pub(crate) script: usize,
}

impl CalleeBehavior {
    /// Outcome of a call; `nth` is the count of earlier calls to the number.
    pub(crate) fn outcome(&self, number: &str, nth: u64) -> CallOutcome {
        let by_suffix = self
            .suffixes
            .iter()
            .filter(|(digits, _)| number.ends_with(digits.as_str()))
            .max_by_key(|(digits, _)| digits.len());
        if let Some((_, callee)) = by_suffix {
            return *callee;
        }
        // A number that does not exist never exists later.
        let lasting = self
            .mix
            .pick(&mut SeededRng::new(self.seed, number, "callee", 0), None);
        if nth == 0 || lasting == Some(CallOutcome::Invalid) {
            return lasting.unwrap_or(CallOutcome::Answers);
        }
        let mut draw = SeededRng::new(self.seed, number, "callee", nth);
        self.mix
            .pick(&mut draw, Some(CallOutcome::Invalid))
            .unwrap_or(CallOutcome::Answers)
    }

    pub(crate) fn plan(&self, number: &str, nth: u64) -> CallPlan {
        let callee = self.outcome(number, nth);
        let span = |range: SecondsRange, purpose: &str| {
            range.draw(&mut SeededRng::new(self.seed, number, purpose, nth))
        };
        let talk = match callee {
            CallOutcome::Machine | CallOutcome::Fax => self.machine_secs,
            CallOutcome::HangsUpEarly => self.early_hangup_secs,
            _ => self.talk_secs,
        };
        let scripts = u64::try_from(self.scripts.len()).unwrap_or(0);
        let script = SeededRng::new(self.seed, number, "script", nth).below(scripts);
        CallPlan {
            outcome: callee,
            setup_secs: span(self.setup_secs, "setup"),
            ring_secs: span(self.ring_secs, "ring"),
            talk_secs: span(talk, "talk"),
            detection_secs: span(self.detection_secs, "detection"),
            script: usize::try_from(script).unwrap_or(0),
        }
    }

    /// Words of the callee at its `turn`-th chance to speak.
    pub(crate) fn utterance(&self, plan: &CallPlan, turn: usize) -> Option<&str> {
        match plan.outcome {
            CallOutcome::Fax => None,
            CallOutcome::Machine => (turn == 0).then_some(self.greeting.as_str()),
            _ => self.scripts.get(plan.script)?.split('|').nth(turn),
        }
    }

    pub(crate) fn speech_secs(&self, text: &str) -> f64 {
        let chars = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        f64::from(chars) / self.chars_per_sec.max(0.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_digits_overrule_the_mix_and_the_longest_suffix_wins() {
        let mut behavior = CalleeBehavior {
            mix: OutcomeMix::only(CallOutcome::Answers),
            ..CalleeBehavior::default()
        };
        assert_eq!(behavior.outcome("+14155550001", 0), CallOutcome::Busy);
        assert_eq!(behavior.outcome("+14155550004", 3), CallOutcome::Invalid);
        assert_eq!(behavior.outcome("+14155550010", 0), CallOutcome::Answers);
        behavior
            .suffixes
            .insert("50001".to_owned(), CallOutcome::Fax);
        assert_eq!(behavior.outcome("+14155550001", 0), CallOutcome::Fax);
    }

    #[test]
    fn a_number_that_does_not_exist_never_exists() {
        let behavior = CalleeBehavior {
            mix: "invalid=1,answers=1".parse().unwrap(),
            ..CalleeBehavior::default()
        };
        let mut invalid = 0;
        for n in 1000..1400 {
            let number = format!("+1415555{n}");
            let first = behavior.outcome(&number, 0);
            invalid += u32::from(first == CallOutcome::Invalid);
            for nth in 1..4 {
                let later = behavior.outcome(&number, nth);
                assert_eq!(later == CallOutcome::Invalid, first == CallOutcome::Invalid);
            }
        }
        assert!((120..280).contains(&invalid), "{invalid} of 400");
    }

    #[test]
    fn texts_of_mixes_and_spans_read_back() {
        let mix = OutcomeMix::default();
        assert_eq!(mix.to_string().parse::<OutcomeMix>().unwrap(), mix);
        assert!("answers".parse::<OutcomeMix>().is_err());
        assert!("sleeps=1".parse::<OutcomeMix>().is_err());
        let span: SecondsRange = "20-90".parse().unwrap();
        assert_eq!(span.to_string().parse::<SecondsRange>().unwrap(), span);
        assert_eq!(
            "5".parse::<SecondsRange>().unwrap(),
            SecondsRange::new(5.0, 5.0).unwrap()
        );
        assert!("9-5".parse::<SecondsRange>().is_err());
        assert!(serde_json::from_str::<SecondsRange>("[3, 1]").is_err());
    }
}
