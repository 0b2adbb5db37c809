use bytes::Bytes;
use futures::executor::block_on;
use futures::{StreamExt as _, stream};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::columns::ColumnMap;
use super::header::FileHeader;
use super::reader::{CsvFault, CsvParser, FilePosition, RecordStream};
use super::rows::{ParsedRow, RowReject, RowRules, RowZones};
use super::{header, *};

const LIMITS: IngestLimits = IngestLimits {
    max_bytes: 1_000_000,
    max_rows_per_batch: 1_000,
    max_columns: 5,
    max_cell_chars: 20,
    chunk_rows: 10,
};

/// All records from `place` on, as line and fields.
fn records(
    text: &[u8],
    place: FilePosition,
    slice: usize,
) -> Result<Vec<(u64, Vec<String>)>, CsvFault> {
    let rest = &text[usize::try_from(place.offset).unwrap()..];
    let slices: Vec<_> = rest
        .chunks(slice)
        .map(|slice| Ok(Bytes::copy_from_slice(slice)))
        .collect();
    let mut records = RecordStream::new(
        stream::iter(slices),
        CsvParser::new(b',', place, 5, &LIMITS),
    );
    let mut found = Vec::new();
    while block_on(records.advance()).unwrap()? {
        let record = records.parser.record();
        found.push((record.line, record.fields().map(str::to_owned).collect()));
    }
    Ok(found)
}

fn lines(text: &str) -> Vec<u64> {
    let found = records(text.as_bytes(), FilePosition::START, 3).unwrap();
    found.into_iter().map(|(line, _)| line).collect()
}

#[test]
fn every_record_has_its_line() {
    assert_eq!(lines("a\nb\nc\n"), [1, 2, 3]);
    assert_eq!(lines("a\nb\nc"), [1, 2, 3]);
    assert_eq!(lines("a\r\nb\r\n\r\n\r\nc\r\n"), [1, 2, 5]);
    assert_eq!(lines("a\rb\r\rc"), [1, 2, 4]);
    assert_eq!(lines("\n\n\"a\nb\r\nc\",d\ne\n\n"), [3, 6]);
    assert_eq!(lines("\r\n \r\n\"\"\r\n"), [2, 3]);
    assert_eq!(lines(""), [0_u64; 0]);
}

#[test]
fn quotes_are_read_as_spreadsheets_write_them() {
    let found = records(b"\"a,\"\"b\"\"\",5\" pipe,\n", FilePosition::START, 2).unwrap();
    assert_eq!(
        found,
        [(
            1,
            vec!["a,\"b\"".to_owned(), "5\" pipe".to_owned(), String::new()]
        )]
    );
}

#[test]
fn an_endless_record_is_a_fault_with_its_line() {
    let max_bytes = LIMITS.max_record_bytes();
    for endless in ["x", ",", "\"\"", "x\ny"] {
        let bomb = "a\nb\n\"c".to_owned() + &endless.repeat(10 * max_bytes);
        assert_eq!(
            records(bomb.as_bytes(), FilePosition::START, 64),
            Err(CsvFault::RecordTooLong { line: 3, max_bytes }),
            "{endless}"
        );
    }
    assert_eq!(
        records(b"a\n\"b\nc\nd\n", FilePosition::START, 64),
        Err(CsvFault::UnclosedQuote { line: 2 })
    );
}

#[test]
fn a_line_of_ten_gigabytes_is_refused_after_a_few_kilobytes() {
    let mut slices_read = 0_u64;
    let endless = stream::repeat_with(|| {
        slices_read += 1;
        Ok(Bytes::from_static(&[b'x'; 1024]))
    });
    let mut records = RecordStream::new(
        Box::pin(endless.take(10_000_000)),
        CsvParser::new(b',', FilePosition::START, 5, &LIMITS),
    );
    let fault = block_on(records.advance()).unwrap().unwrap_err();
    assert!(matches!(fault, CsvFault::RecordTooLong { line: 1, .. }));
    drop(records);
    assert!(slices_read <= 2, "{slices_read}");
}

proptest! {
    #[test]
    fn records_are_the_same_however_the_file_is_cut_and_wherever_a_run_resumes(
        text in "([a-c,\"\r\n]|é){0,60}",
        slice in 1_usize..9,
    ) {
        let whole = records(text.as_bytes(), FilePosition::START, 1_000);
        prop_assert_eq!(&records(text.as_bytes(), FilePosition::START, slice), &whole);
        let Ok(whole) = whole else { return Ok(()) };
        let mut parser = CsvParser::new(b',', FilePosition::START, 5, &LIMITS);
        let mut rest = text.as_bytes();
        let mut before = 0;
        while let (super::reader::ParseStep::Record, taken) = parser.feed(rest).unwrap() {
            rest = &rest[taken..];
            before += 1;
            let resumed = records(text.as_bytes(), parser.place(), slice).unwrap();
            prop_assert_eq!(&resumed[..], &whole[before..]);
        }
    }
}

fn columns(names: &[&str]) -> ColumnMap {
    let head = names.join(",") + "\n";
    let variables = ["name".to_owned(), "city".to_owned()];
    header::read_header(head.as_bytes(), &variables, &LIMITS)
        .unwrap()
        .columns
}

fn check(row: &[u8]) -> Result<Option<ParsedRow>, RowReject> {
    let mut parser = CsvParser::new(b',', FilePosition::START, 5, &LIMITS);
    let (_, _) = parser.feed(row).unwrap();
    parser.finish().unwrap();
    let rules = RowRules {
        limits: &LIMITS,
        required_variables: &[],
        default_country: Some("IN".parse().unwrap()),
    };
    let columns = columns(&["to_phonenumber", "name", "city", "timezone"]);
    rules.parse_record(&columns, parser.record())
}

fn variables(row: &ParsedRow) -> Value {
    serde_json::from_slice(&row.variables).unwrap()
}

#[test]
fn a_good_row_is_normalised() {
    let row = check("98765 43210, Asha \"A\" Rao ,Pune\n".as_bytes())
        .unwrap()
        .unwrap();
    assert_eq!(row.number.as_str(), "+919876543210");
    assert_eq!(
        variables(&row),
        json!({"name": "Asha \"A\" Rao", "city": "Pune"})
    );
    assert_eq!(row.zones.names().unwrap(), "Asia/Calcutta");
    let short = check(b"+919876543210").unwrap().unwrap();
    assert_eq!(variables(&short), json!({"name": "", "city": ""}));
    let given = check(b"+919876543210,,, America/New_York \n")
        .unwrap()
        .unwrap();
    assert_eq!(given.zones, RowZones::Given(chrono_tz::America::New_York));
    let satellite = check(b"+881631234567").unwrap().unwrap();
    assert_eq!(satellite.zones.names(), None);
}

#[test]
fn a_blank_row_is_no_row() {
    for blank in [b",,,\n".as_slice(), b" , ,\n", b"\"\",\"\"\n"] {
        assert!(check(blank).unwrap().is_none(), "{blank:?}");
    }
}

#[test]
fn a_reject_names_the_column_and_a_remedy() {
    for (row, code, column, hint) in [
        (
            b",Asha,Pune\n".as_slice(),
            "empty",
            "to_phonenumber",
            "fill it in",
        ),
        (
            b"9.19E+11,a\n",
            "scientific_notation",
            "to_phonenumber",
            "as text",
        ),
        (b"+919876543210,\xe9\n", "invalid_utf8", "", "line 1"),
        (b"+919876543210,\xc3,\xa9\n", "invalid_utf8", "", "line 1"),
        (b"+919876543210,a\0b\n", "nul_character", "", "line 1"),
        (
            b"+919876543210,Rao, Asha,,Pune\n",
            "too_many_cells",
            "",
            "quotes",
        ),
        (b"+919876543210,,,,,,,,,\n", "too_many_cells", "", "header"),
        (
            b"+919876543210,123456789012345678901\n",
            "cell_too_long",
            "name",
            "20",
        ),
        (
            b"+919876543210,,,IST\n",
            "unknown_timezone",
            "timezone",
            "Asia/Kolkata",
        ),
    ] {
        let reject = check(row).unwrap_err();
        assert_eq!(
            (&*reject.code, reject.column.as_str(), reject.line),
            (code, column, 1)
        );
        assert!(reject.message.contains(hint), "{reject:?}");
    }

    // Twenty characters of four bytes each are within the limit.
    let wide = "+919876543210,".to_owned() + &"😀".repeat(20);
    assert!(check(wide.as_bytes()).unwrap().is_some());
}

#[test]
fn an_item_of_a_request_follows_the_same_rules() {
    let rules = RowRules {
        limits: &LIMITS,
        required_variables: &[],
        default_country: None,
    };
    let known = ["name".to_owned(), "age".to_owned()];
    let item = |values: Value| {
        let record: RowInput = serde_json::from_value(values).unwrap();
        rules.parse_item(7, &record.to_phonenumber, &record.variables, &known)
    };

    let row = item(json!({
        "to_phonenumber": "+91 98765 43210", "name": "Asha", "age": 41, "other": [1], "TimeZone": "Asia/Tokyo"
    }))
    .unwrap();
    assert_eq!(variables(&row), json!({"name": "Asha", "age": 41}));
    assert_eq!(row.zones.names().unwrap(), "Asia/Tokyo");
    let null = item(json!({"to_phonenumber": "+919876543210", "name": null})).unwrap();
    assert_eq!(variables(&null), json!({}));

    for (values, code) in [
        (json!({"to_phonenumber": "98765 43210"}), "missing_country"),
        (
            json!({"to_phonenumber": "+919876543210", "name": {"a": 1}}),
            "not_flat",
        ),
        (
            json!({"to_phonenumber": "+919876543210", "name": "x".repeat(21)}),
            "cell_too_long",
        ),
        (
            json!({"to_phonenumber": "+919876543210", "name": "a\0"}),
            "nul_character",
        ),
        (
            json!({"to_phonenumber": "+919876543210", "timezone": "Mars"}),
            "unknown_timezone",
        ),
    ] {
        let reject = item(values).unwrap_err();
        assert_eq!((&*reject.code, reject.line), (code, 7));
    }
}

#[test]
fn only_variables_that_the_agent_uses_need_a_value() {
    let variables = ["name".to_owned(), "city".to_owned()];
    let spoken = super::required_variables(["Hi {{ name }}, {{unknown}}", ""], &variables);
    assert_eq!(spoken, ["name"]);
    let rules = RowRules {
        limits: &LIMITS,
        required_variables: &spoken,
        default_country: None,
    };
    let item = |values: Value| {
        let record: RowInput = serde_json::from_value(values).unwrap();
        rules.parse_item(3, &record.to_phonenumber, &record.variables, &variables)
    };
    let number = "+919876543210";
    item(json!({"to_phonenumber": number, "name": "Asha"})).unwrap();
    item(json!({"to_phonenumber": number, "name": 0})).unwrap();
    for values in [
        json!({"to_phonenumber": number, "city": "Pune"}),
        json!({"to_phonenumber": number, "name": " "}),
        json!({"to_phonenumber": number, "name": null}),
    ] {
        let reject = item(values).unwrap_err();
        assert_eq!(
            (&*reject.code, reject.column.as_str(), reject.line),
            ("missing_variable", "name", 3)
        );
    }
}

#[test]
fn number_and_zone_do_not_count_as_variable_columns() {
    let most = ["to_phonenumber", "a", "b", "c", "d", "e", "timezone"];
    assert_eq!(columns(&most).names, most);
    let head = most.join(",") + ",f\n";
    let refused = header::read_header(head.as_bytes(), &[], &LIMITS).unwrap_err();
    assert_eq!(refused.code, "too_many_columns");
    assert!(
        refused.message.contains("more than 5 columns"),
        "{refused:?}"
    );
}

#[test]
fn a_header_without_a_line_break_is_found() {
    let FileHeader { place, .. } = header::read_header(b"to_phonenumber", &[], &LIMITS).unwrap();
    assert_eq!(place.offset, 14);
}
