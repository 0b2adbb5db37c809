//! Query parameters and response bodies of the billing routes.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use chrono_tz::Tz;
use peal_shared::Error;
use peal_shared::access::Scope;
use peal_shared::access::owner_filter::OwnerFilter;
use peal_shared::billing::export::ExportRequest;
use peal_shared::billing::period::{Period, midnight};
use peal_shared::billing::usage::sessions::UsageSession;
use peal_shared::billing::usage::{UsageFilter, UsageType};
use peal_shared::platform::ids::{AgentId, ExportId, JobId, UserId, WalletId};
use peal_shared::platform::money::Usd;
use peal_shared::wallets::queries::Wallet;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::auth::Caller;
use crate::http::error::Result;
use crate::http::paging;
use crate::http::paging::{Visibility, comma_list, parse_page, query_error};

/// Default and largest number of sessions on a page of records.
const DEFAULT_LIMIT: i64 = 50;
const MAX_LIMIT: i64 = 200;
/// Longest search text.
const MAX_SEARCH_CHARS: usize = 200;
/// Longest date range of an export.
const MAX_EXPORT_DAYS: i64 = 366;
/// Types of sessions.
const SESSION_TYPES: [&str; 3] = ["outbound", "inbound", "web"];

/// Query parameters of usage, with the filters by owner that several routes share.
macro_rules! usage_params {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Deserialize, IntoParams)]
        #[serde(deny_unknown_fields)]
        #[into_params(parameter_in = Query)]
        pub struct $name {
            $($(#[$field_doc])* $field: $type,)*
            /// `mine` for the caller's own, `all` for all visible ones; `all` by default.
            #[param(inline)]
            scope: Option<Visibility>,
            /// Ids, separated by commas.
            organization_ids: Option<String>,
            /// Ids, separated by commas.
            owner_user_ids: Option<String>,
            /// Of `user`, `org_admin` and `super_admin`, separated by commas.
            platform_roles: Option<String>,
        }

        impl $name {
            /// Parses the requested owners.
            pub fn owners(&self) -> Result<OwnerFilter> {
                paging::parse_owners(
                    self.organization_ids.as_deref(),
                    self.owner_user_ids.as_deref(),
                    self.platform_roles.as_deref(),
                )
            }

            /// Narrows the caller's scope as requested.
            pub fn scope(&self, caller: &Caller) -> Result<Scope> {
                Ok(match self.scope {
                    Some(Visibility::Mine) => caller.scope_of(caller.user)?,
                    Some(Visibility::All) | None => caller.scope(),
                })
            }
        }
    };
}

usage_params! {
    /// Page of all usage.
    ListQuery {
        /// From 1.
        #[param(minimum = 1)]
        page: Option<i64>,
        /// 20 when only `page` is given.
        #[param(minimum = 1, maximum = 100)]
        page_size: Option<i64>,
    }
}

usage_params! {
    /// Search and page of usage.
    RecordsQuery {
        /// Sessions first charged in this period.
        #[serde(default)]
        #[param(inline)]
        time_filter: Period,
        /// Calls are the only usage.
        #[param(inline)]
        usage_type: Option<UsageType>,
        /// Part of the agent's name, of the called number, or of the session's id.
        search: Option<String>,
        /// 50 by default.
        #[param(minimum = 1, maximum = 200)]
        limit: Option<i64>,
        #[param(minimum = 0)]
        offset: Option<i64>,
        /// Instead of `offset`, from 1.
        #[param(minimum = 1)]
        page: Option<i64>,
        /// Instead of `limit`.
        #[param(minimum = 1, maximum = 100)]
        page_size: Option<i64>,
    }
}

usage_params! {
    /// Period of a summary.
    SummaryQuery {
        #[serde(default)]
        #[param(inline)]
        time_period: Period,
    }
}

impl SummaryQuery {
    pub fn period(&self) -> Period {
        self.time_period
    }
}

impl ListQuery {
    pub fn is_paged(&self) -> bool {
        self.page.is_some() || self.page_size.is_some()
    }

    /// Limit and offset.
    pub fn bounds(&self, unpaged: i64) -> Result<(i64, i64)> {
        if !self.is_paged() {
            return Ok((unpaged, 0));
        }

        let page = parse_page(self.page, self.page_size)?;
        Ok((page.size, page.offset()))
    }
}

impl RecordsQuery {
    /// Limit and offset.
    pub fn bounds(&self) -> Result<(i64, i64)> {
        if self.page.is_some() || self.page_size.is_some() {
            let page = parse_page(self.page, self.page_size)?;
            return Ok((page.size, page.offset()));
        }
        let (limit, offset) = (
            self.limit.unwrap_or(DEFAULT_LIMIT),
            self.offset.unwrap_or(0),
        );
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(query_error("limit", "must be between 1 and 200"));
        }
        if offset < 0 {
            return Err(query_error("offset", "must be 0 or more"));
        }
        Ok((limit, offset))
    }

    pub fn filter(&self, owners: OwnerFilter, now: DateTime<Utc>, zone: Tz) -> Result<UsageFilter> {
        let search = self.search.as_deref().map(str::trim);
        if search.is_some_and(|text| text.chars().count() > MAX_SEARCH_CHARS) {
            return Err(query_error("search", "must have at most 200 characters"));
        }

        Ok(UsageFilter {
            owners,
            usage_type: self.usage_type,
            from: self.time_filter.start(now, zone),
            search: search.map(str::to_owned),
            ..UsageFilter::default()
        })
    }
}

/// User of an overview.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OverviewQuery {
    /// One user; by default all visible users.
    pub user_id: Option<UserId>,
}

/// Filter of an export.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// Sessions first charged in this period.
    #[serde(default)]
    #[param(inline)]
    time_filter: Period,
    /// Calls are the only usage.
    #[param(inline)]
    usage_type: Option<UsageType>,
    /// Of `outbound`, `inbound` and `web`, separated by commas.
    session_types: Option<String>,
    /// Ids, separated by commas.
    agent_ids: Option<String>,
    /// The first day, in the organization's time zone.
    #[param(example = "2026-11-01")]
    from_date: Option<NaiveDate>,
    /// The last day.
    #[param(example = "2026-11-30")]
    to_date: Option<NaiveDate>,
}

impl ExportQuery {
    pub fn into_request(self, now: DateTime<Utc>, zone: Tz) -> Result<ExportRequest> {
        if let (Some(first), Some(last)) = (self.from_date, self.to_date) {
            if first > last {
                let message = "from_date is after to_date: swap them";
                return Err(Error::rejected("range_reversed", message).into());
            }
            if last - first >= TimeDelta::days(MAX_EXPORT_DAYS) {
                let message = "an export covers at most 366 days: request several";
                return Err(Error::rejected("range_too_long", message).into());
            }
        }

        let kind = |text: &str| match SESSION_TYPES.contains(&text) {
            true => Ok(text.to_owned()),
            false => Err(()),
        };
        let kinds = comma_list(self.session_types.as_deref(), kind)
            .ok_or_else(|| query_error("session_types", "must be of outbound, inbound, web"))?;

        let agents = comma_list(self.agent_ids.as_deref(), str::parse::<AgentId>)
            .ok_or_else(|| query_error("agent_ids", "must be ids, separated by commas"))?;

        let first = self.from_date.map(|day| midnight(day, zone));
        let end = self.to_date.and_then(|day| day.succ_opt());
        Ok(ExportRequest {
            usage_type: self.usage_type,
            session_types: kinds,
            agents,
            // The later start wins: both filters apply.
            from: first.max(self.time_filter.start(now, zone)),
            to: end.map(|day| midnight(day, zone)),
            by_key: false,
        })
    }
}

/// Proof of a mailed link.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportLinkParams {
    /// Token from the mail.
    pub token: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Grouped)]
pub struct GroupedUsage {
    grouped_sessions: Vec<UsageSession>,
    /// Number of matching sessions.
    #[schema(example = 1)]
    total: i64,
    #[schema(example = 50)]
    limit: i64,
    #[schema(example = 0)]
    offset: i64,
    #[schema(example = "USD")]
    currency: &'static str,
}

impl GroupedUsage {
    pub fn new(sessions: Vec<UsageSession>, total: i64, (limit, offset): (i64, i64)) -> Self {
        Self {
            grouped_sessions: sessions,
            total,
            limit,
            offset,
            currency: "USD",
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct ExportAsked {
    #[schema(example = "export started; a link to the file will be mailed to you")]
    pub message: &'static str,
    pub export_id: ExportId,
    pub job_id: JobId,
    #[schema(example = "ada@example.com")]
    pub email: String,
}

#[derive(Serialize, ToSchema)]
pub struct CreditBalance {
    credit_balance_usd: Usd,
    /// Equal to `credit_balance_usd`.
    available_balance_usd: Usd,
    /// Held for calls in progress.
    held_usd: Usd,
    /// Null without a cap.
    monthly_cap_usd: Option<Usd>,
    month_spend_usd: Usd,
    /// Remainder of the cap; null without one.
    cap_remaining_usd: Option<Usd>,
    #[schema(example = "USD")]
    currency: &'static str,
    wallet_id: WalletId,
    updated_at: DateTime<Utc>,
}

impl From<Wallet> for CreditBalance {
    fn from(wallet: Wallet) -> Self {
        Self {
            credit_balance_usd: wallet.available_balance_usd,
            available_balance_usd: wallet.available_balance_usd,
            held_usd: wallet.held_usd,
            monthly_cap_usd: wallet.monthly_cap_usd,
            month_spend_usd: wallet.month_spend_usd,
            cap_remaining_usd: wallet.cap_remaining_usd,
            currency: wallet.currency,
            wallet_id: wallet.id,
            updated_at: wallet.updated_at,
        }
    }
}
