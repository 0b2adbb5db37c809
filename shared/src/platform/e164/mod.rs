//! Phone numbers. E.164 is the only form used outside this folder.
//!
//! People paste numbers from spreadsheets, so [`E164::parse`] accepts variations that cannot
//! change who is called: spaces, dashes, dots, parentheses, invisible characters, a leading
//! apostrophe, `="..."`, `tel:`, the prefix `00`, a trailing `.0`, digits of other scripts. It
//! refuses those that can: letters and extensions (the digits alone would ring somebody else) and
//! scientific notation (the spreadsheet has already dropped digits).
//!
//! A number without `+` is read in this order:
//! 1. with a leading `00`: as an international number, when that is valid;
//! 2. with a default country: as one of that country's numbers, with or without its own
//!    calling code;
//! 3. with 12 digits or more and no leading zero: as an international number whose `+` the
//!    spreadsheet lost, when that is valid. Shorter ones are refused although some would be
//!    valid, because they are ambiguous: eleven digits that begin with 1 are a mobile in China
//!    and a subscriber in the United States.
//!
//! Nothing else is guessed. [`zones`] maps a number to its candidate time zones.

mod country;
mod zones;

use std::fmt;
use std::str::FromStr;

use rlibphonenumber::enums::{NumberLengthType, PhoneNumberFormat, PhoneNumberType};
use rlibphonenumber::errors::{ParseError, ValidationError};
use rlibphonenumber::{PHONE_NUMBER_UTIL, PhoneNumber, Region};
use serde::{Deserialize, Serialize};

pub use country::{Country, UnknownCountry};
pub use zones::{ZoneSet, candidate_zones};

/// Fewest digits of an accepted number, calling code included.
const MIN_DIGITS: usize = 8;
/// Most digits of an E.164 number.
const MAX_DIGITS: usize = 15;
/// Most digits of an input: E.164's, and the longest international and trunk prefixes.
const MAX_TYPED_DIGITS: usize = 22;
/// Fewest digits of a number without `+` that is read as international.
const MIN_BARE_INTERNATIONAL_DIGITS: usize = 12;
/// Fewest digits before a spreadsheet's `.0`; after fewer it is a group of digits.
const MIN_DECIMAL_DIGITS: usize = 7;

/// Phone number in E.164: `+` and 7 to 15 digits. Its `Debug` shows the last four digits only.
#[derive(
    Clone,
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
#[serde(try_from = "String")]
#[sqlx(transparent)]
#[schema(value_type = String, pattern = r"^\+[0-9]{7,15}$", example = "+12125550100")]
pub struct E164(String);

/// Error of a text that is not a phone number that can be called. The message says what to do and
/// never repeats the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhoneError {
    #[error("the phone number is empty; fill it in or remove the row")]
    Empty,
    #[error(
        "this is not a phone number; write digits only, with + and the country code, without letters or extensions"
    )]
    NotANumber,
    #[error(
        "the spreadsheet turned the number into scientific notation (9.19E+11) and lost digits; format the column as text and enter the number again"
    )]
    ScientificNotation,
    #[error(
        "the number has no country; write it with + and the country code, or set a default country on the batch"
    )]
    MissingCountry,
    #[error("the number begins with a country code that does not exist; check the digits after +")]
    UnknownCountryCode,
    #[error(
        "the number is too short; write it in full, with + and the country code and the area code"
    )]
    TooShort,
    #[error("the number has too many digits; check for a doubled country code or a second number")]
    TooLong,
    #[error(
        "no such number can exist in its country; check the digits, and write + and the country code if it is a foreign number"
    )]
    InvalidForCountry,
}

impl PhoneError {
    /// Stable, snake_case code.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotANumber => "not_a_number",
            Self::ScientificNotation => "scientific_notation",
            Self::MissingCountry => "missing_country",
            Self::UnknownCountryCode => "unknown_country_code",
            Self::TooShort => "too_short",
            Self::TooLong => "too_long",
            Self::InvalidForCountry => "invalid_for_country",
        }
    }
}

impl E164 {
    /// Parses a number as written by a person or a spreadsheet.
    ///
    /// # Errors
    /// A [`PhoneError`] that tells the user what to do.
    pub fn parse(raw: &str, default_country: Option<Country>) -> Result<Self, PhoneError> {
        let (_, _, number) = parse_input(raw, default_country)?;
        Ok(number)
    }

    /// Parses like [`E164::parse`] and returns the number's candidate time zones, at about the
    /// same cost.
    ///
    /// # Errors
    /// A [`PhoneError`] that tells the user what to do.
    pub fn parse_with_zones(
        raw: &str,
        default_country: Option<Country>,
    ) -> Result<(Self, ZoneSet), PhoneError> {
        let (phone, kind, number) = parse_input(raw, default_country)?;
        let zones = zones::lookup(&number, phone.country_code, kind);
        Ok((number, zones))
    }

    /// The number in the form that is dialled.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for E164 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = self.0.len().saturating_sub(4);
        write!(f, "+***{}", self.0.get(tail..).unwrap_or_default())
    }
}

impl FromStr for E164 {
    type Err = PhoneError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, None)
    }
}

/// Accepts a number that Peal stored in E.164; checks its shape only.
impl TryFrom<String> for E164 {
    type Error = PhoneError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = text.strip_prefix('+').ok_or(PhoneError::MissingCountry)?;
        if digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PhoneError::NotANumber);
        }
        match digits.len() {
            0..7 => Err(PhoneError::TooShort),
            7..=MAX_DIGITS => Ok(Self(text)),
            _ => Err(PhoneError::TooLong),
        }
    }
}

type ParsedNumber = (PhoneNumber, PhoneNumberType, E164);

fn parse_input(raw: &str, default_country: Option<Country>) -> Result<ParsedNumber, PhoneError> {
    let CleanedInput { plus, digits } = CleanedInput::parse_input(raw)?;
    if plus {
        return resolve(&format!("+{digits}"), None);
    }

    let international = |digits: &str| resolve(&format!("+{digits}"), None);
    let idd = digits.strip_prefix("00").map(international);
    if let Some(Ok(reading)) = idd {
        return Ok(reading);
    }

    let national = default_country.map(|country| resolve(&digits, Some(country.region())));
    if let Some(Ok(reading)) = national {
        return Ok(reading);
    }

    if digits.len() >= MIN_BARE_INTERNATIONAL_DIGITS
        && !digits.starts_with('0')
        && let Ok(reading) = international(&digits)
    {
        return Ok(reading);
    }

    match (national, idd) {
        (Some(Err(error)), _) | (None, Some(Err(error))) => Err(error),
        _ if digits.len() > MAX_DIGITS => Err(PhoneError::TooLong),
        _ => Err(PhoneError::MissingCountry),
    }
}

/// Resolves digits with a leading `+`, or a country's own digits, to a number that can exist there.
fn resolve(digits: &str, region: Option<Region>) -> Result<ParsedNumber, PhoneError> {
    let phone = PHONE_NUMBER_UTIL
        .parse(digits, region)
        .map_err(|error| match error {
            ParseError::InvalidCountryCode => PhoneError::UnknownCountryCode,
            ParseError::NotANumber(_) | ParseError::TooShortAfterIdd | ParseError::TooShortNsn => {
                PhoneError::TooShort
            }
            ParseError::TooLongNsn => PhoneError::TooLong,
        })?;
    let kind = phone.get_type();
    if kind == PhoneNumberType::Unknown {
        return Err(match phone.is_possible_with_reason() {
            Ok(NumberLengthType::IsPossibleLocalOnly) | Err(ValidationError::TooShort) => {
                PhoneError::TooShort
            }
            Err(ValidationError::TooLong) => PhoneError::TooLong,
            Err(ValidationError::InvalidCountryCode) => PhoneError::UnknownCountryCode,
            _ => PhoneError::InvalidForCountry,
        });
    }
    let text = phone.format_as(PhoneNumberFormat::E164).into_owned();
    if text.len() <= MIN_DIGITS {
        return Err(PhoneError::TooShort);
    }
    let number = E164::try_from(text)?;
    Ok((phone, kind, number))
}

/// Digits of an input, without separators and wrapping.
struct CleanedInput {
    plus: bool,
    digits: String,
}

impl CleanedInput {
    fn parse_input(raw: &str) -> Result<Self, PhoneError> {
        let text = strip_wrapping(raw);
        if text.is_empty() {
            return Err(PhoneError::Empty);
        }
        if is_scientific(text) {
            return Err(PhoneError::ScientificNotation);
        }
        let mut typed = Self {
            plus: false,
            digits: String::with_capacity(MAX_TYPED_DIGITS),
        };
        for c in strip_decimals(text).chars() {
            if let Some(digit) = digit(c) {
                typed.digits.push(digit);
                if typed.digits.len() > MAX_TYPED_DIGITS {
                    return Err(PhoneError::TooLong);
                }
            } else if matches!(c, '+' | '\u{ff0b}') && !typed.plus && typed.digits.is_empty() {
                typed.plus = true;
            } else if !is_separator(c) {
                return Err(PhoneError::NotANumber);
            }
        }
        if typed.digits.is_empty() {
            return Err(PhoneError::NotANumber);
        }
        Ok(typed)
    }
}

/// Strips what spreadsheets and address books put around a number.
fn strip_wrapping(raw: &str) -> &str {
    let around = |c: char| c.is_whitespace() || is_invisible(c);
    let text = raw.trim_matches(around);
    let text = text.strip_prefix('\'').unwrap_or(text);
    let text = text
        .strip_prefix("=\"")
        .and_then(|inner| inner.strip_suffix('"'))
        .unwrap_or(text);
    let text = text.trim_matches(around);
    match text.split_at_checked(4) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("tel:") => rest.trim_matches(around),
        _ => text,
    }
}

/// True for `9.19E+11`, also with a decimal comma.
fn is_scientific(text: &str) -> bool {
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else {
        return false;
    };
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let mantissa = mantissa.strip_prefix('+').unwrap_or(mantissa);
    let (whole, fraction) = mantissa.split_once(['.', ',']).unwrap_or((mantissa, "0"));
    digits(whole) && digits(fraction) && digits(exponent)
}

/// Strips the zeros of a number from a decimal column: `919876543210.0`.
fn strip_decimals(text: &str) -> &str {
    match text.split_once(['.', ',']) {
        Some((whole, zeros))
            if whole.len() >= MIN_DECIMAL_DIGITS
                && whole
                    .strip_prefix('+')
                    .unwrap_or(whole)
                    .bytes()
                    .all(|b| b.is_ascii_digit())
                && !zeros.is_empty()
                && zeros.bytes().all(|b| b == b'0') =>
        {
            whole
        }
        _ => text,
    }
}

/// Converts a decimal digit of the scripts that keyboards produce.
fn digit(c: char) -> Option<char> {
    if c.is_ascii_digit() {
        return Some(c);
    }
    ['\u{660}', '\u{6f0}', '\u{966}', '\u{9e6}', '\u{ff10}']
        .into_iter()
        .filter_map(|zero| u32::from(c).checked_sub(u32::from(zero)))
        .find_map(|value| char::from_digit(value, 10))
}

fn is_separator(c: char) -> bool {
    c.is_whitespace()
        || is_invisible(c)
        || matches!(
            c,
            '-' | '.' | '(' | ')' | '\u{2010}'
                ..='\u{2015}' | '\u{2212}' | '\u{ff08}' | '\u{ff09}' | '\u{ff0d}' | '\u{ff0e}'
        )
}

/// True for zero-width, joining, direction and soft-hyphen characters.
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

#[cfg(test)]
mod tests;
