//! Money: whole micro-dollars (1e-6 USD), on the wire a decimal string such as `"12.50"`. A rate
//! is not money but a [`Decimal`]; one rounding turns it into money.

use std::fmt;
use std::iter::Sum;
use std::ops::Neg;
use std::str::FromStr;

use rust_decimal::Decimal;
use rust_decimal::prelude::{RoundingStrategy, ToPrimitive};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Micro-dollars in a dollar.
const MICROS_PER_USD: i64 = 1_000_000;
/// Decimal places of a micro-dollar.
const DECIMAL_PLACES: usize = 6;
/// Decimal places that are always shown.
const MIN_SHOWN_PLACES: usize = 2;

/// Amount in micro-dollars. Arithmetic saturates at the range of the type, nine trillion dollars;
/// the database's sums refuse such an amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct Usd(pub i64);

/// Error of a text that is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAmount {
    #[error("must be an amount in USD with at most 6 decimal places, such as \"12.50\"")]
    Malformed,
    #[error("is too large")]
    TooLarge,
}

impl Usd {
    /// Zero dollars.
    pub const ZERO: Self = Self(0);

    /// Whole dollars.
    #[must_use]
    pub const fn dollars(dollars: i64) -> Self {
        Self(dollars.saturating_mul(MICROS_PER_USD))
    }

    /// Rounds an exact number of dollars half to even at the sixth place. Money is rounded only
    /// here.
    #[must_use]
    pub fn rounded(dollars: Decimal) -> Self {
        let micros = dollars
            .saturating_mul(Decimal::from(MICROS_PER_USD))
            .round_dp_with_strategy(0, RoundingStrategy::MidpointNearestEven);
        Self(micros.to_i64().unwrap_or(if micros.is_sign_negative() {
            i64::MIN
        } else {
            i64::MAX
        }))
    }

    /// Saturating sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Saturating difference.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// True for an amount above zero.
    #[must_use]
    pub const fn is_positive(self) -> bool {
        self.0 > 0
    }

    /// True for zero.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The amount, or zero if it is negative.
    #[must_use]
    pub fn or_zero(self) -> Self {
        self.max(Self::ZERO)
    }

    /// Number of dollars.
    #[must_use]
    pub fn to_decimal(self) -> Decimal {
        Decimal::new(self.0, 6)
    }
}

impl Neg for Usd {
    type Output = Self;

    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Self::plus)
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = MICROS_PER_USD.unsigned_abs();
        let (whole, part) = (
            self.0.unsigned_abs() / micros,
            self.0.unsigned_abs() % micros,
        );
        let part = format!("{part:0DECIMAL_PLACES$}");
        let shown = part.trim_end_matches('0').len().max(MIN_SHOWN_PLACES);
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{whole}.{part:.shown$}")
    }
}

impl TryFrom<Decimal> for Usd {
    type Error = InvalidAmount;

    fn try_from(dollars: Decimal) -> Result<Self, InvalidAmount> {
        let dollars = dollars.normalize();
        if dollars.scale() > 6 {
            return Err(InvalidAmount::Malformed);
        }
        let micros = dollars
            .checked_mul(Decimal::from(MICROS_PER_USD))
            .ok_or(InvalidAmount::TooLarge)?;
        micros.to_i64().map(Self).ok_or(InvalidAmount::TooLarge)
    }
}

/// Digits of the largest amount before its decimal point.
const MAX_WHOLE_DIGITS: usize = 13;

impl FromStr for Usd {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if !plain || digits.is_empty() {
            return Err(InvalidAmount::Malformed);
        }
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.trim_start_matches('0').len() > MAX_WHOLE_DIGITS && !part.contains('.') {
            return Err(InvalidAmount::TooLarge);
        }
        let exact = Decimal::from_str_exact(text).map_err(|_malformed| InvalidAmount::Malformed)?;
        Self::try_from(exact)
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor)
    }
}

/// Visitor that reads a decimal string or a JSON number.
struct AmountVisitor;

impl Visitor<'_> for AmountVisitor {
    type Value = Usd;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an amount in USD with at most 6 decimal places, such as \"12.50\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Usd, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, dollars: i64) -> Result<Usd, E> {
        Usd::try_from(Decimal::from(dollars)).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, dollars: u64) -> Result<Usd, E> {
        Usd::try_from(Decimal::from(dollars)).map_err(E::custom)
    }

    // The shortest text of the number is what the client sent.
    fn visit_f64<E: de::Error>(self, dollars: f64) -> Result<Usd, E> {
        dollars.to_string().parse().map_err(E::custom)
    }
}

impl utoipa::PartialSchema for Usd {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .description(Some("USD, with two to six decimal places."))
            .pattern(Some(r"^-?[0-9]+(\.[0-9]{1,6})?$"))
            .examples([serde_json::json!("12.50")])
            .into()
    }
}

impl utoipa::ToSchema for Usd {
    fn name() -> std::borrow::Cow<'static, str> {
        "Usd".into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_shown_with_two_places_or_as_many_as_they_need() {
        for (micros, text) in [
            (0, "0.00"),
            (12_500_000, "12.50"),
            (1, "0.000001"),
            (-40_000, "-0.04"),
            (-1_234_567, "-1.234567"),
            (i64::MIN, "-9223372036854.775808"),
        ] {
            assert_eq!(Usd(micros).to_string(), text);
        }
    }

    #[test]
    fn malformed_and_too_large_amounts_are_refused() {
        for text in [
            "",
            "-",
            ".",
            "1e3",
            "+1",
            "1,5",
            " 1",
            "0.0000001",
            "NaN",
            "1.2.3",
            "--1",
        ] {
            assert_eq!(text.parse::<Usd>(), Err(InvalidAmount::Malformed), "{text}");
        }
        for text in ["9223372036855", "99999999999999999999999999999999"] {
            assert_eq!(text.parse::<Usd>(), Err(InvalidAmount::TooLarge), "{text}");
        }
    }

    #[test]
    fn strings_and_numbers_are_read_alike() {
        for json in ["\"12.50\"", "12.5", "\"12.500000\""] {
            let read: Usd = serde_json::from_str(json).unwrap();
            assert_eq!(read, Usd(12_500_000), "{json}");
        }
        assert_eq!(serde_json::from_str::<Usd>("-3").unwrap(), Usd::dollars(-3));
        assert_eq!(serde_json::from_str::<Usd>("0.1").unwrap(), Usd(100_000));
        for json in ["0.1234567", "1e30", "null", "true", "\"x\""] {
            assert!(serde_json::from_str::<Usd>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn rounding_is_half_to_even() {
        for (dollars, micros) in [
            ("0.0000005", 0),
            ("0.0000015", 2),
            ("0.0000025", 2),
            ("0.00000251", 3),
            ("-0.0000015", -2),
        ] {
            assert_eq!(
                Usd::rounded(dollars.parse().unwrap()),
                Usd(micros),
                "{dollars}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_amount_reads_back(micros: i64) {
            let amount = Usd(micros);
            prop_assert_eq!(amount.to_string().parse(), Ok(amount));
            let json = serde_json::to_string(&amount).unwrap();
            prop_assert_eq!(serde_json::from_str::<Usd>(&json).unwrap(), amount);
            prop_assert_eq!(Usd::rounded(amount.to_decimal()), amount);
        }
    }
}
