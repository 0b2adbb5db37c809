use proptest::prelude::*;

use super::*;

fn country(code: &str) -> Option<Country> {
    Some(code.parse().unwrap())
}

fn ok(raw: &str, default: Option<Country>) -> String {
    E164::parse(raw, default)
        .unwrap_or_else(|error| panic!("{raw:?}: {error}"))
        .as_str()
        .to_owned()
}

fn code(raw: &str, default: Option<Country>) -> &'static str {
    E164::parse(raw, default).unwrap_err().code()
}

#[test]
fn separators_and_wrapping_are_ignored() {
    for raw in [
        "+919876543210",
        " +91 98765 43210 ",
        "+91-98765-43210",
        "+91.98765.43210",
        "(+91) 98765 43210",
        "+91\u{a0}98765\u{202f}43210",
        "\u{200b}+91\u{200d}9876543210\u{feff}",
        "\u{202a}+919876543210\u{202c}",
        "'+919876543210",
        "=\"+919876543210\"",
        "tel:+91-98765-43210",
        "TEL: +919876543210",
        "+919876543210.0",
        "0091 98765 43210",
        "+91 (0) 98765 43210",
        "\u{ff0b}\u{ff19}\u{ff11}9876543210",
        "+\u{96f}\u{967}9876543210",
        "+91\u{2011}98765\u{2013}43210",
    ] {
        assert_eq!(ok(raw, None), "+919876543210", "{raw:?}");
    }
}

#[test]
fn a_national_number_needs_the_default_country() {
    assert_eq!(ok("98765 43210", country("IN")), "+919876543210");
    assert_eq!(ok("098765 43210", country("IN")), "+919876543210");
    assert_eq!(ok("(650) 253-0000", country("US")), "+16502530000");
    assert_eq!(ok("0151 60619894", country("DE")), "+4915160619894");
    assert_eq!(ok("011 91 98765 43210", country("US")), "+919876543210");
    assert_eq!(code("98765 43210", None), "missing_country");
    assert_eq!(code("(650) 253-0000", None), "missing_country");
}

#[test]
fn a_plus_lost_by_the_spreadsheet_is_restored_only_when_nothing_else_fits() {
    assert_eq!(ok("919876543210", None), "+919876543210");
    assert_eq!(ok("919876543210.0", None), "+919876543210");
    assert_eq!(ok("919876543210", country("IN")), "+919876543210");
    assert_eq!(ok("919876543210", country("US")), "+919876543210");
    assert_eq!(ok("6591234567", country("SG")), "+6591234567");
    // A mobile of China or a subscriber of the United States.
    assert_eq!(code("13802345678", None), "missing_country");
    assert_eq!(ok("13802345678", country("CN")), "+8613802345678");
    assert_eq!(ok("13802345678", country("US")), "+13802345678");
    // With one digit too many it must not be read as a number of Iran.
    assert_eq!(code("98765432101", country("IN")), "invalid_for_country");
}

#[test]
fn ambiguous_and_malformed_numbers_are_refused_with_a_reason() {
    for (raw, expected) in [
        ("", "empty"),
        (" \u{200b} ", "empty"),
        ("'", "empty"),
        ("n/a", "not_a_number"),
        ("+1 650 253 0000 ext. 12", "not_a_number"),
        ("+1 800 FLOWERS", "not_a_number"),
        ("+91 98765 43210 / 98765 43211", "not_a_number"),
        ("91+9876543210", "not_a_number"),
        ("--", "not_a_number"),
        ("9.19E+11", "scientific_notation"),
        ("9,19877E+11", "scientific_notation"),
        ("+9.19e11", "scientific_notation"),
        ("+999 12345678", "unknown_country_code"),
        ("+91 98765", "too_short"),
        ("+1 253 0000", "too_short"),
        ("+91 98765 43210 1", "invalid_for_country"),
        ("+1 650 253 00001", "too_long"),
        ("+91 98765 43210 98765 43210", "too_long"),
        ("+1 111 253 0000", "invalid_for_country"),
        ("911", "missing_country"),
    ] {
        assert_eq!(code(raw, None), expected, "{raw:?}");
    }
    assert_eq!(code("112", country("IN")), "too_short");
}

#[test]
fn a_stored_number_is_checked_for_its_shape() {
    for bad in [
        "919876543210",
        "+0919876543210",
        "+123456",
        "+1234567890123456",
        "+91 98765",
    ] {
        assert!(E164::try_from(bad.to_owned()).is_err(), "{bad}");
        assert!(serde_json::from_value::<E164>(bad.into()).is_err(), "{bad}");
    }
    let number: E164 = serde_json::from_str("\"+919876543210\"").unwrap();
    assert_eq!(serde_json::to_string(&number).unwrap(), "\"+919876543210\"");
    assert_eq!(format!("{number:?}"), "+***3210");
}

#[test]
fn a_country_is_two_letters_with_a_numbering_plan() {
    assert_eq!("in".parse::<Country>().unwrap().to_string(), "IN");
    for bad in ["", "I", "IND", "ZZ", "001", "é"] {
        assert!(bad.parse::<Country>().is_err(), "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_text_is_a_number_of_the_right_shape_or_refused(raw in "\\PC{0,40}", with_country: bool) {
        check(&raw, with_country)?;
    }

    #[test]
    fn anything_like_a_number_is_one_of_the_right_shape_or_refused(
        raw in "[+'= ]{0,3}(00|0|91|1|44|tel:)?[0-9 ().\u{200b}-]{5,22}(\\.0|E\\+11)?",
        with_country: bool,
    ) {
        check(&raw, with_country)?;
    }
}

fn check(raw: &str, with_country: bool) -> Result<(), TestCaseError> {
    let default = with_country.then(|| "IN".parse().unwrap());
    if let Ok((number, zones)) = E164::parse_with_zones(raw, default) {
        let digits = number.as_str().strip_prefix('+').unwrap();
        prop_assert!((MIN_DIGITS..=MAX_DIGITS).contains(&digits.len()));
        prop_assert!(!digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()));
        prop_assert_eq!(
            E164::parse_with_zones(number.as_str(), default),
            Ok((number.clone(), zones))
        );
        prop_assert_eq!(E164::parse(number.as_str(), None), Ok(number));
    }
    Ok(())
}
