//! Failpoints: named places where tests make a process crash or misbehave.
//!
//! A debug build reads `PEAL_FAULT`, a list such as `claim.committed=0.05,place.answered=0.1`:
//! at each named point the process aborts with that probability, like after `kill -9`.
//! `scope.blind=1` does not abort: it removes the API's own tenant filters, so that tests see
//! row-level security alone. In a release build no failpoint is active.

/// Passes a failpoint, or aborts the process there.
#[inline]
pub fn hit(name: &'static str) {
    let Some(chance) = chance(name) else {
        return;
    };
    if crate::platform::secret::jitter() < chance {
        tracing::error!(name, "aborting at a failpoint");
        std::process::abort();
    }
}

/// True when statements run without their tenant filters.
#[must_use]
#[inline]
pub fn skips_tenant_filters() -> bool {
    chance("scope.blind").is_some()
}

/// Probability of a failpoint: none in a release build.
#[cfg(not(debug_assertions))]
#[inline]
const fn chance(_name: &str) -> Option<f64> {
    None
}

/// Probability of a failpoint, from `PEAL_FAULT`.
#[cfg(debug_assertions)]
fn chance(name: &str) -> Option<f64> {
    use std::sync::OnceLock;

    static FAULTS: OnceLock<Vec<(String, f64)>> = OnceLock::new();
    #[expect(
        clippy::disallowed_methods,
        reason = "a failpoint is not a setting of an installation"
    )]
    let faults = FAULTS.get_or_init(|| {
        let text = std::env::var("PEAL_FAULT").unwrap_or_default();
        text.split(',')
            .filter_map(|fault| fault.split_once('='))
            .filter_map(|(name, chance)| Some((name.trim().to_owned(), chance.parse().ok()?)))
            .collect()
    });
    let found = faults.iter().find(|(fault, _)| fault == name);
    found.map(|(_, chance)| *chance)
}
