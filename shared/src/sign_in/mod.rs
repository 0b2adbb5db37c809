//! Signing in: how a person becomes a [`Principal`].
//!
//! There are two ways. With a password of ours a person opens a **session**, a row that names
//! the user; the token only carries the session's id, so ending the row ends the token at once,
//! on every replica. With a genuine token of another issuer (Supabase, say) the person is known
//! by issuer and subject; the first such token makes the user, if somebody invited its e-mail
//! address or the installation is open to everybody.
//!
//! A token proves who somebody is and nothing else. Role, organisation and whether the person
//! is still a member are read from the database for every request.

pub mod passwords;
pub mod sessions;
pub mod strangers;
pub mod told;
