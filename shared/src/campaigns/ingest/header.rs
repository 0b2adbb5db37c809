//! The beginning of a file: the check that it is CSV text, its delimiter, and the mapping of its
//! columns. Only the first bytes are read, so that an upload with a wrong header is refused before
//! it is stored.

use super::columns::{ColumnMap, find_reasons, is_reason};
use super::reader::{CsvParser, FilePosition, ParseStep};
use super::{IngestFailure, IngestLimits};
use crate::platform::e164::is_invisible;

/// The column that every file must have.
pub(super) const PHONE_COLUMN: &str = "to_phonenumber";
/// Other common names of that column; accepted with a warning.
const PHONE_ALIASES: [&str; 5] = [
    "phone",
    "phone_number",
    "number",
    "contact_number",
    "mobile",
];
/// The column that overrides the zones derived from the number.
pub(super) const ZONE_COLUMN: &str = "timezone";
/// Size of the beginning that is read; the header must end within it.
pub(super) const HEAD_BYTES: usize = 64 * 1024;

const BOM: &[u8] = b"\xef\xbb\xbf";
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// Parameters for reading the rest of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub delimiter: u8,
    /// The place after the header.
    pub place: FilePosition,
    pub columns: ColumnMap,
    pub warnings: Vec<String>,
}

/// Reads the beginning of a file, of up to [`HEAD_BYTES`].
pub(super) fn read_header(
    head: &[u8],
    variables: &[String],
    limits: &IngestLimits,
) -> Result<FileHeader, IngestFailure> {
    refuse_non_csv(head)?;

    // 1. Skip the byte order mark and a line that declares the delimiter.
    let mut place = FilePosition::START;
    let mut rest = head;
    if let Some(text) = rest.strip_prefix(BOM) {
        place.offset += 3;
        rest = text;
    }
    let mut delimiters = DELIMITERS.as_slice();
    if let Some((line_len, delimiter)) = declared_delimiter(rest) {
        place.advance(rest.get(..line_len).unwrap_or_default());
        rest = rest.get(line_len..).unwrap_or_default();
        delimiters = delimiter;
    }

    // 2. Try each delimiter: the best one has the phone column, else splits the most; of equals
    // the first.
    let whole = head.len() < HEAD_BYTES;
    let attempts = delimiters.iter().map(|&delimiter| {
        let parser = CsvParser::new(delimiter, place, limits.max_file_columns(), limits);
        try_delimiter(rest, whole, delimiter, parser, variables, limits)
    });
    attempts
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map_or_else(
            || Err(IngestFailure::new("empty_file", EMPTY_FILE_MESSAGE)),
            |(_, opened)| opened,
        )
}

/// Reads the header with one delimiter; returns its rank, and the result.
fn try_delimiter(
    text: &[u8],
    whole: bool,
    delimiter: u8,
    mut parser: CsvParser,
    variables: &[String],
    limits: &IngestLimits,
) -> ((bool, usize), Result<FileHeader, IngestFailure>) {
    let names = match header_names(text, whole, &mut parser) {
        Ok(names) => names,
        Err(failure) => return ((false, 0), Err(failure)),
    };

    let reasons = find_reasons(&names, variables);
    let width = names.len();
    let own = (0..width).filter(|&column| !is_reason(reasons, column));
    if own.count() > limits.max_columns.saturating_add(2) {
        let message = format!(
            "the file has more than {} columns beside {PHONE_COLUMN} and {ZONE_COLUMN}; remove those that no variable uses",
            limits.max_columns
        );
        return (
            (false, width),
            Err(IngestFailure::new("too_many_columns", message)),
        );
    }

    match map_columns(names, variables) {
        Ok((columns, warnings)) => {
            let opening = FileHeader {
                delimiter,
                place: parser.place(),
                columns,
                warnings,
            };
            ((true, width), Ok(opening))
        }
        Err(failure) => ((false, width), Err(failure)),
    }
}

const EMPTY_FILE_MESSAGE: &str =
    "the file is empty; it needs a header line and one line per person";

fn refuse_non_csv(head: &[u8]) -> Result<(), IngestFailure> {
    const COMPRESSED: [&[u8]; 5] = [
        b"\x1f\x8b",
        b"BZh",
        b"\xfd7zXZ",
        b"\x28\xb5\x2f\xfd",
        b"7z\xbc\xaf",
    ];
    const SAVE_AS: &str = "open it in your spreadsheet program and save it as \"CSV UTF-8\"";
    let begins = |magic: &[u8]| head.starts_with(magic);

    // Workbooks, archives and documents.
    if begins(b"PK\x03\x04") || begins(b"PK\x05\x06") {
        let message = format!("the file is an Excel workbook or a ZIP archive, not CSV; {SAVE_AS}");
        return Err(IngestFailure::new("not_csv", message));
    }
    if begins(b"\xd0\xcf\x11\xe0") {
        let message = format!("the file is an old Excel workbook, not CSV; {SAVE_AS}");
        return Err(IngestFailure::new("not_csv", message));
    }
    if COMPRESSED.into_iter().any(begins) {
        let message = "the file is compressed; unpack it and upload the CSV itself";
        return Err(IngestFailure::new("compressed_file", message));
    }
    if begins(b"%PDF") {
        let message = "the file is a PDF; export the list as CSV UTF-8";
        return Err(IngestFailure::new("not_csv", message));
    }

    // Other encodings and binary data.
    if begins(b"\xff\xfe") || begins(b"\xfe\xff") {
        let message = format!("the file is UTF-16 text; {SAVE_AS}");
        return Err(IngestFailure::new("not_utf8", message));
    }
    if head.contains(&0) {
        let message =
            format!("the file is binary or UTF-16 text (it contains NUL bytes); {SAVE_AS}");
        return Err(IngestFailure::new("not_csv", message));
    }

    if head.iter().all(u8::is_ascii_whitespace) || head == BOM {
        return Err(IngestFailure::new("empty_file", EMPTY_FILE_MESSAGE));
    }
    Ok(())
}

/// Finds a first line such as `sep=;`, which spreadsheets use: its length, and the delimiter.
fn declared_delimiter(text: &[u8]) -> Option<(usize, &'static [u8])> {
    let (key, rest) = text.split_at_checked(4)?;
    if !key.eq_ignore_ascii_case(b"sep=") {
        return None;
    }
    let (found, rest) = rest.split_first()?;
    let at = DELIMITERS.iter().position(|delimiter| delimiter == found)?;
    let line_break = match rest {
        [b'\r', b'\n', ..] => 2,
        [b'\r' | b'\n', ..] => 1,
        _ => return None,
    };
    Some((5 + line_break, DELIMITERS.get(at..=at)?))
}

/// Reads the names of the header line, cleaned.
fn header_names(
    text: &[u8],
    whole: bool,
    parser: &mut CsvParser,
) -> Result<Vec<String>, IngestFailure> {
    let complete = match parser.feed(text)? {
        (ParseStep::Record, _) => true,
        (ParseStep::NeedsInput, _) => whole && parser.finish()?,
    };
    if !complete {
        return Err(IngestFailure::new(
            "header_too_long",
            "the header line does not end; check that the first line holds the column names and that its quotes are closed",
        ));
    }
    let record = parser.record();
    if !record.is_utf8() {
        return Err(IngestFailure::new(
            "not_utf8",
            "the header line is not UTF-8 text; save the file as \"CSV UTF-8\"",
        ));
    }
    let mut names: Vec<String> = record.fields().map(clean_name).collect();
    while names.last().is_some_and(String::is_empty) {
        names.pop();
    }
    Ok(names)
}

fn clean_name(name: &str) -> String {
    let visible: String = name.chars().filter(|&c| !is_invisible(c)).collect();
    visible.trim().to_owned()
}

/// Maps the names to the phone column, the zone column and the variables.
fn map_columns(
    names: Vec<String>,
    variables: &[String],
) -> Result<(ColumnMap, Vec<String>), IngestFailure> {
    let mut warnings = Vec::new();
    let reasons = find_reasons(&names, variables);
    let own = || {
        let columns = names.iter().enumerate();
        columns.filter(|(column, _)| !is_reason(reasons, *column))
    };
    let find = |wanted: &str| {
        let found = own().find(|(_, name)| is_same_name(name, wanted));
        found.map(|(column, _)| column)
    };

    // 1. The phone column, or an alias of it, and the zone column.
    let phone = match find(PHONE_COLUMN) {
        Some(phone) => phone,
        None => {
            let alias = PHONE_ALIASES.into_iter().find_map(find);
            let Some(phone) = alias else {
                return Err(missing_phone_column(&names));
            };
            let name = names.get(phone).map_or("", String::as_str);
            warnings.push(format!(
                "column \"{name}\" is used as {PHONE_COLUMN}; rename it to {PHONE_COLUMN} to be sure"
            ));
            phone
        }
    };
    let zone = find(ZONE_COLUMN).filter(|&zone| zone != phone);

    // 2. The variables: an exact name wins over one that differs in case.
    let mut found = Vec::new();
    for variable in variables {
        let exact = own().find(|(_, name)| *name == variable);
        let exact = exact.map(|(column, _)| column);
        match exact.or_else(|| find(variable)) {
            Some(column) => found.push((column, variable.clone())),
            None => warnings.push(format!(
                "no column for the variable \"{variable}\"; it stays without a value"
            )),
        }
    }

    // 3. A warning for each column that is not used.
    for (column, name) in own() {
        let first = find(name).unwrap_or(column);
        if column == phone || Some(column) == zone || found.iter().any(|(used, _)| *used == column)
        {
            continue;
        }
        if name.is_empty() {
            warnings.push(format!("column {} has no name and is ignored", column + 1));
        } else if first < column {
            warnings.push(format!(
                "column {} repeats the name \"{name}\" and is ignored",
                column + 1
            ));
        } else {
            warnings.push(format!(
                "column \"{name}\" is none of the batch's variables and is ignored"
            ));
        }
    }

    let columns = ColumnMap {
        phone,
        zone,
        variables: found,
        reasons,
        names,
    };
    Ok((columns, warnings))
}

fn missing_phone_column(names: &[String]) -> IngestFailure {
    let found: Vec<String> = names
        .iter()
        .take(20)
        .map(|name| format!("\"{}\"", name.chars().take(60).collect::<String>()))
        .collect();
    IngestFailure::new(
        "missing_phone_column",
        format!(
            "the file has no column {PHONE_COLUMN}; its columns are {}",
            found.join(", ")
        ),
    )
}

fn is_same_name(name: &str, wanted: &str) -> bool {
    name.eq_ignore_ascii_case(wanted) || name.to_lowercase() == wanted.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::super::columns::REASON_COLUMNS;
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn opening(head: &[u8], variables: &[&str]) -> FileHeader {
        read_header(head, &names(variables), &IngestLimits::default())
            .unwrap_or_else(|failure| panic!("{failure:?}"))
    }

    fn refusal(head: &[u8]) -> IngestFailure {
        read_header(head, &[], &IngestLimits::default()).unwrap_err()
    }

    #[test]
    fn reason_columns_of_an_error_file_are_variables_only_without_others() {
        let reasons = |head: &str, variables: &[&str]| {
            let columns = opening(head.as_bytes(), variables).columns;
            let used: Vec<usize> = columns.variables.iter().map(|(at, _)| *at).collect();
            (columns.reasons, used)
        };
        let five = REASON_COLUMNS.join(",");
        let own = format!("to_phonenumber,name,{five}\n");
        assert_eq!(reasons(&own, &["name", "code"]), (Some(2), vec![1]));
        let noted = format!("to_phonenumber,name,{five},done\n");
        assert_eq!(reasons(&noted, &["name", "value"]), (Some(2), vec![1]));
        let template = format!("to_phonenumber,{five}\n");
        assert_eq!(
            reasons(&template, &REASON_COLUMNS),
            (None, vec![1, 2, 3, 4, 5])
        );
        let both = format!("to_phonenumber,{five},{five}\n");
        assert_eq!(
            reasons(&both, &REASON_COLUMNS),
            (Some(6), vec![1, 2, 3, 4, 5])
        );
        assert_eq!(reasons("to_phonenumber,line\n", &["line"]), (None, vec![1]));
    }

    #[test]
    fn the_delimiter_is_found_or_declared() {
        for (head, delimiter, offset, line) in [
            ("to_phonenumber\n", b',', 15, 2),
            ("to_phonenumber", b',', 14, 1),
            ("to_phonenumber,a,b\r\n+1", b',', 19, 2),
            ("a;to_phonenumber;b, c\n", b';', 22, 2),
            ("a\tto_phonenumber\n", b'\t', 17, 2),
            ("a|to_phonenumber\n", b'|', 17, 2),
            ("sep=;\r\nto_phonenumber;a\r\n", b';', 24, 3),
            ("SEP=\t\nto_phonenumber\ta,b\n", b'\t', 25, 3),
            ("\u{feff}to_phonenumber,a\n", b',', 20, 2),
            ("\u{feff}sep=,\nto_phonenumber,a;b;c;d\n", b',', 32, 3),
            ("\n\r\n\"to_phonenumber\",\"a;b;c\"\n", b',', 28, 4),
            ("a,b\rc", b',', 0, 0),
        ] {
            let opened = read_header(head.as_bytes(), &[], &IngestLimits::default());

            // Offset 0: the header has no phone column.
            if offset == 0 {
                assert_eq!(opened.unwrap_err().code, "missing_phone_column", "{head:?}");
                continue;
            }

            let opening = opened.unwrap_or_else(|failure| panic!("{head:?}: {failure:?}"));
            let place = opening.place;
            assert_eq!(
                (opening.delimiter, place.offset),
                (delimiter, offset),
                "{head:?}"
            );
            assert_eq!(place.line, line, "{head:?}");
        }
    }

    #[test]
    fn columns_are_found_by_name_and_the_others_give_warnings() {
        let opening = opening(
            "\u{feff} TO_phonenumber\u{200b} ,Name,plan,name,,Timezone,junk\n".as_bytes(),
            &["name", "plan", "city"],
        );
        let columns = &opening.columns;
        assert_eq!((columns.phone, columns.zone), (0, Some(5)));
        assert_eq!(
            columns.variables,
            [(3, "name".to_owned()), (2, "plan".to_owned())]
        );
        assert_eq!(
            opening.warnings,
            [
                "no column for the variable \"city\"; it stays without a value",
                "column \"Name\" is none of the batch's variables and is ignored",
                "column 5 has no name and is ignored",
                "column \"junk\" is none of the batch's variables and is ignored",
            ]
        );
    }

    #[test]
    fn the_first_of_two_equal_names_wins() {
        let opening = opening(b"to_phonenumber,name,name,to_phonenumber\n", &["name"]);
        assert_eq!(opening.columns.phone, 0);
        assert_eq!(opening.columns.variables, [(1, "name".to_owned())]);
        assert_eq!(
            opening.warnings,
            [
                "column 3 repeats the name \"name\" and is ignored",
                "column 4 repeats the name \"to_phonenumber\" and is ignored",
            ]
        );
    }

    #[test]
    fn an_alias_of_the_phone_column_is_taken_with_a_warning() {
        for alias in [
            "phone",
            "Phone_Number",
            "number",
            "contact_number",
            "MOBILE",
        ] {
            let opening = opening(format!("name,{alias}\n").as_bytes(), &["name"]);
            assert_eq!(opening.columns.phone, 1, "{alias}");
            assert_eq!(opening.warnings.len(), 1, "{alias}");
        }
        let both = opening(b"phone,to_phonenumber\n", &["phone"]);
        assert_eq!(both.columns.phone, 1);
        assert_eq!(both.columns.variables, [(0, "phone".to_owned())]);
        assert!(both.warnings.is_empty());
    }

    #[test]
    fn a_file_that_is_not_csv_is_refused_with_a_hint() {
        let many = "a,".repeat(60) + "to_phonenumber\n";
        let endless = vec![b'a'; HEAD_BYTES];
        let unclosed = "\"".to_owned() + &"a,b\n".repeat(HEAD_BYTES / 4);

        for (head, code, hint) in [
            (b"".as_slice(), "empty_file", "header line"),
            (b"\xef\xbb\xbf", "empty_file", "header line"),
            (b" \r\n\n ", "empty_file", "header line"),
            (b"PK\x03\x04rest", "not_csv", "CSV UTF-8"),
            (b"\xd0\xcf\x11\xe0rest", "not_csv", "CSV UTF-8"),
            (b"\x1f\x8b\x08\x00", "compressed_file", "unpack"),
            (b"%PDF-1.7", "not_csv", "CSV UTF-8"),
            (b"\xff\xfet\x00o\x00", "not_utf8", "CSV UTF-8"),
            (b"t\x00o\x00_\x00", "not_csv", "CSV UTF-8"),
            (b"to_phonenumber,caf\xe9\n", "not_utf8", "CSV UTF-8"),
            (
                b"name;city\nA;B\n",
                "missing_phone_column",
                "\"name\", \"city\"",
            ),
            (many.as_bytes(), "too_many_columns", "50"),
            (&endless, "header_too_long", "first line"),
            (unclosed.as_bytes(), "header_too_long", "quotes"),
            (b"\"to_phonenumber,a\n+1", "unclosed_quote", "line 1"),
        ] {
            let failure = refusal(head);
            assert_eq!(failure.code, code, "{failure:?}");
            assert!(failure.message.contains(hint), "{failure:?}");
        }
    }
}
