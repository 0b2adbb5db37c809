//! Splits a CSV stream into records with their line numbers, in bounded memory.
//!
//! [`Parser`] is fed slices of the file and holds one record. It counts bytes and lines itself,
//! so that a checkpoint between two records is exact: a run that resumes there reads the same
//! records with the same line numbers. A record is bounded in bytes (a line without end, an
//! unclosed quote), and fields beyond the expected columns are counted, not kept. Text that cannot
//! be a record is a [`Fault`] and ends the file.

use bytes::{Buf as _, Bytes};
use csv_core::ReadRecordResult;
use futures::stream::{Stream, TryStreamExt as _};
use serde::{Deserialize, Serialize};

use super::{Failure, Limits};
use crate::error::Result;

/// A place between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Bytes of the file before it.
    pub offset: u64,
    /// Its line, from 1.
    pub line: u64,
    /// True after a carriage return: a line feed that follows begins no further line.
    pub after_cr: bool,
}

impl Place {
    /// Before the first byte of a file.
    pub const START: Self = Self {
        offset: 0,
        line: 1,
        after_cr: false,
    };

    /// Moves the place past the bytes.
    pub fn pass(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.offset += 1;
            if byte == b'\r' || (byte == b'\n' && !self.after_cr) {
                self.line += 1;
            }
            self.after_cr = byte == b'\r';
        }
    }
}

/// The reason why the rest of a file cannot be split into records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    RecordTooLong { line: u64, max_bytes: usize },
    UnclosedQuote { line: u64 },
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::RecordTooLong { line, max_bytes } => Failure::new(
                "record_too_long",
                format!(
                    "the row that begins on line {line} is longer than {max_bytes} bytes; look there for a quote (\") that is opened and never closed, or for missing line breaks"
                ),
            ),
            Fault::UnclosedQuote { line } => Failure::new(
                "unclosed_quote",
                format!(
                    "a quote (\") in the row that begins on line {line} is never closed; close it, or double it if it belongs to the text"
                ),
            ),
        }
    }
}

/// Result of feeding a slice.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The whole slice was read, and no record is complete.
    Hungry,
    /// [`Parser::record`] has the next record.
    Record,
}

/// A CSV parser that holds one record.
pub(super) struct Parser {
    core: csv_core::Reader,
    text: Vec<u8>,
    text_len: usize,
    ends: Vec<usize>,
    field_count: usize,
    surplus_fields: bool,
    /// Line of the record in progress, once its first byte is read.
    record_line: Option<u64>,
    record_bytes: usize,
    max_record_bytes: usize,
    complete: Option<u64>,
    place: Place,
}

impl Parser {
    /// Creates a parser for records of up to `max_fields`, from `place` on.
    pub fn new(delimiter: u8, place: Place, max_fields: usize, limits: &Limits) -> Self {
        Self {
            core: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            text: vec![0; 4096],
            text_len: 0,
            ends: vec![0; max_fields.saturating_add(1)],
            field_count: 0,
            surplus_fields: false,
            record_line: None,
            record_bytes: 0,
            max_record_bytes: limits.max_record_bytes(),
            complete: None,
            place,
        }
    }

    /// Place after the last complete record.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Reads from a slice until a record is complete; returns the number of bytes read.
    pub fn feed(&mut self, input: &[u8]) -> Result<(Step, usize), Fault> {
        let mut consumed = self.begin(input);
        loop {
            let rest = input.get(consumed..).unwrap_or_default();
            if rest.is_empty() {
                return Ok((Step::Hungry, consumed));
            }

            let (result, bytes_in, bytes_out, fields) = self.core.read_record(
                rest,
                self.text.get_mut(self.text_len..).unwrap_or_default(),
                self.ends.get_mut(self.field_count..).unwrap_or_default(),
            );
            self.place.pass(rest.get(..bytes_in).unwrap_or_default());
            consumed += bytes_in;
            self.text_len += bytes_out;
            self.field_count += fields;
            self.record_bytes += bytes_in;
            if self.record_bytes > self.max_record_bytes {
                return Err(Fault::RecordTooLong {
                    line: self.record_line.unwrap_or(self.place.line),
                    max_bytes: self.max_record_bytes,
                });
            }

            match result {
                ReadRecordResult::Record => {
                    self.complete = self.record_line.take();
                    return Ok((Step::Record, consumed));
                }
                ReadRecordResult::OutputFull => {
                    self.text.resize(self.text.len() * 2, 0);
                }
                ReadRecordResult::OutputEndsFull => {
                    // Every further field overwrites the last slot.
                    self.surplus_fields = true;
                    self.field_count -= 1;
                }
                ReadRecordResult::InputEmpty | ReadRecordResult::End => {}
            }
        }
    }

    /// Ends the file; returns true when that completes a last record without a line break.
    pub fn finish(&mut self) -> Result<bool, Fault> {
        let (Some(line), place) = (self.record_line, self.place) else {
            return Ok(false);
        };
        // A line break ends any record, except inside quotes.
        let (step, _) = self.feed(b"\n")?;
        self.place = place;
        match step {
            Step::Record => Ok(true),
            Step::Hungry => Err(Fault::UnclosedQuote { line }),
        }
    }

    /// Returns the record that the last step completed.
    pub fn record(&self) -> Record<'_> {
        let text = self.text.get(..self.text_len).unwrap_or_default();
        Record {
            line: self.complete.unwrap_or(self.place.line),
            text: std::str::from_utf8(text).ok(),
            has_nul: text.contains(&0),
            ends: self.ends.get(..self.field_count).unwrap_or_default(),
            surplus_fields: self.surplus_fields,
        }
    }

    /// Resets the parser between two records, and skips blank lines before the next.
    fn begin(&mut self, input: &[u8]) -> usize {
        if self.record_line.is_some() {
            return 0;
        }
        self.complete = None;
        self.text_len = 0;
        self.field_count = 0;
        self.surplus_fields = false;
        self.record_bytes = 0;
        let breaks = input
            .iter()
            .take_while(|byte| matches!(byte, b'\r' | b'\n'))
            .count();
        self.place.pass(input.get(..breaks).unwrap_or_default());
        if breaks < input.len() {
            self.record_line = Some(self.place.line);
        }
        breaks
    }
}

/// One record of the file.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    /// Line of its first byte.
    pub line: u64,
    /// All its fields, concatenated; none when they are not UTF-8.
    pub text: Option<&'a str>,
    pub has_nul: bool,
    ends: &'a [usize],
    /// True when it has more fields than the parser keeps.
    pub surplus_fields: bool,
}

impl<'a> Record<'a> {
    /// Number of fields that were kept.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns a field; none when the record is shorter or the field alone is not UTF-8.
    pub fn field(&self, index: usize) -> Option<&'a str> {
        let end = *self.ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.text?.get(start..end)
    }

    pub fn fields(&self) -> impl Iterator<Item = &'a str> + '_ {
        (0..self.len()).filter_map(|index| self.field(index))
    }

    /// True when every field is valid UTF-8.
    pub fn is_utf8(&self) -> bool {
        self.fields().count() == self.len()
    }

    /// True when it holds only delimiters and spaces.
    pub fn is_blank(&self) -> bool {
        !self.surplus_fields && self.is_utf8() && self.fields().all(|field| field.trim().is_empty())
    }
}

/// The records of a stream of bytes.
pub(super) struct Records<S> {
    stream: S,
    slice: Bytes,
    pub parser: Parser,
}

impl<S: Stream<Item = Result<Bytes>> + Unpin> Records<S> {
    pub fn new(stream: S, parser: Parser) -> Self {
        Self {
            stream,
            slice: Bytes::new(),
            parser,
        }
    }

    /// Advances to the next record; false at the end of the file.
    pub async fn advance(&mut self) -> Result<Result<bool, Fault>> {
        loop {
            if self.slice.is_empty() {
                match self.stream.try_next().await? {
                    Some(slice) => self.slice = slice,
                    None => return Ok(self.parser.finish()),
                }
            }
            match self.parser.feed(&self.slice) {
                Ok((step, consumed)) => {
                    self.slice.advance(consumed);
                    if step == Step::Record {
                        return Ok(Ok(true));
                    }
                }
                Err(fault) => return Ok(Err(fault)),
            }
        }
    }
}
