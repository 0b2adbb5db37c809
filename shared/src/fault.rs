//! Named places where a process may be made to misbehave, for tests that prove it may.
//!
//! A debug build reads `PEAL_FAULT`, a list such as `claim.committed=0.05,place.answered=0.1`:
//! at each named point the process aborts with that probability, as `kill -9` would end it.
//! `scope.blind=1` does not kill: it takes the API's own tenant filters away, so that what is
//! left can be seen. A release build has none of this.

/// Passes a point, or does not survive it.
#[cfg(not(debug_assertions))]
pub fn point(_name: &'static str) {}

/// Passes a point, or does not survive it.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    let Some(chance) = chance(name) else {
        return;
    };
    if crate::secret::jitter() < chance {
        tracing::error!(name, "dying here, as asked");
        std::process::abort();
    }
}

/// Whether statements go without their tenant filters.
#[cfg(not(debug_assertions))]
#[inline]
pub const fn is_blind() -> bool {
    false
}

/// Whether statements go without their tenant filters.
#[cfg(debug_assertions)]
pub fn is_blind() -> bool {
    chance("scope.blind").is_some()
}

#[cfg(debug_assertions)]
fn chance(name: &str) -> Option<f64> {
    use std::sync::OnceLock;

    static FAULTS: OnceLock<Vec<(String, f64)>> = OnceLock::new();
    #[expect(
        clippy::disallowed_methods,
        reason = "a fault is no setting of an installation"
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
