//! Usage: costs of calls, for their owners.
//!
//! A **session** is a call that was charged ([`sessions`]). Its cost is the sum of its charges,
//! corrections included, and counts at the time of the first one. [`totals`] sums sessions.

pub mod sessions;
pub mod totals;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::access::owner_filter::OwnerFilter;
use crate::platform::ids::AgentId;
use crate::platform::money::Usd;

/// Kind of usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageType {
    Calls,
    Chat,
    Embedding,
}

/// Filter of sessions; `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct UsageFilter {
    pub owners: OwnerFilter,
    pub usage_type: Option<UsageType>,
    /// First charged from this moment on.
    pub from: Option<DateTime<Utc>>,
    /// First charged before this moment.
    pub to: Option<DateTime<Utc>>,
    pub agents: Option<Vec<AgentId>>,
    /// A part of the agent's name, the number that was called, or the session's id.
    pub search: Option<String>,
}

impl UsageFilter {
    /// True when the filter can match: calls are the only usage so far.
    fn includes_calls(&self) -> bool {
        self.usage_type.is_none_or(|kind| kind == UsageType::Calls)
    }

    fn pattern(&self) -> Option<String> {
        let text = self.search.as_deref().filter(|text| !text.is_empty())?;
        let escaped = text
            .replace('\\', "\\\\")
            .replace('%', "\\%")
            .replace('_', "\\_");
        Some(format!("%{escaped}%"))
    }
}

/// Shares of a cost; for the platform only.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct CostSplit {
    /// Cost at the platform's own prices.
    pub base_cost_usd: Usd,
    /// Markup of the distributor.
    pub markup_usd: Usd,
    /// Commission of the reseller on the platform's price.
    pub commission_usd: Usd,
}

/// OpenAPI schema of a [`Split`]; all fields are absent for other roles.
#[derive(ToSchema)]
#[expect(dead_code, reason = "its fields are read by the macro alone")]
pub struct ShownSplit {
    /// Cost at the platform's own prices; for a super_admin.
    #[schema(nullable = false)]
    base_cost_usd: Option<Usd>,
    /// Markup of the distributor; for a super_admin.
    #[schema(nullable = false)]
    markup_usd: Option<Usd>,
    /// Commission of the reseller on the platform's price; for a super_admin.
    #[schema(nullable = false)]
    commission_usd: Option<Usd>,
}

/// Query of calls `c` in the caller's scope, with their agent `a` and, when they were charged,
/// their first charge `first`. `$join` is a further join, `$tail` follows the conditions; its
/// arguments begin at `$10`.
macro_rules! of_sessions {
    ($type:ty, [$($head:tt)+], $join:tt, $tail:tt, $scope:expr, $filter:expr $(, $more:expr)* $(,)?) => {
        sqlx::query_as!(
            $type,
            $($head)+ + r#"
             from calls c
             join agents a on a.id = c.agent_id
             join users u on u.id = c.user_id
             left join charges first
               on first.call_id = c.id and first.org_id = c.org_id and first.user_id = c.user_id and first.version = 1 "#
            + $join + r#"
             where ($1::uuid is null or c.org_id = $1)
               and ($2::uuid is null or c.user_id = $2)
               and ($3::uuid[] is null or c.org_id = any($3))
               and ($4::uuid[] is null or c.user_id = any($4))
               and ($5::text[] is null or u.role = any($5))
               and ($6::timestamptz is null or first.created_at >= $6)
               and ($7::timestamptz is null or first.created_at < $7)
               and ($8::uuid[] is null or c.agent_id = any($8))
               and ($9::text is null or a.name ilike $9 or c.to_number like $9 or c.id::text ilike $9) "# + $tail,
            $scope.org() as Option<$crate::platform::ids::OrgId>,
            $scope.user() as Option<$crate::platform::ids::UserId>,
            $filter.owners.orgs.as_deref() as Option<&[$crate::platform::ids::OrgId]>,
            $filter.owners.users.as_deref() as Option<&[$crate::platform::ids::UserId]>,
            $filter.owners.roles.as_deref() as Option<&[$crate::access::Role]>,
            $filter.from,
            $filter.to,
            $filter.agents.as_deref() as Option<&[$crate::platform::ids::AgentId]>,
            $filter.pattern(),
            $($more),*
        )
    };
}
use of_sessions;
