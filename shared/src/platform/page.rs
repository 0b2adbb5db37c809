//! Pages of lists.

/// One page of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Number of the page, from 1.
    pub number: i64,
    pub size: i64,
}

impl Page {
    /// Page of an unpaged request: the first thousand rows.
    pub const WHOLE: Self = Self {
        number: 1,
        size: 1000,
    };
    /// Page of all rows, for internal use.
    pub const EVERYTHING: Self = Self {
        number: 1,
        size: i64::MAX,
    };

    /// `limit` of the statement: one row more than the page, to detect further rows.
    #[must_use]
    pub fn limit(&self) -> i64 {
        self.size.saturating_add(1)
    }

    /// Cuts the rows of a statement with [`Self::limit`] to the page.
    #[must_use]
    pub fn slice<T>(&self, mut rows: Vec<T>) -> PageSlice<T> {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let has_more = rows.len() > size;
        rows.truncate(size);
        PageSlice { rows, has_more }
    }

    /// True when a list of `total` rows continues after the page.
    #[must_use]
    pub fn has_rows_after(&self, total: i64) -> bool {
        total > self.offset().saturating_add(self.size)
    }

    /// Number of rows on the pages before.
    #[must_use]
    pub fn offset(&self) -> i64 {
        (self.number - 1).saturating_mul(self.size)
    }
}

/// Rows of one page.
#[derive(Clone, Debug)]
pub struct PageSlice<T> {
    pub rows: Vec<T>,
    /// True when more rows follow.
    pub has_more: bool,
}

impl<T> PageSlice<T> {
    /// Converts each row.
    ///
    /// # Errors
    /// The first error of `make`.
    pub fn try_map<U, E>(
        self,
        make: impl FnMut(T) -> std::result::Result<U, E>,
    ) -> std::result::Result<PageSlice<U>, E> {
        Ok(PageSlice {
            rows: self
                .rows
                .into_iter()
                .map(make)
                .collect::<std::result::Result<_, E>>()?,
            has_more: self.has_more,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_extra_row_means_that_more_follow() {
        let page = Page { number: 2, size: 3 };
        assert_eq!((page.limit(), page.offset()), (4, 3));
        for (found, shown, has_more) in [(0, 0, false), (3, 3, false), (4, 3, true)] {
            let slice = page.slice((0..found).collect::<Vec<_>>());
            assert_eq!((slice.rows.len(), slice.has_more), (shown, has_more));
        }
        for (total, more) in [(0, false), (6, false), (7, true)] {
            assert_eq!(page.has_rows_after(total), more, "{total}");
        }
        assert!(!Page::EVERYTHING.has_rows_after(i64::MAX));
    }
}
