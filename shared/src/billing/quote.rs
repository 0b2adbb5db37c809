//! Price of a call: pure arithmetic over rates.

use std::collections::HashMap;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use crate::platform::e164::E164;
use crate::platform::ids::OrgId;
use crate::platform::money::Usd;

/// A billed service.
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
    /// The language model's minutes, by its name.
    Model,
    /// The speech model's minutes, by its name.
    Speech,
    /// The platform's minutes.
    Platform,
    /// A call that a carrier accepted, answered or not.
    Attempt,
}

impl Service {
    /// Every service, in the order of bill lines.
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
pub struct ServiceRate {
    pub service: Service,
    /// Prefix or name that it matches; empty matches all others.
    #[serde(rename = "match")]
    pub matched: String,
    /// Per minute; for an attempt, per call.
    pub price_usd: Decimal,
    /// Billing increment, in seconds.
    pub increment_secs: i32,
}

/// Terms of the reseller, if any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResellerTerms {
    pub reseller_org_id: Option<OrgId>,
    pub org_type: String,
    /// Markup on the customer's price; only a distributor has one.
    pub markup_percent: Decimal,
    /// Commission on the platform's price.
    pub commission_percent: Decimal,
}

impl ResellerTerms {
    /// Terms of a reseller, or [`Self::direct`] without one.
    #[must_use]
    pub fn new(
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

    /// Terms without a reseller.
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

/// Rates and terms that price a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallPrices {
    pub rates: Vec<ServiceRate>,
    pub terms: ResellerTerms,
}

/// Properties of a call that select its rates.
#[derive(Clone, Copy, Debug)]
pub struct PricedCall<'a> {
    pub to: &'a E164,
    pub model: Option<&'a str>,
    pub speech: Option<&'a str>,
}

/// Rates in force, by service and match.
#[derive(Clone, Debug, Default)]
pub struct PriceCatalogue {
    rates: HashMap<Service, HashMap<String, ServiceRate>>,
}

impl FromIterator<ServiceRate> for PriceCatalogue {
    fn from_iter<I: IntoIterator<Item = ServiceRate>>(rates: I) -> Self {
        let mut catalogue = Self::default();
        for rate in rates {
            let of_service = catalogue.rates.entry(rate.service).or_default();
            of_service.insert(rate.matched.clone(), rate);
        }
        catalogue
    }
}

impl PriceCatalogue {
    /// Returns the rates of a call: the closest match of each service. A service without a match is
    /// free.
    #[must_use]
    pub fn rates_for(&self, call: &PricedCall<'_>) -> Vec<ServiceRate> {
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

    /// Returns the matched telephony prefix of a number.
    #[must_use]
    pub fn prefix_of(&self, to: &E164) -> &str {
        self.by_prefix(to).map_or("", |rate| rate.matched.as_str())
    }

    fn by_prefix(&self, to: &E164) -> Option<&ServiceRate> {
        let rates = self.rates.get(&Service::Telephony)?;
        let digits = to.as_str().trim_start_matches('+');
        (0..=digits.len())
            .rev()
            .find_map(|length| rates.get(digits.get(..length)?))
    }

    fn by_name(&self, service: Service, name: Option<&str>) -> Option<&ServiceRate> {
        let rates = self.rates.get(&service)?;
        name.and_then(|name| rates.get(name))
            .or_else(|| rates.get(""))
    }
}

/// Billable usage of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallUsage {
    /// True when the carrier accepted the call.
    pub attempted: bool,
    /// Answered duration, as the carrier reports it.
    pub seconds: i32,
}

/// One line of a bill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillLine {
    pub service: Service,
    #[serde(rename = "match")]
    pub matched: String,
    /// Billed seconds, or calls; negative in a reversal.
    pub quantity: i64,
    pub unit: BillingUnit,
    /// Per minute, or per call.
    pub price_usd: Decimal,
    pub base_micros: i64,
    pub retail_micros: i64,
}

/// Unit of a line's quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Unit)]
pub enum BillingUnit {
    Second,
    Call,
}

/// Bill of a call. Base is the platform's price, retail the customer's. The reseller gets markup
/// and commission, the platform the remainder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bill {
    /// Billed seconds of telephony.
    pub billed_seconds: i32,
    pub lines: Vec<BillLine>,
    pub base: Usd,
    pub retail: Usd,
    pub markup: Usd,
    pub commission: Usd,
}

impl Bill {
    /// Returns the bill that reverses this one.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let lines = self.lines.iter().map(|line| BillLine {
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

/// Prices the usage of a call.
#[must_use]
pub fn price_call(prices: &CallPrices, used: CallUsage) -> Bill {
    let hundred = Decimal::ONE_HUNDRED;
    let factor = Decimal::ONE + prices.terms.markup_percent / hundred;
    let mut bill = Bill::default();
    for rate in &prices.rates {
        let (quantity, unit, units) = match rate.service {
            Service::Attempt => (i64::from(used.attempted), BillingUnit::Call, Decimal::ONE),
            _ => {
                let seconds = i64::from(round_up_to_step(used.seconds, rate.increment_secs));
                (seconds, BillingUnit::Second, Decimal::from(60))
            }
        };

        if rate.service == Service::Telephony {
            bill.billed_seconds = round_up_to_step(used.seconds, rate.increment_secs);
        }
        if quantity == 0 {
            continue;
        }

        // Divides last, so that only the result is rounded.
        let amount = Decimal::from(quantity) * rate.price_usd;
        let base = Usd::rounded(amount / units);
        let retail = Usd::rounded(amount * factor / units);
        bill.base = bill.base.plus(base);
        bill.retail = bill.retail.plus(retail);
        bill.lines.push(BillLine {
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

/// Maximum cost of a call that is answered for `seconds`.
#[must_use]
pub fn max_cost(prices: &CallPrices, seconds: i32) -> Usd {
    let used = CallUsage {
        attempted: true,
        seconds,
    };
    price_call(prices, used).retail
}

/// Rounds seconds up to whole steps.
fn round_up_to_step(seconds: i32, step: i32) -> i32 {
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
