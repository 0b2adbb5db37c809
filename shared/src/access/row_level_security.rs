//! Row-level security: the second separation of tenants, below the scope filters.
//!
//! A request's transaction is bound to one organisation before its first statement. Even for a
//! statement without a scope filter, the database shows and changes that organisation's rows
//! only. The policies are in the migrations.

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};

use super::Scope;
use crate::platform::error::Result;

/// Opens a transaction that is bound to the organisation of `scope`. A scope without one, a
/// super_admin's, is not bound.
pub async fn begin(pool: &PgPool, scope: &Scope) -> Result<Transaction<'static, Postgres>> {
    // One round trip begins and binds. The id is hexadecimal, so it needs no quoting. Reads the
    // scope's field, because `Scope::org` is blind under fault injection.
    let begin = match scope.org {
        Some(org) => format!("begin; set local role peal_tenant; set local peal.org = '{org}'"),
        None => "begin".to_owned(),
    };
    Ok(pool.begin_with(AssertSqlSafe(begin)).await?)
}

/// A role that row-level security does not bind.
#[derive(Clone, Debug)]
pub struct UnsafeRole {
    /// Short reason, without names; may be public.
    pub reason: &'static str,
    /// Sentence for the log, with the role and the remedy.
    pub detail: String,
}

/// A database role that a process uses.
#[derive(Debug)]
struct DatabaseRole {
    name: String,
    is_superuser: bool,
    bypasses: bool,
    owns: bool,
    /// Statements run as this role; the login role may be another one.
    acts: bool,
}

impl DatabaseRole {
    /// Reports a role that row-level security does not bind.
    fn unsafe_role(&self) -> Option<UnsafeRole> {
        let name = &self.name;
        let (word, why) = if self.is_superuser {
            let why = format!(
                "the database role {name} is a superuser and bypasses row-level security: \
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
                "the database role {name} owns tables and could remove their policies: \
                 give them to the role that runs migrations"
            );
            ("owns tables", why)
        } else {
            return None;
        };
        Some(UnsafeRole {
            reason: word,
            detail: why,
        })
    }
}

/// Reports the first role of this connection that row-level security does not bind. The login
/// role, the current role and the tenant role must all be bound. The login role may own the
/// tables, because their policies are forced; no statement runs as it.
pub async fn find_unsafe_role_unscoped(db: &mut PgConnection) -> Result<Option<UnsafeRole>> {
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
    Ok(roles.iter().find_map(DatabaseRole::unsafe_role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roles_bound_by_row_level_security_are_safe() {
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
            let breach = role.unsafe_role();
            let found = breach.as_ref().map(|breach| breach.reason);
            assert_eq!(found, word, "{role:?}");
            assert!(breach.is_none_or(|breach| breach.detail.contains("role r ")));
        }
    }
}
