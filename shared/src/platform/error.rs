//! Errors of the domain. Only the API turns them into a status and a body; jobs read
//! [`Error::is_retryable`] to choose between a retry and the dead state.
//!
//! Every function that takes a connection may fail with [`Error::Unexpected`] or
//! [`Error::Busy`]; `# Errors` sections name only what else may happen.

use std::borrow::Cow;

use serde::Serialize;

/// Result with the domain's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Invalid field of an input: its path, what to do about it, and a stable type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Path to the value: `["body", "records", "3", "to_phonenumber"]`.
    pub loc: Vec<String>,
    /// Problem and correction.
    pub msg: String,
    /// A stable, snake_case kind.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
}

impl FieldError {
    /// Error at a path of the body, the query or the URL's path.
    pub fn new(
        place: &str,
        path: impl IntoIterator<Item = impl Into<String>>,
        kind: impl Into<Cow<'static, str>>,
        msg: impl Into<String>,
    ) -> Self {
        let path = path.into_iter().map(Into::into);
        Self {
            loc: std::iter::once(place.to_owned()).chain(path).collect(),
            msg: msg.into(),
            kind: kind.into(),
        }
    }
}

/// Reason why a batch cannot start, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Blocker {
    /// A stable, snake_case kind.
    pub code: &'static str,
    pub message: String,
}

fn join_messages(blockers: &[Blocker]) -> String {
    let messages: Vec<&str> = blockers
        .iter()
        .map(|blocker| blocker.message.as_str())
        .collect();
    messages.join("; ")
}

/// Refusal or failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The resource does not exist, or not for the caller. Holds its noun.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// The caller is authenticated but not allowed.
    #[error("{0}")]
    Forbidden(Cow<'static, str>),
    /// Fields of the input have the wrong type or format.
    #[error("the input has {} invalid field(s)", .0.len())]
    Invalid(Vec<FieldError>),
    /// The input is well-formed but breaks a rule across fields or against stored data.
    #[error("{detail}")]
    Rejected { code: &'static str, detail: String },
    /// The state of the resource does not allow this.
    #[error("{detail}")]
    Conflict { code: &'static str, detail: String },
    /// A batch cannot start; every reason is listed.
    #[error("the batch cannot start: {}", join_messages(.0))]
    NotReady(Vec<Blocker>),
    /// The input is larger than a configured limit.
    #[error("{0}")]
    TooLarge(String),
    /// The wallet does not cover the cost.
    #[error("{detail}")]
    InsufficientCredit { code: &'static str, detail: String },
    /// The resource no longer exists; holds what to use instead.
    #[error("{0}")]
    Gone(Cow<'static, str>),
    /// Peal itself is overloaded; the same request may succeed shortly.
    #[error("{0}")]
    Busy(Cow<'static, str>),
    /// A service outside Peal failed.
    #[error("{service}: {detail}")]
    Outside {
        service: &'static str,
        retryable: bool,
        detail: String,
    },
    /// A bug, or the database.
    #[error(transparent)]
    Unexpected(#[from] anyhow::Error),
}

impl Error {
    /// A single invalid field of a JSON body.
    pub fn field(name: &str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError::new("body", [name], kind, msg)])
    }

    /// A broken rule.
    pub fn rejected(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Rejected {
            code,
            detail: detail.into(),
        }
    }

    /// A state that does not allow the request.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Conflict {
            code,
            detail: detail.into(),
        }
    }

    /// Prefixes field errors with the path of the object in the body that holds the fields.
    #[must_use]
    pub fn at_path(mut self, path: &[&str]) -> Self {
        if let Self::Invalid(errors) = &mut self {
            for error in errors {
                let place = path.iter().map(|name| (*name).to_owned());
                drop(error.loc.splice(1..1, place));
            }
        }
        self
    }

    /// True when the database refused the values themselves (SQLSTATE classes 22 and 23), so that
    /// the same statement can never succeed.
    #[must_use]
    pub fn is_invalid_data(&self) -> bool {
        self.has_sqlstate_class(&["22", "23"])
    }

    fn has_sqlstate_class(&self, classes: &[&str]) -> bool {
        let Self::Unexpected(cause) = self else {
            return false;
        };
        let Some(sqlx::Error::Database(error)) = cause.downcast_ref::<sqlx::Error>() else {
            return false;
        };
        error
            .code()
            .is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
    }

    /// True when the database was unreachable or the connection was lost.
    #[must_use]
    pub fn is_lost_connection(&self) -> bool {
        let Self::Unexpected(cause) = self else {
            return false;
        };
        // Connection exceptions, an administrator's shutdown, too many connections.
        self.has_sqlstate_class(&["08", "57", "53"])
            || matches!(
                cause.downcast_ref::<sqlx::Error>(),
                Some(
                    sqlx::Error::Io(_)
                        | sqlx::Error::Tls(_)
                        | sqlx::Error::Protocol(_)
                        | sqlx::Error::PoolTimedOut
                        | sqlx::Error::PoolClosed
                        | sqlx::Error::WorkerCrashed
                )
            )
    }

    /// True when a retry with the same input may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Outside { retryable, .. } => *retryable,
            Self::Busy(_) | Self::Unexpected(_) => true,
            _ => false,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        match code.as_deref() {
            // Serialization failure, deadlock, lock not available.
            Some("40001" | "40P01" | "55P03") => {
                Self::Busy("another request is changing the same resource; try again".into())
            }
            // Statement timeout.
            Some("57014") => Self::Busy("the database is slow; try again shortly".into()),
            _ => Self::Unexpected(error.into()),
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Unexpected(error.into())
    }
}

/// Maps the violation of a named constraint to a refusal, in one place per statement.
pub trait OnConstraint<T> {
    /// Returns `refusal()` when `constraint` refused the statement.
    fn on_constraint(self, constraint: &str, refusal: impl FnOnce() -> Error) -> Result<T>;
}

impl<T> OnConstraint<T> for std::result::Result<T, sqlx::Error> {
    fn on_constraint(self, constraint: &str, refusal: impl FnOnce() -> Error) -> Result<T> {
        self.map_err(|error| match &error {
            sqlx::Error::Database(db) if db.constraint() == Some(constraint) => refusal(),
            _ => error.into(),
        })
    }
}
