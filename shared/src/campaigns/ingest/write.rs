//! Inserts rows into the batch: staged in a temporary table, then inserted in one statement.
//!
//! The batch's row is always locked first, so that writers of one batch wait for each other and
//! none adds a row once the batch has started.
//!
//! A chunk of a file is staged by COPY, which is a little faster than bound arrays and needs no
//! second copy of the rows. The driver's COPY must not be dropped halfway, or the connection
//! returns to the pool out of sync; a request's future may be dropped at any await, so its few
//! rows are staged as arrays.

use std::borrow::Cow;
use std::collections::HashMap;

use sqlx::PgConnection;

use super::rows::{ParsedRow, RejectedRow, RowZones};
use super::{IngestFailure, IngestLimits};
use crate::campaigns::batches::batch_started_error;
use crate::platform::error::{Error, Result};
use crate::platform::ids::{BatchId, IngestId, OrgId, RowId};

/// Temporary tables are unknown to the compile-time checker, so the statements on this one are
/// plain texts.
const CREATE_STAGE: &str = "
    create temporary table ingest_stage (
        id              uuid not null,
        ordinal         bigint not null,
        to_phonenumber  text not null,
        variable_values jsonb not null,
        zone_set_id     integer
    ) on commit delete rows";
/// Jobs and requests use the same connections, each in its own role.
const SHARE_STAGE: &str = "grant all on ingest_stage to peal_system, peal_tenant";
/// A second writer in one transaction would find the first one's rows.
const CLEAR_STAGE: &str = "delete from ingest_stage";
const STAGE_ARRAYS: &str = "
    insert into ingest_stage (id, ordinal, to_phonenumber, variable_values, zone_set_id)
    select id, ordinal - 1, to_phonenumber, variable_values::jsonb, zone_set_id
    from unnest($1::uuid[], $2::text[], $3::text[], $4::integer[]) with ordinality
         as r (id, to_phonenumber, variable_values, zone_set_id, ordinal)";
const COPY_STAGE: &str = "
    copy ingest_stage (id, ordinal, to_phonenumber, variable_values, zone_set_id)
    from stdin (format binary)";
const INSERT_STAGED: &str = "
    insert into batch_data (id, org_id, batch_id, row_no, to_phonenumber, variable_values, zone_set_id)
    select id, $1, $2, $3 + ordinal, to_phonenumber, variable_values, zone_set_id
    from ingest_stage
    order by ordinal
    on conflict (batch_id, to_phonenumber) do nothing";

/// Number of inserted rows, or the reason why none may be.
pub(super) type InsertOutcome = Result<i64, IngestFailure>;

/// Ids of the zone sets that were looked up already.
pub(super) type ZoneIds = HashMap<RowZones, i32>;

/// Locks the batch against a start and against other writers until the transaction ends. Returns
/// its next row number.
///
/// # Errors
/// [`Error::NotFound`], or [`Error::Conflict`] when it has started.
pub(super) async fn lock_batch(db: &mut PgConnection, org: OrgId, batch: BatchId) -> Result<i64> {
    let found = sqlx::query!(
        "select status, next_row_no
         from call_batches
         where id = $1 and org_id = $2
         for no key update",
        batch as BatchId,
        org as OrgId,
    )
    .fetch_optional(db)
    .await?
    .ok_or(Error::NotFound("Batch"))?;
    if found.status != "not_started" {
        return Err(batch_started_error());
    }
    Ok(found.next_row_no)
}

/// Stages rows in the format of [`copy_data`]. Run it in a task of its own: see above.
pub(super) async fn stage_by_copy(db: &mut PgConnection, data: &[u8]) -> Result<()> {
    prepare_stage(db).await?;
    let mut copy = db.copy_in_raw(COPY_STAGE).await?;
    match copy.send(data).await {
        Ok(_) => {
            copy.finish().await?;
            Ok(())
        }
        Err(error) => {
            copy.abort("the rows could not be sent").await?;
            Err(error.into())
        }
    }
}

/// Stages rows within the caller's transaction, whose future may be dropped.
pub(super) async fn stage_by_arrays(
    db: &mut PgConnection,
    rows: &[ParsedRow],
    zone_ids: &ZoneIds,
) -> Result<()> {
    prepare_stage(db).await?;
    let ids: Vec<RowId> = rows.iter().map(|row| row.id).collect();
    let numbers: Vec<&str> = rows.iter().map(|row| row.number.as_str()).collect();
    let variables: Vec<Cow<'_, str>> = rows
        .iter()
        .map(|row| String::from_utf8_lossy(&row.variables))
        .collect();
    let zones: Vec<Option<i32>> = rows
        .iter()
        .map(|row| zone_ids.get(&row.zones).copied())
        .collect();
    sqlx::query(STAGE_ARRAYS)
        .bind(ids)
        .bind(numbers)
        .bind(variables)
        .bind(zones)
        .execute(db)
        .await?;
    Ok(())
}

async fn prepare_stage(db: &mut PgConnection) -> Result<()> {
    let missing =
        sqlx::query_scalar!(r#"select to_regclass('pg_temp.ingest_stage') is null as "missing!""#)
            .fetch_one(&mut *db)
            .await?;
    if missing {
        sqlx::query(CREATE_STAGE).execute(&mut *db).await?;
        sqlx::query(SHARE_STAGE).execute(db).await?;
    } else {
        sqlx::query(CLEAR_STAGE).execute(db).await?;
    }
    Ok(())
}

/// Inserts the `staged` rows into the locked batch. After a failure the transaction must be rolled
/// back.
pub(super) async fn insert_staged(
    db: &mut PgConnection,
    (org, batch): (OrgId, BatchId),
    next_row_no: i64,
    staged: i64,
    limits: &IngestLimits,
) -> Result<InsertOutcome> {
    // 1. Insert, without duplicates.
    let inserted = sqlx::query(INSERT_STAGED)
        .bind(org)
        .bind(batch)
        .bind(next_row_no)
        .execute(&mut *db)
        .await?
        .rows_affected();
    let inserted = i64::try_from(inserted).unwrap_or(i64::MAX);
    if inserted == 0 {
        return Ok(Ok(0));
    }

    // 2. Move the next row number, and compare the total with the limit.
    let total = sqlx::query_scalar!(
        r#"with numbered as (
             update call_batches
             set next_row_no = next_row_no + $2
             where id = $1
         )
         select not_started + calling + completed + failed + no_answer as "total!"
         from batch_progress
         where batch_id = $1"#,
        batch as BatchId,
        staged,
    )
    .fetch_one(db)
    .await?;
    if total > limits.max_rows_per_batch {
        return Ok(Err(IngestFailure::new(
            "too_many_rows",
            format!(
                "a batch holds at most {} rows; put the rest into another batch",
                limits.max_rows_per_batch
            ),
        )));
    }

    Ok(Ok(inserted))
}

/// Encodes rows in the binary format of COPY: a signature, then for each row its number of fields
/// and each field's length and bytes, then -1.
pub(super) fn copy_data(rows: &[ParsedRow], zone_ids: &ZoneIds) -> Vec<u8> {
    const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
    const FIELDS: i16 = 5;
    const NULL: i32 = -1;
    const JSONB_VERSION: u8 = 1;

    let payload: usize = rows.iter().map(|row| row.variables.len() + 96).sum();
    let mut data = Vec::with_capacity(payload + 32);
    data.extend_from_slice(SIGNATURE);
    for (row, ordinal) in rows.iter().zip(0_i64..) {
        data.extend_from_slice(&FIELDS.to_be_bytes());
        push_field(&mut data, &[row.id.0.as_bytes()]);
        push_field(&mut data, &[&ordinal.to_be_bytes()]);
        push_field(&mut data, &[row.number.as_str().as_bytes()]);
        push_field(&mut data, &[&[JSONB_VERSION], &row.variables]);
        match zone_ids.get(&row.zones) {
            Some(id) => push_field(&mut data, &[&id.to_be_bytes()]),
            None => data.extend_from_slice(&NULL.to_be_bytes()),
        }
    }
    data.extend_from_slice(&(-1_i16).to_be_bytes());
    data
}

fn push_field(data: &mut Vec<u8>, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    data.extend_from_slice(&i32::try_from(len).unwrap_or(i32::MAX).to_be_bytes());
    for part in parts {
        data.extend_from_slice(part);
    }
}

/// Looks up the zone sets of rows that are not in `zone_ids` yet, and inserts missing ones in the
/// order of their names, so that two writers cannot deadlock.
pub(super) async fn resolve_zones(
    db: &mut PgConnection,
    rows: &[ParsedRow],
    zone_ids: &mut ZoneIds,
) -> Result<()> {
    // 1. Collect the sets that are not looked up yet.
    let mut wanted: HashMap<String, Vec<RowZones>> = HashMap::new();
    for row in rows {
        if zone_ids.contains_key(&row.zones) {
            continue;
        }
        if let Some(names) = row.zones.names() {
            let same = wanted.entry(names).or_default();
            if !same.contains(&row.zones) {
                same.push(row.zones);
            }
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }

    // 2. Insert the missing ones, then read all.
    let names: Vec<String> = wanted.keys().cloned().collect();
    sqlx::query!(
        "insert into zone_sets (zones)
         select string_to_array(names, ' ')
         from unnest($1::text[]) as names
         where not exists (select from zone_sets where zones = string_to_array(names, ' '))
         order by names
         on conflict (zones) do nothing",
        &names,
    )
    .execute(&mut *db)
    .await?;
    let found = sqlx::query!(
        r#"select names as "names!", id
         from unnest($1::text[]) as names
         join zone_sets on zones = string_to_array(names, ' ')"#,
        &names,
    )
    .fetch_all(db)
    .await?;

    for set in found {
        for zones in wanted.remove(&set.names).unwrap_or_default() {
            zone_ids.insert(zones, set.id);
        }
    }
    Ok(())
}

/// Stores the rejected rows of a chunk.
pub(super) async fn insert_rejects(
    db: &mut PgConnection,
    ingest: IngestId,
    rejected: &[RejectedRow],
) -> Result<()> {
    if rejected.is_empty() {
        return Ok(());
    }

    let rejects = || rejected.iter().map(|rejected| &rejected.reject);
    let lines: Vec<i64> = rejects().map(|reject| reject.line).collect();
    let columns: Vec<&str> = rejects().map(|reject| reject.column.as_str()).collect();
    let values: Vec<&str> = rejects().map(|reject| reject.value.as_str()).collect();
    let codes: Vec<&str> = rejects().map(|reject| reject.code.as_ref()).collect();
    let messages: Vec<&str> = rejects().map(|reject| reject.message.as_str()).collect();
    let cells = rejected
        .iter()
        .map(|rejected| serde_json::to_string(&rejected.cells))
        .collect::<Result<Vec<String>, _>>()?;

    sqlx::query!(
        "insert into ingest_rejects (ingest_id, line, column_name, value, code, message, cells)
         select $1, line, column_name, value, code, message, cells::jsonb
         from unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
              as r (line, column_name, value, code, message, cells)",
        ingest as IngestId,
        &lines,
        &columns as &[&str],
        &values as &[&str],
        &codes as &[&str],
        &messages as &[&str],
        &cells,
    )
    .execute(db)
    .await?;
    Ok(())
}
