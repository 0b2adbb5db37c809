//! Mail: stored as a row, sent by a job.
//!
//! The kind and the subject id (the resource a message is about) identify a message, so writing
//! it twice stores it once. The row and the job that sends it are inserted in the caller's
//! transaction. `sent_at` is set after the server accepted the message: a redelivered job sends
//! nothing. Only a crash between those two steps repeats a message, and then its Message-ID, date
//! and text are the same, by which mail systems detect duplicates.
//!
//! A text may hold a secret, such as an invitation's token. The statement that marks the message
//! as sent deletes it; recipient, subject and time stay. A message that the server refuses keeps
//! its text for some days: after correcting the cause, an operator retries its dead job.
//!
//! Without an SMTP server messages are written to a directory as `<email id>.eml`, which any
//! mail program opens.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use tokio::fs;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::platform::error::{Error, Result};
use crate::platform::ids::{EmailId, OrgId};
use crate::platform::queue;
use crate::platform::queue::{EnqueuedJob, JobPayload, Queue};

/// Time for which an unsent message keeps its text.
const UNSENT_RETENTION: TimeDelta = TimeDelta::days(7);

/// Message to store and send.
#[derive(Clone, Debug)]
pub struct NewEmail<'a> {
    pub org: OrgId,
    /// Kind of the message, such as `export_ready`.
    pub kind: &'a str,
    /// Resource the message is about.
    pub subject_id: Uuid,
    pub to: &'a str,
    pub subject: &'a str,
    /// Plain text.
    pub body: &'a str,
}

/// Job that sends a message.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SendEmail {
    pub email_id: EmailId,
    pub org_id: OrgId,
}

impl JobPayload for SendEmail {
    const KIND: &'static str = "send_email";
    const QUEUE: Queue = Queue::Mail;
    const MAX_ATTEMPTS: i32 = 12;

    fn org(&self) -> Option<OrgId> {
        Some(self.org_id)
    }
}

/// True for a valid e-mail address.
#[must_use]
pub fn is_email_address(text: &str) -> bool {
    text.parse::<Mailbox>().is_ok()
}

/// Stores a message and the job that sends it in the caller's transaction. `None` when the
/// message exists already.
///
/// # Errors
/// [`Error::Invalid`] when `to` is not an e-mail address.
pub async fn enqueue(db: &mut PgConnection, email: NewEmail<'_>) -> Result<Option<EnqueuedJob>> {
    if !is_email_address(email.to) {
        return Err(Error::field(
            "to",
            "email",
            "Give an e-mail address such as name@example.com",
        ));
    }

    let written = sqlx::query_scalar!(
        r#"
        insert into emails (id, org_id, kind, subject_id, to_address, subject, body)
        values ($1, $2, $3, $4, $5, $6, $7)
        on conflict on constraint email_is_written do nothing
        returning id as "id: EmailId"
        "#,
        EmailId::new() as EmailId,
        email.org as OrgId,
        email.kind,
        email.subject_id,
        email.to,
        email.subject,
        email.body,
    )
    .fetch_optional(&mut *db)
    .await?;
    let Some(email_id) = written else {
        return Ok(None);
    };

    let job = SendEmail {
        email_id,
        org_id: email.org,
    };
    queue::enqueue(db, &job, None).await.map(Some)
}

/// Sends a message unless it has been sent or deleted. Without a scope, because the job acts for
/// the system: access was checked when the message was stored.
///
/// # Errors
/// [`Error::Outside`] when the server refuses the message, temporarily or permanently;
/// [`Error::Rejected`] when its text was [deleted](purge_unsent_unscoped).
pub async fn send_unscoped(pool: &PgPool, mailer: &Mailer, id: EmailId) -> Result<()> {
    let unsent = sqlx::query_as!(
        UnsentEmail,
        r#"
        select id as "id: EmailId", to_address, subject, body, created_at, failed_at is not null as "failed!"
        from emails
        where id = $1
            and sent_at is null
        "#,
        id as EmailId,
    )
    .fetch_optional(pool)
    .await?;

    let Some(email) = unsent else {
        return Ok(());
    };
    if email.failed {
        return Err(Error::rejected(
            "email_forgotten",
            "the message was not sent in time and its text was deleted: repeat the action it was about",
        ));
    }

    // A crash between these two steps sends the message again.
    mailer.send(email).await?;
    sqlx::query!(
        "update emails set sent_at = now(), body = '' where id = $1 and sent_at is null",
        id as EmailId,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Marks old unsent messages without a live job as failed and deletes their texts, in all
/// organisations. Deletes as well the texts of messages sent by a process of an earlier version.
/// Returns the number of failed messages.
pub async fn purge_unsent_unscoped(db: &mut PgConnection, now: DateTime<Utc>) -> Result<u64> {
    let failed = sqlx::query!(
        "update emails
         set failed_at = now(), body = ''
         where sent_at is null
           and failed_at is null
           and created_at < $1
           and not exists (select from jobs j
                           where j.kind = 'send_email'
                             and j.state in ('ready', 'running')
                             and j.args ->> 'email_id' = emails.id::text)",
        now - UNSENT_RETENTION,
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!("update emails set body = '' where sent_at is not null and body <> ''")
        .execute(db)
        .await?;
    Ok(failed.rows_affected())
}

struct UnsentEmail {
    id: EmailId,
    to_address: String,
    subject: String,
    body: String,
    created_at: DateTime<Utc>,
    failed: bool,
}

/// Sends messages by SMTP, or writes them to files.
#[derive(Clone, Debug)]
pub struct Mailer {
    from: Mailbox,
    transport: MailTransport,
}

#[derive(Clone, Debug)]
enum MailTransport {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Files(PathBuf),
}

impl Mailer {
    /// Creates a mailer over a pool of SMTP connections: `smtps://user:password@host`.
    ///
    /// # Errors
    /// Fails when the URL or the sender is malformed.
    pub fn smtp(url: &str, from: &str) -> anyhow::Result<Self> {
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url)
            .map_err(|_hidden| anyhow::anyhow!("the SMTP URL is malformed"))?
            .build();
        Self::new(MailTransport::Smtp(transport), from)
    }

    /// Creates a mailer that writes to a directory, which the first message creates.
    ///
    /// # Errors
    /// Fails when the sender is malformed.
    pub fn files(directory: impl Into<PathBuf>, from: &str) -> anyhow::Result<Self> {
        Self::new(MailTransport::Files(directory.into()), from)
    }

    fn new(way: MailTransport, from: &str) -> anyhow::Result<Self> {
        let from = from
            .parse()
            .with_context(|| format!("'{from}' is not a valid mail sender"))?;
        Ok(Self {
            from,
            transport: way,
        })
    }

    async fn send(&self, email: UnsentEmail) -> Result<()> {
        let id = email.id;
        let message = self.build_message(email)?;
        match &self.transport {
            MailTransport::Smtp(transport) => {
                transport.send(message).await.map_err(smtp_error)?;
                Ok(())
            }
            MailTransport::Files(directory) => write_file(directory, id, &message.formatted())
                .await
                .map_err(|error| Error::Outside {
                    service: "mail directory",
                    retryable: true,
                    detail: error.to_string(),
                }),
        }
    }

    fn build_message(&self, email: UnsentEmail) -> Result<Message> {
        // The parser's message would repeat the address.
        let to: Mailbox = email.to_address.parse().map_err(|_address| {
            Error::rejected("email_address", "The address of the message is malformed")
        })?;
        let message = Message::builder()
            .message_id(Some(format!("<{}@{}>", email.id, self.from.email.domain())))
            .date(SystemTime::from(email.created_at))
            .from(self.from.clone())
            .to(to)
            .subject(email.subject)
            .header(ContentType::TEXT_PLAIN)
            .body(email.body)
            .map_err(anyhow::Error::from)?;
        Ok(message)
    }
}

/// Maps an SMTP error. The server's reply may repeat the address, so only its code is kept.
fn smtp_error(error: lettre::transport::smtp::Error) -> Error {
    let detail = match error.status() {
        Some(code) => format!("the server answered {code}"),
        None if error.is_timeout() => "the server did not answer in time".to_owned(),
        None if error.is_tls() => "no secure connection to the server".to_owned(),
        None => "the server could not be reached".to_owned(),
    };
    Error::Outside {
        service: "SMTP",
        retryable: !error.is_permanent(),
        detail,
    }
}

/// Writes under a temporary name first: a reader never sees half a message, and writing one again
/// replaces it.
async fn write_file(directory: &PathBuf, id: EmailId, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(directory).await?;
    let unfinished = directory.join(format!(".{id}.{}", EmailId::new()));
    let mut file = fs::File::create(&unfinished).await?;
    file.write_all(bytes).await?;
    file.sync_all().await?;
    fs::rename(&unfinished, directory.join(format!("{id}.eml"))).await
}
