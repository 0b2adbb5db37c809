//! The second wall between tenants: row-level security.
//!
//! A request's transaction is bound to one organisation before its first statement. Whatever a
//! statement forgets to ask for, the database shows and changes that organisation's rows alone.
//! The policies stand in the migrations.

use sqlx::{AssertSqlSafe, PgPool, Postgres, Transaction};

use super::Scope;
use crate::error::Result;

/// Opens a transaction that is bound to the organisation of `scope`. A scope without one, a
/// super_admin's, is not bound.
///
/// # Errors
/// [`Error::Unexpected`](crate::Error::Unexpected) when the database does not answer.
pub async fn begin(pool: &PgPool, scope: &Scope) -> Result<Transaction<'static, Postgres>> {
    // One round trip opens and binds. An id is made of hexadecimal digits. What binds is the
    // scope itself: this wall stands where the filters are taken away.
    let begin = match scope.org {
        Some(org) => format!("begin; set local role peal_tenant; set local peal.org = '{org}'"),
        None => "begin".to_owned(),
    };
    Ok(pool.begin_with(AssertSqlSafe(begin)).await?)
}
