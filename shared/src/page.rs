//! Pages of lists, and whose rows a list shows.

use crate::access::Role;
use crate::ids::{OrgId, UserId};

/// One page of a list.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// From 1.
    pub number: i64,
    pub size: i64,
}

impl Page {
    /// A list that was asked for as a whole: its first thousand rows.
    pub const WHOLE: Self = Self {
        number: 1,
        size: 1000,
    };
    /// Every row there is, for what is looked through and not shown.
    pub const EVERYTHING: Self = Self {
        number: 1,
        size: i64::MAX,
    };

    /// What a statement is limited to: one row more than the page has, which tells whether there
    /// are more.
    #[must_use]
    pub fn limit(&self) -> i64 {
        self.size.saturating_add(1)
    }

    /// The rows of the page out of those that a statement with [`Self::limit`] found.
    #[must_use]
    pub fn slice<T>(&self, mut rows: Vec<T>) -> Slice<T> {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let has_more = rows.len() > size;
        rows.truncate(size);
        Slice { rows, has_more }
    }

    /// Whether so many rows go on behind the page.
    #[must_use]
    pub fn is_exceeded_by(&self, total: i64) -> bool {
        total > self.offset().saturating_add(self.size)
    }

    /// How many rows stand on the pages before.
    #[must_use]
    pub fn offset(&self) -> i64 {
        (self.number - 1).saturating_mul(self.size)
    }
}

/// What a page of a list shows.
#[derive(Clone, Debug)]
pub struct Slice<T> {
    pub rows: Vec<T>,
    /// Whether there are more rows behind these.
    pub has_more: bool,
}

impl<T> Slice<T> {
    /// The same page of something else.
    ///
    /// # Errors
    /// The first that cannot be made.
    pub fn try_map<U, E>(
        self,
        make: impl FnMut(T) -> std::result::Result<U, E>,
    ) -> std::result::Result<Slice<U>, E> {
        Ok(Slice {
            rows: self
                .rows
                .into_iter()
                .map(make)
                .collect::<std::result::Result<_, E>>()?,
            has_more: self.has_more,
        })
    }
}

/// Whose rows to list; each list narrows what the scope allows. Default: everybody's.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    pub orgs: Option<Vec<OrgId>>,
    pub users: Option<Vec<UserId>>,
    pub roles: Option<Vec<Role>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_more_than_the_page_tells_that_there_are_more() {
        let page = Page { number: 2, size: 3 };
        assert_eq!((page.limit(), page.offset()), (4, 3));
        for (found, shown, has_more) in [(0, 0, false), (3, 3, false), (4, 3, true)] {
            let slice = page.slice((0..found).collect::<Vec<_>>());
            assert_eq!((slice.rows.len(), slice.has_more), (shown, has_more));
        }
        for (total, more) in [(0, false), (6, false), (7, true)] {
            assert_eq!(page.is_exceeded_by(total), more, "{total}");
        }
        assert!(!Page::EVERYTHING.is_exceeded_by(i64::MAX));
    }
}
