//! Records of a request: few enough to insert at once and to return their rejects.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::rows::{ParsedRow, RowReject, RowRules};
use super::write::ZoneIds;
use super::{IngestCounts, IngestLimits, IngestTarget, header, write};
use crate::platform::error::{Error, Result};
use crate::platform::ids::{BatchId, RowId};

/// One person to call, as sent in a request.
#[derive(Clone, Debug, Deserialize)]
pub struct RowInput {
    pub to_phonenumber: String,
    /// Flat values. The batch's variables are kept, and `timezone` overrides the zones derived from
    /// the number.
    #[serde(flatten)]
    pub variables: Map<String, Value>,
}

/// Result of inserting a request's records.
#[derive(Clone, Debug)]
pub struct InsertedRows {
    pub counts: IngestCounts,
    pub warnings: Vec<String>,
    /// Their `line` is the record's position in the request, from 1.
    pub rejects: Vec<RowReject>,
    /// The rows that were added, in the order of the request.
    pub rows: Vec<RowId>,
}

/// Inserts the records into the batch within the caller's transaction, by the rules of a file.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Conflict`] when the batch has started, [`Error::Rejected`]
/// when it would hold too many rows. The caller rolls back then.
pub async fn insert_records(
    db: &mut PgConnection,
    target: &IngestTarget,
    limits: &IngestLimits,
    records: &[RowInput],
) -> Result<InsertedRows> {
    // 1. Lock the batch.
    let next_row_no = write::lock_batch(db, target.org, target.batch).await?;

    // 2. Parse the records into rows and rejects.
    let rules = RowRules {
        limits,
        required_variables: &target.required_variables,
        default_country: target.default_country,
    };
    let mut rows: Vec<ParsedRow> = Vec::with_capacity(records.len());
    let mut rejects = Vec::new();
    for (record, place) in records.iter().zip(1_u64..) {
        let RowInput {
            to_phonenumber,
            variables,
        } = record;
        match rules.parse_item(place, to_phonenumber, variables, &target.variable_names) {
            Ok(row) => rows.push(row),
            Err(reject) => rejects.push(reject.redact_if_private(target.is_private)),
        }
    }

    // 3. Resolve zones, stage the rows, and insert them.
    let mut zone_ids = ZoneIds::new();
    write::resolve_zones(db, &rows, &mut zone_ids).await?;
    let staged = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    write::stage_by_arrays(db, &rows, &zone_ids).await?;
    let inserted =
        write::insert_staged(db, (target.org, target.batch), next_row_no, staged, limits)
            .await?
            .map_err(|failure| Error::rejected("too_many_rows", failure.message))?;

    // 4. Read which of them are no duplicates.
    let ids: Vec<RowId> = rows.iter().map(|row| row.id).collect();
    let added = sqlx::query_scalar!(
        r#"select id as "id: RowId"
         from batch_data
         where id = any($1)
         order by row_no"#,
        &ids as &[RowId],
    )
    .fetch_all(db)
    .await?;

    let count = |len: usize| i64::try_from(len).unwrap_or(i64::MAX);
    Ok(InsertedRows {
        counts: IngestCounts {
            total_rows: count(records.len()),
            inserted,
            duplicates: staged - inserted,
            rejected: count(rejects.len()),
        },
        warnings: ignored_names(records, &target.variable_names),
        rejects,
        rows: added,
    })
}

/// Changes rows to what the records say, by the rules of a file, within the caller's
/// transaction. A record without variables leaves those of its row alone. A refused change does
/// not affect the others; there is one result for each, whose `line` is its position, from 1.
///
/// A number that any other row has is refused, even if that row changes its number in the same
/// request: rows change in no guaranteed order.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] when the batch has started.
pub async fn update_records(
    db: &mut PgConnection,
    target: &IngestTarget,
    limits: &IngestLimits,
    changes: &[(RowId, RowInput)],
) -> Result<Vec<Result<(), RowReject>>> {
    // 1. Lock the batch, then parse each change and compare it with the ones before.
    write::lock_batch(db, target.org, target.batch).await?;
    let mut results = Vec::with_capacity(changes.len());
    let mut valid: Vec<RowChange> = Vec::with_capacity(changes.len());
    let (mut ids, mut numbers) = (HashSet::new(), HashSet::new());
    for (place, (id, record)) in changes.iter().enumerate() {
        let line = u64::try_from(place).unwrap_or(u64::MAX).saturating_add(1);
        let parsed = parse_change(target, limits, line, record);
        let result = match parsed {
            Ok(_) if !ids.insert(*id) => Err(RowReject::new(
                line,
                "id",
                &id.to_string(),
                "duplicate_item",
                "an item before this one changes the same row",
            )),
            Ok(read) if !numbers.insert(read.number.as_str().to_owned()) => {
                Err(number_taken(line, record))
            }
            Ok(read) => {
                valid.push(RowChange {
                    id: *id,
                    keeps_variables: record.variables.is_empty(),
                    row: read,
                });
                Ok(())
            }
            Err(reject) => Err(reject),
        };
        results.push(result);
    }

    // 2. Compare the valid changes with the rows of the batch.
    let refused = refused_changes(db, target, &valid).await?;
    valid.retain(|change| !refused.contains_key(&change.id));
    for (place, (id, record)) in changes.iter().enumerate() {
        let line = u64::try_from(place).unwrap_or(u64::MAX).saturating_add(1);
        if let (Some(result @ Ok(())), Some(unfit)) = (results.get_mut(place), refused.get(id)) {
            *result = Err(match unfit {
                ChangeRefusal::NotFound => {
                    RowReject::new(line, "id", &id.to_string(), "not_found", "Row not found")
                }
                ChangeRefusal::NumberTaken => number_taken(line, record),
            });
        }
    }

    // 3. Write the others.
    write_changes(db, target, valid).await?;
    Ok(results)
}

/// A valid record to replace a row with.
struct RowChange {
    id: RowId,
    keeps_variables: bool,
    row: ParsedRow,
}

/// The reason why a row may not be replaced.
enum ChangeRefusal {
    NotFound,
    NumberTaken,
}

fn parse_change(
    target: &IngestTarget,
    limits: &IngestLimits,
    line: u64,
    record: &RowInput,
) -> Result<ParsedRow, RowReject> {
    let RowInput {
        to_phonenumber,
        variables,
    } = record;
    let rules = RowRules {
        limits,
        required_variables: match variables.is_empty() {
            true => &[],
            false => &target.required_variables,
        },
        default_country: target.default_country,
    };
    rules.parse_item(line, to_phonenumber, variables, &target.variable_names)
}

fn number_taken(line: u64, record: &RowInput) -> RowReject {
    RowReject::new(
        line,
        header::PHONE_COLUMN,
        &record.to_phonenumber,
        "duplicate_number",
        "another row of this batch has this number",
    )
}

async fn refused_changes(
    db: &mut PgConnection,
    target: &IngestTarget,
    changes: &[RowChange],
) -> Result<HashMap<RowId, ChangeRefusal>> {
    let ids: Vec<RowId> = changes.iter().map(|change| change.id).collect();
    let numbers: Vec<&str> = changes
        .iter()
        .map(|change| change.row.number.as_str())
        .collect();

    let found = sqlx::query!(
        r#"select r.id as "id!: RowId", d.id is null as "unknown!"
           from unnest($2::uuid[], $3::text[]) as r (id, number)
           left join batch_data d on d.id = r.id and d.batch_id = $1 and d.status = 'not_started'
           where d.id is null
              or exists (select from batch_data o
                         where o.batch_id = $1 and o.to_phonenumber = r.number and o.id <> r.id)"#,
        target.batch as BatchId,
        &ids as &[RowId],
        &numbers as &[&str],
    )
    .fetch_all(db)
    .await?;

    let unfit = |unknown| match unknown {
        true => ChangeRefusal::NotFound,
        false => ChangeRefusal::NumberTaken,
    };
    Ok(found
        .into_iter()
        .map(|row| (row.id, unfit(row.unknown)))
        .collect())
}

async fn write_changes(
    db: &mut PgConnection,
    target: &IngestTarget,
    changes: Vec<RowChange>,
) -> Result<()> {
    let ids: Vec<RowId> = changes.iter().map(|change| change.id).collect();
    let kept: Vec<bool> = changes
        .iter()
        .map(|change| change.keeps_variables)
        .collect();
    let rows: Vec<ParsedRow> = changes.into_iter().map(|change| change.row).collect();

    let mut zone_ids = ZoneIds::new();
    write::resolve_zones(db, &rows, &mut zone_ids).await?;

    let numbers: Vec<&str> = rows.iter().map(|row| row.number.as_str()).collect();
    let variables: Vec<Cow<'_, str>> = rows
        .iter()
        .map(|row| String::from_utf8_lossy(&row.variables))
        .collect();
    let zones: Vec<Option<i32>> = rows
        .iter()
        .map(|row| zone_ids.get(&row.zones).copied())
        .collect();

    sqlx::query!(
        "update batch_data d
         set to_phonenumber = r.number,
             variable_values = case when r.kept then d.variable_values else r.variables::jsonb end,
             zone_set_id = r.zones,
             updated_at = now()
         from unnest($2::uuid[], $3::text[], $4::text[], $5::boolean[], $6::integer[])
              as r (id, number, variables, kept, zones)
         where d.id = r.id
           and d.batch_id = $1",
        target.batch as BatchId,
        &ids as &[RowId],
        &numbers as &[&str],
        &variables as &[Cow<'_, str>],
        &kept,
        &zones as &[Option<i32>],
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Warns of names that a record has and the batch does not, up to a limit.
fn ignored_names(records: &[RowInput], variables: &[String]) -> Vec<String> {
    const MAX_WARNINGS: usize = 20;
    let mut names: Vec<&str> = Vec::new();
    for name in records.iter().flat_map(|record| record.variables.keys()) {
        if names.len() == MAX_WARNINGS {
            break;
        }
        let known = variables.contains(name)
            || name.eq_ignore_ascii_case(header::ZONE_COLUMN)
            || names.contains(&name.as_str());
        if !known {
            names.push(name);
        }
    }
    names
        .into_iter()
        .map(|name| {
            let shown: String = name.chars().take(60).collect();
            format!("\"{shown}\" is none of the batch's variables and is ignored")
        })
        .collect()
}
