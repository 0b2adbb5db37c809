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

/// Why the wall does not stand.
#[derive(Clone, Debug)]
pub struct Breach {
    /// In words that anybody may read.
    pub word: &'static str,
    /// In a sentence for the log: it names the role, and what to do.
    pub why: String,
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
    fn breach(&self) -> Option<Breach> {
        let name = &self.name;
        let (word, why) = if self.is_superuser {
            let why = format!(
                "the database role {name} is a superuser, whom row-level security does not bind: \
                 connect as a role without special rights"
            );
            ("superuser", why)
        } else if self.bypasses {
            let why = format!(
                "the database role {name} bypasses row-level security: run `alter role {name} nobypassrls`"
            );
            ("bypasses row-level security", why)
        } else if self.acts && self.owns {
            let why = format!(
                "the database role {name} owns tables and could take their policies away: \
                 give them to the role that migrates"
            );
            ("owns tables", why)
        } else {
            return None;
        };
        Some(Breach { word, why })
    }
}

/// Why the wall does not stand before this connection, if it does not: what it logs in as, what
/// it acts as and what requests act as must all be bound by row-level security. The account that
/// logs in may own the tables, which the policies are forced upon; nothing runs as it.
///
/// # Errors
/// [`Error::Unexpected`](crate::Error::Unexpected) from the database.
pub async fn breach_unscoped(db: &mut PgConnection) -> Result<Option<Breach>> {
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
            (
                role(false, true, false, false),
                Some("bypasses row-level security"),
            ),
            (role(true, true, false, false), Some("superuser")),
            (role(true, false, false, true), Some("superuser")),
        ] {
            let breach = role.breach();
            let told = breach.as_ref().map(|breach| breach.word);
            assert_eq!(told, word, "{role:?}");
            assert!(breach.is_none_or(|breach| breach.why.contains("role r ")));
        }
    }
}
