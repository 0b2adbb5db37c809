//! The records of a request: few enough to answer at once, with their rejects.

use serde::Deserialize;
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::rows::{Reject, Row, Rules};
use super::write::{self, ZoneIds};
use super::{Counts, Limits, Target};
use crate::access::Scope;
use crate::campaigns::rows;
use crate::error::{Error, Result};
use crate::ids::RowId;

/// One person to call, as a request names them.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    pub to_phonenumber: String,
    /// Flat values; of those, the batch's variables are kept, and `timezone` overrides the
    /// zones derived from the number.
    #[serde(flatten)]
    pub variables: Map<String, Value>,
}

/// What became of a request's records.
#[derive(Clone, Debug)]
pub struct Inserted {
    pub counts: Counts,
    pub warnings: Vec<String>,
    /// Their `line` is the record's place in the request, from 1.
    pub rejects: Vec<Reject>,
    /// The rows that were added, in the order of the request.
    pub rows: Vec<RowId>,
}

/// Adds the records to the batch within the caller's transaction, by the rules of a file.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Conflict`] when the batch has started, [`Error::Rejected`]
/// when it would hold too many rows. The caller rolls back then.
pub async fn insert_records(
    db: &mut PgConnection,
    target: &Target,
    limits: &Limits,
    records: &[Record],
) -> Result<Inserted> {
    let next_row_no = write::lock_batch(db, target.org, target.batch).await?;
    let rules = Rules {
        limits,
        spoken: &target.spoken,
        default_country: target.default_country,
    };
    let mut rows: Vec<Row> = Vec::with_capacity(records.len());
    let mut rejects = Vec::new();
    for (record, place) in records.iter().zip(1_u64..) {
        let Record {
            to_phonenumber,
            variables,
        } = record;
        match rules.item(place, to_phonenumber, variables, &target.variable_names) {
            Ok(row) => rows.push(row),
            Err(reject) => rejects.push(reject),
        }
    }
    let mut zone_ids = ZoneIds::new();
    write::resolve_zones(db, &rows, &mut zone_ids).await?;
    let staged = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    write::stage_by_arrays(db, &rows, &zone_ids).await?;
    let inserted =
        write::insert_staged(db, (target.org, target.batch), next_row_no, staged, limits)
            .await?
            .map_err(|failure| Error::rejected("too_many_rows", failure.message))?;
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
    Ok(Inserted {
        counts: Counts {
            total_rows: count(records.len()),
            inserted,
            duplicates: staged - inserted,
            rejected: count(rejects.len()),
        },
        warnings: ignored(records, &target.variable_names),
        rejects,
        rows: added,
    })
}

/// Changes a row to what the record says, by the rules of a file. A record without variables
/// leaves those of the row alone. To be called in a transaction that can be undone alone: a
/// conflict spoils it.
///
/// # Errors
/// As [`rows::update`].
pub async fn update_record(
    db: &mut PgConnection,
    scope: &Scope,
    target: &Target,
    limits: &Limits,
    row: RowId,
    record: &Record,
) -> Result<Result<(), Reject>> {
    let Record {
        to_phonenumber,
        variables,
    } = record;
    let rules = Rules {
        limits,
        spoken: match variables.is_empty() {
            true => &[],
            false => &target.spoken,
        },
        default_country: target.default_country,
    };
    let read = match rules.item(1, to_phonenumber, variables, &target.variable_names) {
        Ok(read) => read,
        Err(reject) => return Ok(Err(reject)),
    };
    let mut zone_ids = ZoneIds::new();
    let read = [read];
    write::resolve_zones(db, &read, &mut zone_ids).await?;
    let [read] = read;
    let values = match variables.is_empty() {
        true => None,
        false => Some(serde_json::from_slice(&read.variables)?),
    };
    let zones = zone_ids.get(&read.zones).copied();
    rows::update(
        db,
        scope,
        target.batch,
        row,
        &read.number,
        zones,
        values.as_ref(),
    )
    .await?;
    Ok(Ok(()))
}

/// Names that some record has and the batch does not; a few of them.
fn ignored(records: &[Record], variables: &[String]) -> Vec<String> {
    const MAX_WARNINGS: usize = 20;
    let mut names: Vec<&str> = Vec::new();
    for name in records.iter().flat_map(|record| record.variables.keys()) {
        if names.len() == MAX_WARNINGS {
            break;
        }
        let known = variables.contains(name)
            || name.eq_ignore_ascii_case(super::header::ZONE_COLUMN)
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
