//! Open files: every connection is one.

/// How many files this process may have open, from now on as many as the system allows: a shell
/// begins with 1,024, which a carrier's connections alone can use up.
#[must_use]
pub fn raise_limit() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files cannot be raised");
        rlimit::Resource::NOFILE
            .get()
            .map_or(0, |(soft, _hard)| soft)
    })
}
