//! What a call costs: pure arithmetic over prices.

use std::collections::HashMap;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use crate::ids::OrgId;
use crate::money::Usd;
use crate::phone::E164;

/// What is paid for.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    sqlx::Type,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Service {
    /// The carrier's minutes, by the number called.
    Telephony,
    /// The model's minutes, by its name.
    Model,
    /// Speech's minutes, by its name.
    Speech,
    /// The platform's minutes.
    Platform,
    /// A call that a carrier took, answered or not.
    Attempt,
}

impl Service {
    /// Every service, in the order of lines.
    pub const ALL: [Self; 5] = [
        Self::Telephony,
        Self::Model,
        Self::Speech,
        Self::Platform,
        Self::Attempt,
    ];
}

/// The price of a service for one kind of call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    pub service: Service,
    /// The prefix or name it is for; empty is everything that has no price of its own.
    #[serde(rename = "match")]
    pub matched: String,
    /// Per minute; of an attempt, per call.
    pub price_usd: Decimal,
    /// Seconds are billed in steps of so many.
    pub increment_secs: i32,
}

/// Who earns beside the platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub reseller_org_id: Option<OrgId>,
    pub org_type: String,
    /// On the price that the customer sees; nothing but a distributor's.
    pub markup_percent: Decimal,
    /// Of what the platform's price would be.
    pub commission_percent: Decimal,
}

impl Terms {
    /// The terms of a reseller, or of nobody.
    #[must_use]
    pub fn of(
        reseller: Option<OrgId>,
        org_type: Option<String>,
        markup_percent: Option<Decimal>,
        commission_percent: Option<Decimal>,
    ) -> Self {
        let (Some(_), Some(org_type)) = (reseller, org_type) else {
            return Self::direct();
        };
        Self {
            reseller_org_id: reseller,
            org_type,
            markup_percent: markup_percent.unwrap_or_default().normalize(),
            commission_percent: commission_percent.unwrap_or_default().normalize(),
        }
    }

    /// Nobody else earns.
    #[must_use]
    pub fn direct() -> Self {
        Self {
            reseller_org_id: None,
            org_type: "internal".to_owned(),
            markup_percent: Decimal::ZERO,
            commission_percent: Decimal::ZERO,
        }
    }
}

/// Everything that decides what a call costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    pub rates: Vec<Rate>,
    pub terms: Terms,
}

/// What a call is made with, as far as prices look at it.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    pub to: &'a E164,
    pub model: Option<&'a str>,
    pub speech: Option<&'a str>,
}

/// The prices in force.
#[derive(Clone, Debug, Default)]
pub struct Book {
    rates: HashMap<Service, HashMap<String, Rate>>,
}

impl FromIterator<Rate> for Book {
    fn from_iter<I: IntoIterator<Item = Rate>>(rates: I) -> Self {
        let mut book = Self::default();
        for rate in rates {
            let of_service = book.rates.entry(rate.service).or_default();
            of_service.insert(rate.matched.clone(), rate);
        }
        book
    }
}

impl Book {
    /// The prices of a call: of each service the closest match. A service without one is free.
    #[must_use]
    pub fn rates_for(&self, call: &Destination<'_>) -> Vec<Rate> {
        Service::ALL
            .into_iter()
            .filter_map(|service| match service {
                Service::Telephony => self.by_prefix(call.to),
                Service::Model => self.by_name(service, call.model),
                Service::Speech => self.by_name(service, call.speech),
                Service::Platform | Service::Attempt => self.by_name(service, None),
            })
            .filter(|rate| !rate.price_usd.is_zero())
            .cloned()
            .collect()
    }

    /// The prefix by whose price a number is called.
    #[must_use]
    pub fn prefix_of(&self, to: &E164) -> &str {
        self.by_prefix(to).map_or("", |rate| rate.matched.as_str())
    }

    fn by_prefix(&self, to: &E164) -> Option<&Rate> {
        let rates = self.rates.get(&Service::Telephony)?;
        let digits = to.as_str().trim_start_matches('+');
        (0..=digits.len())
            .rev()
            .find_map(|length| rates.get(digits.get(..length)?))
    }

    fn by_name(&self, service: Service, name: Option<&str>) -> Option<&Rate> {
        let rates = self.rates.get(&service)?;
        name.and_then(|name| rates.get(name))
            .or_else(|| rates.get(""))
    }
}

/// What a call used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Whether the carrier took the call.
    pub attempted: bool,
    /// How long it was answered, by the carrier.
    pub seconds: i32,
}

/// One line of a bill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub service: Service,
    #[serde(rename = "match")]
    pub matched: String,
    /// Seconds that are billed, or calls; negative where a charge is taken back.
    pub quantity: i64,
    pub unit: Unit,
    /// Per minute, or per call.
    pub price_usd: Decimal,
    pub base_micros: i64,
    pub retail_micros: i64,
}

/// What a line counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Second,
    Call,
}

/// What a call costs. Base is the platform's price, retail the customer's; the reseller gets
/// markup and commission of it, the platform the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bill {
    /// Seconds of telephony.
    pub billed_seconds: i32,
    pub lines: Vec<Line>,
    pub base: Usd,
    pub retail: Usd,
    pub markup: Usd,
    pub commission: Usd,
}

impl Bill {
    /// What takes this bill back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let lines = self.lines.iter().map(|line| Line {
            quantity: line.quantity.saturating_neg(),
            base_micros: line.base_micros.saturating_neg(),
            retail_micros: line.retail_micros.saturating_neg(),
            ..line.clone()
        });
        Self {
            billed_seconds: self.billed_seconds.saturating_neg(),
            lines: lines.collect(),
            base: -self.base,
            retail: -self.retail,
            markup: -self.markup,
            commission: -self.commission,
        }
    }
}

/// Prices what a call used.
#[must_use]
pub fn price(prices: &Prices, used: Used) -> Bill {
    let hundred = Decimal::ONE_HUNDRED;
    let factor = Decimal::ONE + prices.terms.markup_percent / hundred;
    let mut bill = Bill::default();
    for rate in &prices.rates {
        let (quantity, unit, units) = match rate.service {
            Service::Attempt => (i64::from(used.attempted), Unit::Call, Decimal::ONE),
            _ => {
                let seconds = i64::from(stepped(used.seconds, rate.increment_secs));
                (seconds, Unit::Second, Decimal::from(60))
            }
        };
        if rate.service == Service::Telephony {
            bill.billed_seconds = stepped(used.seconds, rate.increment_secs);
        }
        if quantity == 0 {
            continue;
        }
        // Divided last, so that nothing but the result is rounded.
        let amount = Decimal::from(quantity) * rate.price_usd;
        let base = Usd::rounded(amount / units);
        let retail = Usd::rounded(amount * factor / units);
        bill.base = bill.base.plus(base);
        bill.retail = bill.retail.plus(retail);
        bill.lines.push(Line {
            service: rate.service,
            matched: rate.matched.clone(),
            quantity,
            unit,
            price_usd: rate.price_usd,
            base_micros: base.0,
            retail_micros: retail.0,
        });
    }
    if prices.terms.reseller_org_id.is_some() {
        bill.markup = bill.retail.minus(bill.base);
        let share = prices.terms.commission_percent / hundred;
        bill.commission = Usd::rounded(bill.base.to_decimal() * share);
    }
    bill
}

/// The most that a call costs which is answered for so long.
#[must_use]
pub fn worst_case(prices: &Prices, seconds: i32) -> Usd {
    let used = Used {
        attempted: true,
        seconds,
    };
    price(prices, used).retail
}

/// Seconds in whole steps, rounded up.
fn stepped(seconds: i32, step: i32) -> i32 {
    let (seconds, step) = (seconds.max(0), step.max(1));
    let rest = seconds % step;
    match rest {
        0 => seconds,
        rest => seconds.saturating_add(step - rest),
    }
}

#[cfg(test)]
#[path = "quote_tests.rs"]
mod tests;
