//! Sessions: the charged calls, one by one.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{CostSplit, ShownSplit, UsageFilter, of_sessions};
use crate::access::Scope;
use crate::billing::quote::{BillLine, BillingUnit, Service};
use crate::platform::error::{Error, Result};
use crate::platform::ids::{AgentId, BatchId, CallId, OrgId, UserId};
use crate::platform::money::Usd;

/// A call with its cost and services.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Session)]
pub struct UsageSession {
    pub session_id: CallId,
    pub organization_id: OrgId,
    pub user_id: UserId,
    pub agent_id: AgentId,
    #[schema(example = "Asha")]
    pub agent_name: String,
    pub batch_id: Option<BatchId>,
    #[schema(example = "outbound")]
    pub call_type: &'static str,
    #[schema(example = "+12125550100")]
    pub from_number: String,
    #[schema(example = "+12125550123")]
    pub to_number: String,
    #[schema(example = "completed")]
    pub outcome: Option<String>,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    #[schema(example = 42)]
    pub duration_seconds: i64,
    #[schema(example = 60)]
    pub billed_seconds: i64,
    pub cost_usd: Usd,
    #[serde(flatten)]
    #[schema(value_type = ShownSplit)]
    pub split: Option<CostSplit>,
    pub services: Vec<ServiceUse>,
    /// Time of the first charge.
    pub charged_at: Option<DateTime<Utc>>,
}

/// One service that a call used.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ServiceUse {
    pub service: Service,
    /// Prefix or name that the price matches; empty for the general price.
    #[schema(example = "1")]
    pub r#match: String,
    /// Billed seconds, or calls.
    #[schema(example = 60)]
    pub quantity: i64,
    pub unit: BillingUnit,
    pub cost_usd: Usd,
    /// For the platform only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub base_cost_usd: Option<Usd>,
}

/// A charge in a call's history.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChargeMade {
    /// 1 is the first charge, 2 its reversal, 3 the corrected charge, and so on.
    #[schema(example = 1)]
    pub version: i32,
    pub cost_usd: Usd,
    #[schema(example = 60)]
    pub billed_seconds: i32,
    pub charged_at: DateTime<Utc>,
}

/// A session with its history.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SessionDetail {
    #[serde(flatten)]
    pub session: UsageSession,
    pub charges: Vec<ChargeMade>,
    /// Amount still held for the call.
    pub held_usd: Usd,
    #[schema(example = "USD")]
    pub currency: &'static str,
}

/// Cursor of a list of sessions: the first charge of the last one.
#[derive(Clone, Copy, Debug)]
pub struct SessionCursor {
    at: DateTime<Utc>,
    charge: Uuid,
}

struct SessionRow {
    session_id: CallId,
    charge_id: Option<Uuid>,
    organization_id: OrgId,
    user_id: UserId,
    agent_id: AgentId,
    agent_name: String,
    batch_id: Option<BatchId>,
    from_number: String,
    to_number: String,
    outcome: Option<String>,
    started_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
    duration_seconds: i64,
    billed_seconds: i64,
    retail: Usd,
    base: Usd,
    markup: Usd,
    commission: Usd,
    lines: Option<Value>,
    charged_at: Option<DateTime<Utc>>,
}

impl SessionRow {
    fn cursor(&self) -> Option<SessionCursor> {
        self.charged_at
            .zip(self.charge_id)
            .map(|(at, charge)| SessionCursor { at, charge })
    }

    fn into_session(self, with_split: bool) -> Result<UsageSession> {
        let lines: Vec<BillLine> = match self.lines {
            Some(lines) => serde_json::from_value(lines)?,
            None => Vec::new(),
        };

        let services = lines.into_iter().map(|line| ServiceUse {
            service: line.service,
            r#match: line.matched,
            quantity: line.quantity,
            unit: line.unit,
            cost_usd: Usd(line.retail_micros),
            base_cost_usd: with_split.then_some(Usd(line.base_micros)),
        });

        let split = CostSplit {
            base_cost_usd: self.base,
            markup_usd: self.markup,
            commission_usd: self.commission,
        };

        Ok(UsageSession {
            session_id: self.session_id,
            organization_id: self.organization_id,
            user_id: self.user_id,
            agent_id: self.agent_id,
            agent_name: self.agent_name,
            batch_id: self.batch_id,
            call_type: "outbound",
            from_number: self.from_number,
            to_number: self.to_number,
            outcome: self.outcome,
            started_at: self.started_at,
            ended_at: self.ended_at,
            duration_seconds: self.duration_seconds,
            billed_seconds: self.billed_seconds,
            cost_usd: self.retail,
            split: with_split.then_some(split),
            services: services.collect(),
            charged_at: self.charged_at,
        })
    }
}

/// Query of session [`Row`]s.
macro_rules! session_rows {
    ($tail:tt, $scope:expr, $filter:expr $(, $more:expr)* $(,)?) => {
        of_sessions!(
            SessionRow,
            [r#"select c.id as "session_id: CallId", first.id as "charge_id?", c.org_id as "organization_id: OrgId",
                      c.user_id as "user_id: UserId", c.agent_id as "agent_id: AgentId", a.name as agent_name,
                      c.batch_id as "batch_id: BatchId", c.from_number, c.to_number, c.outcome,
                      c.created_at as started_at, c.ended_at,
                      coalesce(c.duration_seconds, 0)::bigint as "duration_seconds!",
                      spent.billed_seconds as "billed_seconds!", spent.retail as "retail!: Usd",
                      spent.base as "base!: Usd", spent.markup as "markup!: Usd",
                      spent.commission as "commission!: Usd", spent.lines, first.created_at as "charged_at?""#],
            r#"cross join lateral (
                   select coalesce(sum(e.billed_seconds), 0)::bigint as billed_seconds,
                          coalesce(sum(e.retail_micros), 0)::bigint as retail,
                          coalesce(sum(e.base_micros), 0)::bigint as base,
                          coalesce(sum(e.markup_micros), 0)::bigint as markup,
                          coalesce(sum(e.commission_micros), 0)::bigint as commission,
                          -- The even ones take back; the last one is what stands, unless it is one of them.
                          (array_agg(case when e.version % 2 = 1 then e.lines end order by e.version desc))[1] as lines
                   from charges e
                   where e.call_id = c.id) spent"#,
            $tail,
            $scope,
            $filter,
            $($more),*
        )
    };
}

struct SessionCount {
    n: i64,
}

/// Lists the sessions in the caller's scope, newest first, with their total.
pub async fn list(
    db: &mut PgConnection,
    scope: &Scope,
    filter: &UsageFilter,
    (limit, offset): (i64, i64),
    with_split: bool,
) -> Result<(Vec<UsageSession>, i64)> {
    if !filter.includes_calls() {
        return Ok((Vec::new(), 0));
    }

    let counted = of_sessions!(
        SessionCount,
        [r#"select count(*) as "n!""#],
        "",
        "and first.id is not null",
        scope,
        filter,
    )
    .fetch_one(&mut *db)
    .await?;

    let rows = session_rows!(
        "and first.id is not null
         order by first.created_at desc, first.id desc
         limit $10
         offset $11",
        scope,
        filter,
        limit,
        offset,
    )
    .fetch_all(db)
    .await?;

    let sessions: Result<Vec<UsageSession>> = rows
        .into_iter()
        .map(|row| row.into_session(with_split))
        .collect();
    Ok((sessions?, counted.n))
}

/// Lists sessions in the order of their first charge, after `after`, with the cursor of the next
/// page. For exports.
pub async fn list_after(
    db: &mut PgConnection,
    scope: &Scope,
    filter: &UsageFilter,
    after: Option<SessionCursor>,
    limit: i64,
    with_split: bool,
) -> Result<(Vec<UsageSession>, Option<SessionCursor>)> {
    if !filter.includes_calls() {
        return Ok((Vec::new(), None));
    }

    let rows = session_rows!(
        "and first.id is not null
         and ($10::timestamptz is null or (first.created_at, first.id) > ($10, $11::uuid))
         order by first.created_at, first.id
         limit $12",
        scope,
        filter,
        after.map(|mark| mark.at),
        after.map(|mark| mark.charge),
        limit,
    )
    .fetch_all(db)
    .await?;

    let is_full = i64::try_from(rows.len()).is_ok_and(|n| n == limit);
    let next = rows.last().filter(|_| is_full).and_then(SessionRow::cursor);

    let sessions: Result<Vec<UsageSession>> = rows
        .into_iter()
        .map(|row| row.into_session(with_split))
        .collect();
    Ok((sessions?, next))
}

/// Finds a call in the caller's scope with its charges, charged or not.
///
/// # Errors
/// [`Error::NotFound`] when there is none.
pub async fn find(
    db: &mut PgConnection,
    scope: &Scope,
    id: CallId,
    with_split: bool,
) -> Result<SessionDetail> {
    let filter = UsageFilter::default();
    let row = session_rows!("and c.id = $10", scope, filter, id as CallId)
        .fetch_optional(&mut *db)
        .await?
        .ok_or(Error::NotFound("Session"))?;

    let charges = sqlx::query_as!(
        ChargeMade,
        r#"select version, retail_micros as "cost_usd: Usd", billed_seconds, created_at as charged_at
           from charges
           where call_id = $1
           order by version"#,
        id as CallId,
    )
    .fetch_all(&mut *db)
    .await?;

    let held = sqlx::query_scalar!(
        r#"select amount_micros as "micros: Usd" from holds where call_id = $1 and state = 'open'"#,
        id as CallId,
    )
    .fetch_optional(db)
    .await?;

    Ok(SessionDetail {
        session: row.into_session(with_split)?,
        charges,
        held_usd: held.unwrap_or_default(),
        currency: "USD",
    })
}
