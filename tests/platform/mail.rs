//! Mail: one message per subject, however often its job `send_email` runs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::TimeDelta;
use peal_shared::context::Context;
use peal_shared::mail::NewEmail;
use peal_shared::platform::ids::{EmailId, JobId, OrgId};
use peal_shared::platform::queue;
use peal_shared::platform::queue::{Queue, WorkerTiming};
use peal_shared::{Error, mail};
use peal_worker::jobs::registry;
use peal_worker::queues::{QueueRuntime, run_queues};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::app::connect;
use crate::harness::db::{TestDatabase, fresh_database};
use crate::harness::eventually;

const MAIL_TIMEOUT: Duration = Duration::from_secs(60);

struct MailDirectory(PathBuf);

impl MailDirectory {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("mail-{}", JobId::new())))
    }

    fn mail_path(&self) -> PathBuf {
        self.0.join("mail")
    }

    fn files(&self) -> Vec<PathBuf> {
        match std::fs::read_dir(self.mail_path()) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for MailDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn create_organization(db: &TestDatabase) -> OrgId {
    let org = OrgId::new();
    sqlx::query("insert into organizations (id, name) values ($1, 'Acme')")
        .bind(org)
        .execute(&db.pool)
        .await
        .unwrap();
    org
}

fn start_mail_workers(
    context: Arc<Context>,
) -> (CancellationToken, JoinHandle<anyhow::Result<()>>) {
    let queues = QueueRuntime {
        pool: context.pool.clone(),
        wakeups: context.wakeups.clone(),
        state: context,
        registry: Arc::new(registry()),
        timing: WorkerTiming::default(),
    };
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let workers = tokio::spawn(async move { run_queues(queues, &[(Queue::Mail, 4)], token).await });
    (shutdown, workers)
}

/// A mail server that refuses `gone@` until it accepts all addresses, defers the first message to any
/// other address, and stores received messages.
struct MailServer {
    url: String,
    received: Arc<Mutex<Vec<String>>>,
    accepts_all: Arc<AtomicBool>,
}

impl MailServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("smtp://{}", listener.local_addr().unwrap());
        let received: Arc<Mutex<Vec<String>>> = Arc::default();
        let has_deferred: Arc<AtomicBool> = Arc::default();
        let knows_all: Arc<AtomicBool> = Arc::default();
        let (messages, accepts_all) = (Arc::clone(&received), Arc::clone(&knows_all));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (has_deferred, accepts_all) =
                    (Arc::clone(&has_deferred), Arc::clone(&accepts_all));
                tokio::spawn(serve_connection(
                    stream,
                    has_deferred,
                    accepts_all,
                    Arc::clone(&messages),
                ));
            }
        });
        Self {
            url,
            received,
            accepts_all: knows_all,
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    has_deferred: Arc<AtomicBool>,
    accepts_all: Arc<AtomicBool>,
    received: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut lines = BufReader::new(input).lines();
    output.write_all(b"220 localhost\r\n").await?;

    while let Some(line) = lines.next_line().await? {
        let reply = match line.get(..4).unwrap_or_default() {
            "RCPT" if line.contains("gone@") && !accepts_all.load(Ordering::SeqCst) => {
                "550 no such mailbox"
            }
            "RCPT" if !has_deferred.swap(true, Ordering::SeqCst) => "451 try later",
            "DATA" => {
                output.write_all(b"354 go on\r\n").await?;
                let mut text = String::new();
                while let Some(line) = lines.next_line().await? {
                    if line == "." {
                        break;
                    }
                    text.push_str(&line);
                    text.push('\n');
                }
                received.lock().unwrap().push(text);
                "250 taken"
            }
            "QUIT" => "221 bye",
            _ => "250 ok",
        };
        output.write_all(format!("{reply}\r\n").as_bytes()).await?;
    }

    Ok(())
}

fn message(org: OrgId, subject_id: Uuid) -> NewEmail<'static> {
    NewEmail {
        org,
        kind: "export_ready",
        subject_id,
        to: "Ada <ada@example.com>",
        subject: "Your export is ready",
        body: "Fetch it within a day.",
    }
}

/// Stored text of the message to an address, and true when the message was given up.
async fn stored_text(db: &TestDatabase, to: &str) -> (String, bool) {
    sqlx::query_as(
        "select body, failed_at is not null
         from emails
         where to_address like '%' || $1 || '%'
           and subject = 'Your export is ready'",
    )
    .bind(to)
    .fetch_one(&db.pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_message_is_written_once_and_survives_three_redeliveries() {
    let db = fresh_database().await;
    let org = create_organization(&db).await;
    let directory = MailDirectory::new();
    let context = connect(&db, "http://127.0.0.1:1", &directory.0, |settings| {
        settings.mail_from = "Peal <peal@example.org>".to_owned();
    })
    .await;
    let wakeups = context.wakeups.clone();
    let (shutdown, workers) = start_mail_workers(context);

    let subject = JobId::new().0;
    let mut connection = db.pool.acquire().await.unwrap();
    let written = mail::enqueue(&mut connection, message(org, subject)).await;
    let job = written.unwrap().unwrap();
    wakeups.notify_job(&job);
    let again = mail::enqueue(&mut connection, message(org, subject)).await;
    assert!(again.unwrap().is_none());

    let done = || async {
        sqlx::query_scalar::<_, bool>("select state = 'done' from jobs where id = $1")
            .bind(job.id)
            .fetch_one(&db.pool)
            .await
            .unwrap()
    };
    eventually("it is sent", MAIL_TIMEOUT, done).await;
    let (id, first_sent): (EmailId, chrono::DateTime<chrono::Utc>) =
        sqlx::query_as("select id, sent_at from emails")
            .fetch_one(&db.pool)
            .await
            .unwrap();
    let path = directory.mail_path().join(format!("{id}.eml"));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&format!("Message-ID: <{id}@example.org>")));
    assert!(text.contains("Fetch it within a day."));

    for round in 0..3 {
        if round == 2 {
            // As after a crash between sending and recording: the same file is written again.
            sqlx::query("update emails set sent_at = null, body = 'Fetch it within a day.'")
                .execute(&db.pool)
                .await
                .unwrap();
        } else {
            std::fs::write(&path, "untouched").unwrap();
        }
        sqlx::query("update jobs set state = 'ready', finished_at = null, run_at = now()")
            .execute(&db.pool)
            .await
            .unwrap();
        wakeups.notify_job(&job);
        eventually("it is delivered again", MAIL_TIMEOUT, done).await;
        assert_eq!(directory.files(), std::slice::from_ref(&path));
        let expected = if round == 2 {
            text.as_str()
        } else {
            "untouched"
        };
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
    let resent: chrono::DateTime<chrono::Utc> = sqlx::query_scalar("select sent_at from emails")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert!(resent > first_sent);
    assert_eq!(
        stored_text(&db, "ada@example.com").await,
        (String::new(), false)
    );
    shutdown.cancel();
    workers.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_invalid_address_is_refused_before_any_write() {
    let db = fresh_database().await;
    let org = create_organization(&db).await;
    let mut connection = db.pool.acquire().await.unwrap();
    let email = NewEmail {
        to: "nobody",
        ..message(org, JobId::new().0)
    };
    let refused = mail::enqueue(&mut connection, email).await;
    assert!(matches!(refused, Err(Error::Invalid(_))));
    let left: i64 = sqlx::query_scalar("select count(*) from jobs")
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_refused_message_keeps_its_text_and_is_sent_when_its_job_is_retried() {
    let db = fresh_database().await;
    let org = create_organization(&db).await;
    let server = MailServer::start().await;
    let directory = MailDirectory::new();
    let context = connect(&db, "http://127.0.0.1:1", &directory.0, |settings| {
        settings.mail_from = "Peal <peal@example.org>".to_owned();
        settings.smtp_url = Some(server.url.clone());
    })
    .await;
    let (wakeups, wakeups_again) = (context.wakeups.clone(), context.wakeups.clone());
    let (shutdown, workers) = start_mail_workers(context);

    let mut connection = db.pool.acquire().await.unwrap();
    let mut send = async |to: &'static str| {
        let email = NewEmail {
            to,
            ..message(org, JobId::new().0)
        };
        let written = mail::enqueue(&mut connection, email).await;
        let job = written.unwrap().unwrap();
        wakeups.notify_job(&job);
        job
    };
    let ended = async |job: JobId| {
        let state = || async {
            sqlx::query_as::<_, (String, i32)>("select state, attempts from jobs where id = $1")
                .bind(job)
                .fetch_one(&db.pool)
                .await
                .unwrap()
        };
        eventually("it ends", MAIL_TIMEOUT, || async {
            ["done", "dead"].contains(&state().await.0.as_str())
        })
        .await;
        state().await
    };

    let deferred = send("ada@example.com").await;
    let refused = send("gone@example.com").await;
    assert_eq!(ended(refused.id).await, ("dead".into(), 1));
    assert_eq!(ended(deferred.id).await, ("done".into(), 2));

    let mut connection = db.pool.acquire().await.unwrap();
    let dead = queue::dead_jobs(&mut connection, 1).await.unwrap();
    let why = dead[0].why.clone().unwrap();
    assert!(why.contains("550") && !why.contains('@'), "{why}");
    // The text of a sent message is deleted; a refused one may still be sent.
    let text = "Fetch it within a day.".to_owned();
    assert_eq!(
        stored_text(&db, "ada@example.com").await,
        (String::new(), false)
    );
    assert_eq!(
        stored_text(&db, "gone@example.com").await,
        (text.clone(), false)
    );

    server.accepts_all.store(true, Ordering::SeqCst);
    let again = queue::retry_dead_job(&mut connection, refused.id)
        .await
        .unwrap();
    wakeups_again.notify_job(&again);
    assert_eq!(ended(refused.id).await, ("done".into(), 1));
    assert_eq!(
        stored_text(&db, "gone@example.com").await,
        (String::new(), false)
    );
    let received = server.received.lock().unwrap().clone();
    assert_eq!(received.len(), 2);
    assert!(received.iter().all(|message| message.contains(&text)));
    shutdown.cancel();
    workers.await.unwrap().unwrap();
}

#[tokio::test]
async fn old_texts_are_purged() {
    let db = fresh_database().await;
    let org = create_organization(&db).await;
    let directory = MailDirectory::new();
    let context = connect(&db, "http://127.0.0.1:1", &directory.0, |_| {}).await;
    let mut connection = db.pool.acquire().await.unwrap();
    let mut written = Vec::new();
    for to in [
        "waiting@example.com",
        "dead@example.com",
        "sent@example.com",
    ] {
        let email = NewEmail {
            to,
            ..message(org, JobId::new().0)
        };
        written.push(
            mail::enqueue(&mut connection, email)
                .await
                .unwrap()
                .unwrap(),
        );
    }
    sqlx::query(
        "update jobs set state = 'dead', finished_at = now(), last_error = 'refused' where id = $1",
    )
    .bind(written[1].id)
    .execute(&mut *connection)
    .await
    .unwrap();

    // State left by a process of the previous version.
    sqlx::query("update emails set sent_at = now() where to_address = 'sent@example.com'")
        .execute(&mut *connection)
        .await
        .unwrap();

    let text = "Fetch it within a day.".to_owned();
    let purge_after_days = async |days| {
        let mut connection = db.pool.acquire().await.unwrap();
        let now = context.clock.now() + TimeDelta::days(days);
        mail::purge_unsent_unscoped(&mut connection, now).await
    };

    assert_eq!(purge_after_days(6).await.unwrap(), 0);
    let stored = async |name| stored_text(&db, &format!("{name}@example.com")).await;
    assert_eq!(stored("dead").await, (text.clone(), false));
    assert_eq!(stored("sent").await, (String::new(), false));

    assert_eq!(purge_after_days(8).await.unwrap(), 1);
    assert_eq!(stored("waiting").await, (text, false));
    assert_eq!(stored("dead").await, (String::new(), true));

    // A later retry fails because the text is gone.
    let _unsent_wakeup = queue::retry_dead_job(&mut connection, written[1].id)
        .await
        .unwrap();
    let (shutdown, workers) = start_mail_workers(context);
    let ended = || async {
        sqlx::query_scalar::<_, i64>("select count(*) from jobs where state in ('done', 'dead')")
            .fetch_one(&db.pool)
            .await
            .unwrap()
            == 3
    };
    eventually("all jobs end", MAIL_TIMEOUT, ended).await;
    let dead = queue::dead_jobs(&mut connection, 5).await.unwrap();
    assert_eq!(dead.len(), 1);
    let why = dead[0].why.clone().unwrap();
    assert!(why.contains("its text was deleted"), "{why}");
    shutdown.cancel();
    workers.await.unwrap().unwrap();
}
