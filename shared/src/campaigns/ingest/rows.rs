//! Parses one record of the file, or one item of a request, into a row or a reject.

use std::borrow::Cow;
use std::str::FromStr as _;

use chrono_tz::Tz;
use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::IngestLimits;
use super::columns::ColumnMap;
use super::header::{PHONE_COLUMN, ZONE_COLUMN};
use super::reader::CsvRecord;
use crate::platform::e164::{Country, E164, ZoneSet};
use crate::platform::ids::RowId;

/// Characters of a rejected value that are kept.
const REJECT_VALUE_CHARS: usize = 200;

/// Time zones of a row's callee: derived from the number, or given by the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RowZones {
    Derived(ZoneSet),
    Given(Tz),
}

impl RowZones {
    /// Names, separated by spaces; none when unknown.
    pub fn names(self) -> Option<String> {
        match self {
            Self::Derived(ZoneSet::UNKNOWN) => None,
            Self::Derived(set) => Some(set.names().join(" ")),
            Self::Given(zone) => Some(zone.name().to_owned()),
        }
    }
}

/// A row that may be called.
#[derive(Debug)]
pub(super) struct ParsedRow {
    pub id: RowId,
    pub number: E164,
    pub zones: RowZones,
    /// Variables, as the text of a JSON object.
    pub variables: Vec<u8>,
}

/// A rejected row, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[schema(as = Reject)]
pub struct RowReject {
    /// Line of the file, from 1 with the header; in a request, the record's position, from 1.
    #[serde(rename = "row")]
    pub line: i64,
    pub column: String,
    /// The value, cut to 200 characters; empty when the batch is private.
    pub value: String,
    pub code: Cow<'static, str>,
    pub message: String,
}

impl RowReject {
    pub(super) fn new(
        line: u64,
        column: &str,
        value: &str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            line: i64::try_from(line).unwrap_or(i64::MAX),
            column: column.to_owned(),
            value: value
                .chars()
                .filter(|&c| c != '\0')
                .take(REJECT_VALUE_CHARS)
                .collect(),
            code: code.into(),
            message: message.into(),
        }
    }

    /// Removes the value when it is private. Messages hold no values.
    pub(super) fn redact_if_private(mut self, is_private: bool) -> Self {
        if is_private {
            self.value.clear();
        }
        self
    }
}

/// A rejected row of a file, with its cells for the error file.
#[derive(Debug)]
pub(super) struct RejectedRow {
    pub reject: RowReject,
    /// Cells of [`Columns::repeated`]. One that is too long is cut to one character over the limit.
    pub cells: Vec<String>,
}

impl RejectedRow {
    pub fn new(
        reject: RowReject,
        columns: &ColumnMap,
        record: CsvRecord<'_>,
        limits: &IngestLimits,
    ) -> Self {
        let most = limits.max_cell_chars.saturating_add(1);
        let text = |column| columns.cell(record, column).chars();
        Self {
            reject,
            cells: columns
                .error_file_columns()
                .map(|(column, _)| text(column).filter(|&c| c != '\0').take(most).collect())
                .collect(),
        }
    }

    /// Removes the row's values when they are private.
    pub fn redact_if_private(mut self, is_private: bool) -> Self {
        if is_private {
            self.cells.clear();
        }
        Self {
            reject: self.reject.redact_if_private(is_private),
            ..self
        }
    }

    /// Approximate size in memory.
    pub fn approximate_bytes(&self) -> usize {
        let cells: usize = self.cells.iter().map(String::len).sum();
        cells + self.reject.value.len() + self.reject.message.len()
    }
}

/// Rules that turn raw cells into rows.
#[derive(Clone, Copy)]
pub(super) struct RowRules<'a> {
    pub limits: &'a IngestLimits,
    /// Variables that a row must have a value for.
    pub required_variables: &'a [String],
    pub default_country: Option<Country>,
}

impl RowRules<'_> {
    /// Parses a record of a file; none when it is blank.
    pub fn parse_record(
        &self,
        columns: &ColumnMap,
        record: CsvRecord<'_>,
    ) -> Result<Option<ParsedRow>, RowReject> {
        let line = record.line;
        let name = |column: usize| columns.names.get(column).map_or("", String::as_str);
        let cell = |column: usize| columns.cell(record, column);

        // 1. The record as a whole.
        if !record.is_utf8() {
            return Err(RowReject::new(
                line,
                "",
                "",
                "invalid_utf8",
                format!("line {line} is not UTF-8 text; save the file as \"CSV UTF-8\""),
            ));
        }
        if record.has_nul {
            let message = format!("line {line} contains a NUL character; remove it");
            return Err(RowReject::new(line, "", "", "nul_character", message));
        }
        if record.is_blank() {
            return Ok(None);
        }
        let width = columns.names.len();
        let surplus = (width..record.len())
            .filter_map(|column| record.field(column))
            .find(|cell| !cell.trim().is_empty());
        if record.surplus_fields || surplus.is_some() {
            return Err(RowReject::new(
                line,
                "",
                surplus.unwrap_or_default(),
                "too_many_cells",
                format!(
                    "the row has more cells than the header's {width}; put values that contain the delimiter in quotes"
                ),
            ));
        }

        // 2. Its cells.
        let longest = (0..record.len())
            .filter(|&column| !columns.is_reason(column))
            .find_map(|column| Some((column, self.find_overlong(cell(column))?)));
        if let Some((column, cell)) = longest {
            return Err(self.too_long(line, name(column), cell));
        }

        // 3. Number, zone and variables.
        let zone = columns.zone.map(|column| (name(column), cell(column)));
        let (number, zones) =
            self.parse_destination(line, name(columns.phone), cell(columns.phone), zone)?;
        self.check_required(line, |variable| {
            columns
                .variables
                .iter()
                .any(|(column, name)| name == variable && !cell(*column).trim().is_empty())
        })?;
        let variables = JsonPairs(
            columns
                .variables
                .iter()
                .map(|(column, variable)| (variable.as_str(), cell(*column).trim())),
        );

        Ok(Some(ParsedRow {
            id: RowId::new(),
            number,
            zones,
            variables: to_json(&variables),
        }))
    }

    /// Parses the item at position `place` of a request, without variables the batch does not have.
    pub fn parse_item(
        &self,
        place: u64,
        number: &str,
        values: &Map<String, Value>,
        variables: &[String],
    ) -> Result<ParsedRow, RowReject> {
        let known = |name: &String| variables.contains(name);

        // 1. The values.
        for (name, value) in values {
            match value {
                Value::String(text) if text.contains('\0') => {
                    let message = "the value contains a NUL character; remove it";
                    return Err(RowReject::new(place, name, text, "nul_character", message));
                }
                Value::String(text) if self.find_overlong(text).is_some() => {
                    return Err(self.too_long(place, name, text));
                }
                Value::Array(_) | Value::Object(_) if known(name) => {
                    let message = "the value is a list or an object; a variable is a text, a number or true/false";
                    return Err(RowReject::new(place, name, "", "not_flat", message));
                }
                _ => {}
            }
        }

        // 2. Number, zone and variables.
        let zone = values
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(ZONE_COLUMN))
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default()));
        let (number, zones) = self.parse_destination(place, PHONE_COLUMN, number, zone)?;
        self.check_required(place, |variable| match values.get(variable) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.trim().is_empty(),
            Some(_) => true,
        })?;
        let kept = JsonPairs(
            values
                .iter()
                .filter(|(name, value)| known(name) && !value.is_null())
                .map(|(name, value)| (name.as_str(), value)),
        );

        Ok(ParsedRow {
            id: RowId::new(),
            number,
            zones,
            variables: to_json(&kept),
        })
    }

    fn parse_destination(
        &self,
        line: u64,
        phone_column: &str,
        phone: &str,
        zone: Option<(&str, &str)>,
    ) -> Result<(E164, RowZones), RowReject> {
        let (number, derived) =
            E164::parse_with_zones(phone, self.default_country).map_err(|error| {
                RowReject::new(line, phone_column, phone, error.code(), error.to_string())
            })?;
        let zones = match zone {
            Some((column, text)) if !text.trim().is_empty() => {
                RowZones::Given(Tz::from_str(text.trim()).map_err(|_unknown| {
                    RowReject::new(
                        line,
                        column,
                        text,
                        "unknown_timezone",
                        "unknown time zone; use an IANA name such as Asia/Kolkata or America/New_York, or leave it empty",
                    )
                })?)
            }
            _ => RowZones::Derived(derived),
        };
        Ok((number, zones))
    }

    fn check_required(&self, line: u64, has_value: impl Fn(&str) -> bool) -> Result<(), RowReject> {
        match self
            .required_variables
            .iter()
            .find(|variable| !has_value(variable))
        {
            None => Ok(()),
            Some(variable) => {
                let message = format!(
                    "there is no value for \"{variable}\", which the agent uses; fill it in, or remove {{{{{variable}}}}} from the agent's texts"
                );
                Err(RowReject::new(
                    line,
                    variable,
                    "",
                    "missing_variable",
                    message,
                ))
            }
        }
    }

    fn find_overlong<'t>(&self, cell: &'t str) -> Option<&'t str> {
        let max = self.limits.max_cell_chars;
        (cell.len() > max && cell.chars().nth(max).is_some()).then_some(cell)
    }

    fn too_long(&self, line: u64, column: &str, cell: &str) -> RowReject {
        let message = format!(
            "the value is longer than {} characters; shorten it, and look for a quote (\") that is not closed",
            self.limits.max_cell_chars
        );
        RowReject::new(line, column, cell, "cell_too_long", message)
    }
}

/// Names and values, serialised as a JSON object.
struct JsonPairs<I>(I);

impl<'a, V, I> Serialize for JsonPairs<I>
where
    V: Serialize,
    I: Iterator<Item = (&'a str, V)> + Clone,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.clone())
    }
}

/// Serialises texts and scalars under text keys, which cannot fail.
fn to_json(pairs: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(pairs).unwrap_or_else(|_impossible| b"{}".to_vec())
}
