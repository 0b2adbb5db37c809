//! The second wall between tenants: row-level security.
//!
//! A request's transaction is bound to one organisation before its first statement. Whatever a
//! statement forgets to ask for, the database shows and changes that organisation's rows alone.
//! The policies stand in the migrations.

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};

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

/// A database role that a process uses.
#[derive(Debug)]
struct DatabaseRole {
    name: String,
    is_superuser: bool,
    bypasses: bool,
    owns: bool,
    /// What statements run as; the account that logs in is another one.
    acts: bool,
}

impl DatabaseRole {
    /// Why the wall does not stand before this role.
    fn breach(&self) -> Option<String> {
        let name = &self.name;
        if self.is_superuser {
            Some(format!(
                "the database role {name} is a superuser, whom row-level security does not bind: \
                 connect as a role without special rights"
            ))
        } else if self.bypasses {
            Some(format!(
                "the database role {name} bypasses row-level security: run `alter role {name} nobypassrls`"
            ))
        } else if self.acts && self.owns {
            Some(format!(
                "the database role {name} owns tables and could take their policies away: \
                 give them to the role that migrates"
            ))
        } else {
            None
        }
    }
}

/// Why the wall does not stand before this connection, if it does not: what it logs in as, what
/// it acts as and what requests act as must all be bound by row-level security. The account that
/// logs in may own the tables, which the policies are forced upon; nothing runs as it.
///
/// # Errors
/// [`Error::Unexpected`](crate::Error::Unexpected) from the database.
pub async fn breach_unscoped(db: &mut PgConnection) -> Result<Option<String>> {
    let roles = sqlx::query_as!(
        DatabaseRole,
        r#"select r.rolname::text as "name!", r.rolsuper as "is_superuser!", r.rolbypassrls as "bypasses!",
                  r.rolname in (current_user, 'peal_tenant') as "acts!",
                  exists (select from pg_class c
                          where c.relowner = r.oid
                            and c.relnamespace = 'public'::regnamespace
                            and c.relkind in ('r', 'p')) as "owns!"
           from pg_roles r
           where r.rolname in (session_user, current_user, 'peal_tenant')
           order by r.rolname"#,
    )
    .fetch_all(db)
    .await?;
    Ok(roles.iter().find_map(DatabaseRole::breach))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_stands_before_roles_that_are_bound_by_it() {
        let role = |is_superuser, bypasses, owns, acts| DatabaseRole {
            name: "r".to_owned(),
            is_superuser,
            bypasses,
            owns,
            acts,
        };
        for (role, word) in [
            (role(false, false, false, true), None),
            (role(false, false, true, false), None),
            (role(false, false, true, true), Some("owns tables")),
            (role(false, true, false, false), Some("nobypassrls")),
            (role(true, true, false, false), Some("superuser")),
            (role(true, false, false, true), Some("superuser")),
        ] {
            let told = role.breach();
            assert_eq!(told.is_some(), word.is_some(), "{role:?}");
            assert!(told.unwrap_or_default().contains(word.unwrap_or_default()));
        }
    }
}
