//! Authenticated callers, and the rows they may see.
//!
//! The API makes a [`Principal`] once per request, from a session token or an API key. Nothing
//! below the API handles tokens: functions that touch tenant rows take a [`Scope`], which holds
//! the principal's two row filters (organisation, user). A row outside the scope does not exist
//! for the caller: foreign ids answer 404, never 403.

pub mod owner_filter;
pub mod permissions;
pub mod revalidation;
pub mod row_level_security;

use serde::{Deserialize, Serialize};

use crate::platform::error::{Error, Result};
use crate::platform::failpoint;
use crate::platform::ids::{ApiKeyId, OrgId, UserId};

/// Role of a user in their organisation, or on the platform.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    sqlx::Type,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Role {
    /// Sees their own rows.
    User,
    /// Sees the rows of everybody in the organisation.
    OrgAdmin,
    /// Sees everything.
    SuperAdmin,
}

impl Role {
    /// Name on the wire and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::OrgAdmin => "org_admin",
            Self::SuperAdmin => "super_admin",
        }
    }
}

/// Kind of credential that authenticated the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A session token.
    Session,
    /// An API key. It acts for its user as a [`Role::User`], on that user's own rows: a key that
    /// leaks gives no access to the organisation, and a promotion does not extend to old keys.
    ApiKey(ApiKeyId),
}

/// The authenticated caller of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub user: UserId,
    pub org: OrgId,
    pub role: Role,
    pub email: Option<String>,
    pub credential: Credential,
}

impl Principal {
    /// Refuses callers below a role. Administrators' operations call it first.
    ///
    /// # Errors
    /// [`Error::Forbidden`], which names the role.
    pub fn require(&self, role: Role) -> Result<()> {
        if self.role >= role {
            return Ok(());
        }
        let message = match self.credential {
            Credential::Session => format!("Forbidden: this takes the role {}", role.as_str()),
            Credential::ApiKey(_) => format!(
                "Forbidden: this takes the role {}, and API keys have none; send a session token \
                 in Authorization: Bearer",
                role.as_str()
            ),
        };
        Err(Error::Forbidden(message.into()))
    }

    /// Refuses callers below another user's role. For operations on a user, and for those that
    /// let the caller act as one.
    ///
    /// # Errors
    /// [`Error::Forbidden`] when the other role is above the caller's.
    pub fn require_at_least_role_of(&self, other: Role) -> Result<()> {
        if other > self.role {
            let message = "Forbidden: this user's role is above yours";
            return Err(Error::Forbidden(message.into()));
        }
        Ok(())
    }

    /// Refuses API keys. For operations that need a session.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for a key.
    pub fn require_session(&self) -> Result<()> {
        match self.credential {
            Credential::Session => Ok(()),
            Credential::ApiKey(_) => Err(Error::Forbidden(
                "Forbidden: API keys may not do this; send a session token in Authorization: Bearer"
                    .into(),
            )),
        }
    }

    /// The same user restricted to their own rows, as for an API key.
    #[must_use]
    pub fn with_user_role(self) -> Self {
        Self {
            role: Role::User,
            ..self
        }
    }

    /// Rows that the caller may read.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self.role {
            Role::User => Scope {
                org: Some(self.org),
                user: Some(self.user),
            },
            Role::OrgAdmin => Scope {
                org: Some(self.org),
                user: None,
            },
            Role::SuperAdmin => Scope {
                org: None,
                user: None,
            },
        }
    }

    /// Rows of one user: the caller always, members for an org_admin, all users for a
    /// super_admin.
    ///
    /// # Errors
    /// [`Error::Forbidden`] when the role gives access to the caller's own rows only.
    pub fn scope_of(&self, user: UserId) -> Result<Scope> {
        if user != self.user && self.role == Role::User {
            return Err(Error::Forbidden(
                "Forbidden: you may only ask for your own rows".into(),
            ));
        }
        Ok(Scope {
            user: Some(user),
            ..self.scope()
        })
    }
}

/// The rows a statement may touch. `None` means no restriction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    org: Option<OrgId>,
    user: Option<UserId>,
}

impl Scope {
    /// The organisation filter, for `($n::uuid is null or org_id = $n)`.
    #[must_use]
    pub fn org(&self) -> Option<OrgId> {
        self.org.filter(|_| !failpoint::skips_tenant_filters())
    }

    /// The user filter, for `($n::uuid is null or user_id = $n)`.
    #[must_use]
    pub fn user(&self) -> Option<UserId> {
        self.user.filter(|_| !failpoint::skips_tenant_filters())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(role: Role) -> Principal {
        Principal {
            user: UserId::new(),
            org: OrgId::new(),
            role,
            email: None,
            credential: Credential::Session,
        }
    }

    #[test]
    fn a_role_sees_what_it_should() {
        let user = principal(Role::User);
        assert_eq!(
            (user.scope().org(), user.scope().user()),
            (Some(user.org), Some(user.user))
        );
        let admin = principal(Role::OrgAdmin);
        assert_eq!(
            (admin.scope().org(), admin.scope().user()),
            (Some(admin.org), None)
        );
        let root = principal(Role::SuperAdmin);
        assert_eq!((root.scope().org(), root.scope().user()), (None, None));
    }

    #[test]
    fn a_role_reaches_itself_and_everything_below() {
        let roles = [Role::User, Role::OrgAdmin, Role::SuperAdmin];
        for (rank, role) in roles.into_iter().enumerate() {
            for (needed, least) in roles.into_iter().enumerate() {
                let allowed = principal(role).require(least);
                assert_eq!(allowed.is_ok(), rank >= needed, "{role:?} for {least:?}");
                if let Err(refusal) = allowed {
                    let message = format!("Forbidden: this takes the role {}", least.as_str());
                    assert_eq!(refusal.to_string(), message);
                }
            }
        }
    }

    #[test]
    fn nobody_acts_on_somebody_above_them() {
        let roles = [Role::User, Role::OrgAdmin, Role::SuperAdmin];
        for (rank, role) in roles.into_iter().enumerate() {
            for (others, other) in roles.into_iter().enumerate() {
                let allowed = principal(role).require_at_least_role_of(other);
                assert_eq!(allowed.is_ok(), rank >= others, "{role:?} on {other:?}");
            }
        }
    }

    #[test]
    fn a_key_is_no_session() {
        let mut caller = principal(Role::SuperAdmin);
        assert!(caller.require_session().is_ok());
        caller.credential = Credential::ApiKey(ApiKeyId::new());
        let refusal = caller.require_session().unwrap_err();
        assert!(refusal.to_string().starts_with("Forbidden: "));
    }

    #[test]
    fn only_admins_look_at_others() {
        let other = UserId::new();
        assert!(principal(Role::User).scope_of(other).is_err());
        let admin = principal(Role::OrgAdmin);
        let scope = admin.scope_of(other).unwrap();
        assert_eq!((scope.org(), scope.user()), (Some(admin.org), Some(other)));
        let me = principal(Role::User);
        assert_eq!(me.scope_of(me.user).unwrap(), me.scope());
    }
}
