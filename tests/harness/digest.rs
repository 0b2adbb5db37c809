//! Digests of an organisation's or a user's rows, which show whether anything has changed.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, PgPool};

/// Digest of an organisation's rows, by table.
pub async fn digest_org(pool: &PgPool, org: &str) -> BTreeMap<String, String> {
    let tables: Vec<(String, bool)> = sqlx::query_as(
        "select t.relname::text,
                exists (select from pg_attribute a
                        where a.attrelid = t.oid and a.attname = 'org_id' and not a.attisdropped)
         from pg_class t
         where t.relnamespace = 'public'::regnamespace
           and t.relkind in ('r', 'p')
         order by 1",
    )
    .fetch_all(pool)
    .await
    .expect("tables");

    let theirs = |table: &str, has_org: bool| match table {
        _ if has_org => Some("org_id = '{org}'"),
        "organizations" => Some("id = '{org}'"),
        "batch_progress" => {
            Some("batch_id in (select id from call_batches where org_id = '{org}')")
        }
        "ingest_rejects" => Some("ingest_id in (select id from ingests where org_id = '{org}')"),
        "charges_due" => Some("call_id in (select id from calls where org_id = '{org}')"),
        "pacers" => Some("trunk_id in (select id from trunks where org_id = '{org}')"),
        "queues" | "zone_sets" | "_sqlx_migrations" => None,
        "providers" | "tts_voices" | "service_prices" | "price_book" => None,
        other => panic!("define here which rows of {other} belong to an organisation"),
    };

    let parts = tables.iter().filter_map(|(table, has_org)| {
        let theirs = theirs(table, *has_org)?.replace("{org}", org);
        Some((table.as_str(), theirs))
    });
    digest_rows(pool, parts).await
}

/// Digest of the rows that a user owns, by table.
pub async fn digest_user(pool: &PgPool, user: &str) -> BTreeMap<String, String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select t.table_name::text
         from information_schema.tables t
         join information_schema.columns c using (table_schema, table_name)
         where t.table_schema = 'public'
           and t.table_type = 'BASE TABLE'
           and c.column_name = 'user_id'",
    )
    .fetch_all(pool)
    .await
    .expect("tables");
    let rows = "batch_id in (select id from call_batches where user_id = '{user}')";
    let own = tables
        .iter()
        .map(|table| (table.as_str(), "user_id = '{user}'"));
    let parts = own
        .chain([("batch_data", rows)])
        .map(|(table, theirs)| (table, theirs.replace("{user}", user)));
    digest_rows(pool, parts).await
}

/// Digests of the given rows of each table.
async fn digest_rows<'a>(
    pool: &PgPool,
    parts: impl Iterator<Item = (&'a str, String)>,
) -> BTreeMap<String, String> {
    let parts: Vec<String> = parts
        .map(|(table, theirs)| {
            format!(
                "select '{table}', md5(coalesce(string_agg(t::text, ',' order by t::text), ''))
                 from {table} t where {theirs}"
            )
        })
        .collect();
    let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(parts.join(" union all ")))
        .fetch_all(pool)
        .await
        .expect("a digest");
    rows.into_iter().collect()
}
