//! Sign-in: authenticates a person as a [`Principal`](crate::access::Principal).
//!
//! There are two ways. With a local password a person opens a **session**, a row that names the
//! user; the token only carries the session's id, so ending the row ends the token at once, on
//! every replica. With a genuine token of another issuer (Supabase, for example) the person is
//! known by issuer and subject; the first such token creates the user, if the e-mail address is
//! invited or the installation is open to sign-ups.
//!
//! A token proves an identity and nothing else. Role, organisation and membership are read from
//! the database for every request.

pub mod external_identity;
pub mod passwords;
pub mod profile_claims;
pub mod sessions;
