//! Strength check of secrets that callers supply as API keys. Randomness cannot be measured, so
//! secrets that look weak are rejected.

/// Allowed lengths of a secret, in characters.
const SECRET_LENGTHS: std::ops::RangeInclusive<usize> = 32..=256;
/// Minimum entropy, in bits, that alphabet and length allow.
const MIN_ENTROPY_BITS: f64 = 128.0;
/// Minimum number of distinct characters.
const MIN_DISTINCT_CHARS: usize = 10;

/// Common words of passwords, sentences and examples.
const COMMON_WORDS: [&str; 26] = [
    "password", "passwort", "secret", "apikey", "api_key", "api-key", "changeme", "qwerty", "asdf",
    "admin", "example", "sample", "letmein", "welcome", "correct", "horse", "battery", "staple",
    "dragon", "monkey", "sunshine", "football", "company", "customer", "platform", "default",
];

/// Prefixes of other vendors' secrets, and of generated keys.
const VENDOR_PREFIXES: [&str; 24] = [
    "peal_live_",
    "sk-",
    "sk_",
    "pk_",
    "rk_",
    "whsec_",
    "akia",
    "asia",
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "xox",
    "aiza",
    "ya29.",
    "sg.",
    "hf_",
    "eyj",
    "-----begin",
    "gsk_",
    "key-",
    "dop_v1_",
    "npm_",
];

/// Reports a secret that is strong enough for an API key.
#[must_use]
pub fn is_strong(secret: &str) -> bool {
    let lower = secret.to_ascii_lowercase();
    SECRET_LENGTHS.contains(&secret.len())
        && secret.bytes().all(|byte| byte.is_ascii_graphic())
        && entropy_bits(secret) >= MIN_ENTROPY_BITS
        && !is_repetitive(secret.as_bytes())
        && !is_sequential(secret.as_bytes())
        && !COMMON_WORDS.iter().any(|word| lower.contains(word))
        && !VENDOR_PREFIXES
            .iter()
            .any(|vendor| lower.starts_with(vendor))
        && !is_account_id(&lower)
        && !is_uuid(secret)
}

/// Reports a UUID with hyphens, or a time-based one without. Other versions without hyphens may
/// be 32 random digits.
fn is_uuid(secret: &str) -> bool {
    uuid::Uuid::try_parse(secret).is_ok_and(|id| {
        let is_time_based = id.get_version_num() == 1 && id.get_variant() == uuid::Variant::RFC4122;
        secret.len() != 32 || is_time_based
    })
}

/// Upper bound of the entropy, in bits, from alphabet and length.
fn entropy_bits(secret: &str) -> f64 {
    let has = |class: fn(&u8) -> bool| secret.bytes().any(|byte| class(&byte));
    let is_hex = secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut alphabet = 0_u32;
    if is_hex {
        alphabet = 16;
    } else {
        for (class, size) in [
            (u8::is_ascii_lowercase as fn(&u8) -> bool, 26),
            (u8::is_ascii_uppercase, 26),
            (u8::is_ascii_digit, 10),
            (u8::is_ascii_punctuation, 4),
        ] {
            alphabet += if has(class) { size } else { 0 };
        }
    }

    let length = u32::try_from(secret.len()).unwrap_or(u32::MAX);
    f64::from(length) * f64::from(alphabet.max(1)).log2()
}

/// Reports too few distinct characters, or a repeated piece.
fn is_repetitive(secret: &[u8]) -> bool {
    let mut distinct = secret.to_vec();
    distinct.sort_unstable();
    distinct.dedup();

    let periodic = (1..=secret.len() / 2).any(|period| {
        let shifted = secret.iter().skip(period);
        secret.iter().zip(shifted).all(|(a, b)| a == b)
    });

    distinct.len() < MIN_DISTINCT_CHARS || periodic
}

/// Reports sequences: equal or consecutive neighbours in a third of all positions.
fn is_sequential(secret: &[u8]) -> bool {
    let next = secret.iter().skip(1);
    let steps = secret.iter().zip(next);
    let close = steps.filter(|(a, b)| a.abs_diff(**b) <= 1).count();
    close * 3 >= secret.len()
}

/// Reports a carrier's account or key id: two letters and 32 hexadecimal digits.
fn is_account_id(lower: &str) -> bool {
    matches!(lower.get(..2), Some("ac" | "sk"))
        && lower.len() == 34
        && lower.bytes().skip(2).all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_texts_are_strong() {
        for secret in [
            "9f2b7c41d8e60a35f1c4b29e7d083a56",
            "Zk3vQ9xT1mB7rL5wY0cH8nJ2pD6sF4gA",
            "q7Wz-L2n_X9c.V4b~M6k/R1t+Y8h=J3f",
        ] {
            assert!(is_strong(secret), "{secret}");
        }
    }

    #[test]
    fn weak_texts_are_rejected() {
        for secret in [
            "",
            "9f2b7c41d8e60a35f1c4b29e7d083a5",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "9f2b7c41d8e60a359f2b7c41d8e60a35",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "01234567890123456789012345678901234567890123456789",
            "correcthorsebatterystaplecorrecthorse1A",
            "MyCompanyPassword2026MyCompanyPasswd",
            "c232ab00-9414-11ec-b3c8-9f6bdeced846",
            "c232ab00941411ecb3c89f6bdeced846",
            "f81d4fae-7dec-41d0-a765-00a0c91e6bf6",
            "sk-9f2b7c41d8e60a35f1c4b29e7d083a56",
            "AKIA9f2b7c41d8e60a35f1c4b29e7d083a56",
            "AC9f2b7c41d8e60a35f1c4b29e7d083a56",
            "peal_live_9f2b7c41d8e60a35f1c4b29e7d083a56",
            "Zk3vQ9xT1mB7rL5wY0cH8nJ2 pD6sF4gA",
            "Zk3vQ9xT1mB7rL5wY0cH8nJ2pD6sF4gÄ",
            &"Zk3vQ9xT1mB7rL5wY0cH8nJ2pD6sF4gA".repeat(9),
        ] {
            assert!(!is_strong(secret), "{secret}");
        }
    }
}
