//! Limit of open files. Every connection uses one.

/// Raises the limit of open files to the system's maximum and returns it. The usual default of a
/// shell is 1,024, which a carrier's connections alone can exceed.
#[must_use]
pub fn raise_open_files_limit() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of open files");
        rlimit::Resource::NOFILE
            .get()
            .map_or(0, |(soft, _hard)| soft)
    })
}
