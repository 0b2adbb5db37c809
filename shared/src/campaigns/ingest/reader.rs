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

use super::{IngestFailure, IngestLimits};
use crate::platform::error::Result;

/// A place between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FilePosition {
    /// Bytes of the file before it.
    pub offset: u64,
    /// Its line, from 1.
    pub line: u64,
    /// True after a carriage return: a line feed that follows begins no further line.
    pub after_cr: bool,
}

impl FilePosition {
    /// Before the first byte of a file.
    pub const START: Self = Self {
        offset: 0,
        line: 1,
        after_cr: false,
    };

    /// Moves the place past the bytes.
    pub fn advance(&mut self, bytes: &[u8]) {
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
pub(super) enum CsvFault {
    RecordTooLong { line: u64, max_bytes: usize },
    UnclosedQuote { line: u64 },
}

impl From<CsvFault> for IngestFailure {
    fn from(fault: CsvFault) -> Self {
        match fault {
            CsvFault::RecordTooLong { line, max_bytes } => IngestFailure::new(
                "record_too_long",
                format!(
                    "the row that begins on line {line} is longer than {max_bytes} bytes; look there for a quote (\") that is opened and never closed, or for missing line breaks"
                ),
            ),
            CsvFault::UnclosedQuote { line } => IngestFailure::new(
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
pub(super) enum ParseStep {
    /// The whole slice was read, and no record is complete.
    NeedsInput,
    /// [`Parser::record`] has the next record.
    Record,
}

/// A CSV parser that holds one record.
pub(super) struct CsvParser {
    core: csv_core::Reader,
    text: Vec<u8>,
    text_len: usize,
    field_ends: Vec<usize>,
    field_count: usize,
    surplus_fields: bool,
    /// Line of the record in progress, once its first byte is read.
    record_line: Option<u64>,
    record_bytes: usize,
    max_record_bytes: usize,
    complete_line: Option<u64>,
    place: FilePosition,
}

impl CsvParser {
    /// Creates a parser for records of up to `max_fields`, from `place` on.
    pub fn new(
        delimiter: u8,
        place: FilePosition,
        max_fields: usize,
        limits: &IngestLimits,
    ) -> Self {
        Self {
            core: csv_core::ReaderBuilder::new().delimiter(delimiter).build(),
            text: vec![0; 4096],
            text_len: 0,
            field_ends: vec![0; max_fields.saturating_add(1)],
            field_count: 0,
            surplus_fields: false,
            record_line: None,
            record_bytes: 0,
            max_record_bytes: limits.max_record_bytes(),
            complete_line: None,
            place,
        }
    }

    /// Place after the last complete record.
    pub fn place(&self) -> FilePosition {
        self.place
    }

    /// Reads from a slice until a record is complete; returns the number of bytes read.
    pub fn feed(&mut self, input: &[u8]) -> Result<(ParseStep, usize), CsvFault> {
        let mut consumed = self.begin(input);
        loop {
            let rest = input.get(consumed..).unwrap_or_default();
            if rest.is_empty() {
                return Ok((ParseStep::NeedsInput, consumed));
            }

            let (result, bytes_in, bytes_out, fields) = self.core.read_record(
                rest,
                self.text.get_mut(self.text_len..).unwrap_or_default(),
                self.field_ends
                    .get_mut(self.field_count..)
                    .unwrap_or_default(),
            );
            self.place.advance(rest.get(..bytes_in).unwrap_or_default());
            consumed += bytes_in;
            self.text_len += bytes_out;
            self.field_count += fields;
            self.record_bytes += bytes_in;
            if self.record_bytes > self.max_record_bytes {
                return Err(CsvFault::RecordTooLong {
                    line: self.record_line.unwrap_or(self.place.line),
                    max_bytes: self.max_record_bytes,
                });
            }

            match result {
                ReadRecordResult::Record => {
                    self.complete_line = self.record_line.take();
                    return Ok((ParseStep::Record, consumed));
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
    pub fn finish(&mut self) -> Result<bool, CsvFault> {
        let (Some(line), place) = (self.record_line, self.place) else {
            return Ok(false);
        };
        // A line break ends any record, except inside quotes.
        let (step, _) = self.feed(b"\n")?;
        self.place = place;
        match step {
            ParseStep::Record => Ok(true),
            ParseStep::NeedsInput => Err(CsvFault::UnclosedQuote { line }),
        }
    }

    /// Returns the record that the last step completed.
    pub fn record(&self) -> CsvRecord<'_> {
        let text = self.text.get(..self.text_len).unwrap_or_default();
        CsvRecord {
            line: self.complete_line.unwrap_or(self.place.line),
            text: std::str::from_utf8(text).ok(),
            has_nul: text.contains(&0),
            field_ends: self.field_ends.get(..self.field_count).unwrap_or_default(),
            surplus_fields: self.surplus_fields,
        }
    }

    /// Resets the parser between two records, and skips blank lines before the next.
    fn begin(&mut self, input: &[u8]) -> usize {
        if self.record_line.is_some() {
            return 0;
        }
        self.complete_line = None;
        self.text_len = 0;
        self.field_count = 0;
        self.surplus_fields = false;
        self.record_bytes = 0;
        let breaks = input
            .iter()
            .take_while(|byte| matches!(byte, b'\r' | b'\n'))
            .count();
        self.place.advance(input.get(..breaks).unwrap_or_default());
        if breaks < input.len() {
            self.record_line = Some(self.place.line);
        }
        breaks
    }
}

/// One record of the file.
#[derive(Clone, Copy)]
pub(super) struct CsvRecord<'a> {
    /// Line of its first byte.
    pub line: u64,
    /// All its fields, concatenated; none when they are not UTF-8.
    pub text: Option<&'a str>,
    pub has_nul: bool,
    field_ends: &'a [usize],
    /// True when it has more fields than the parser keeps.
    pub surplus_fields: bool,
}

impl<'a> CsvRecord<'a> {
    /// Number of fields that were kept.
    pub fn len(&self) -> usize {
        self.field_ends.len()
    }

    /// Returns a field; none when the record is shorter or the field alone is not UTF-8.
    pub fn field(&self, index: usize) -> Option<&'a str> {
        let end = *self.field_ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => *self.field_ends.get(before)?,
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
pub(super) struct RecordStream<S> {
    stream: S,
    slice: Bytes,
    pub parser: CsvParser,
}

impl<S: Stream<Item = Result<Bytes>> + Unpin> RecordStream<S> {
    pub fn new(stream: S, parser: CsvParser) -> Self {
        Self {
            stream,
            slice: Bytes::new(),
            parser,
        }
    }

    /// Advances to the next record; false at the end of the file.
    pub async fn advance(&mut self) -> Result<Result<bool, CsvFault>> {
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
                    if step == ParseStep::Record {
                        return Ok(Ok(true));
                    }
                }
                Err(fault) => return Ok(Err(fault)),
            }
        }
    }
}
