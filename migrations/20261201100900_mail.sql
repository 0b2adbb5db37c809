-- Mail to send: one row is one message, and (kind, subject_id) rules out a second one.

create table emails (
    id         uuid primary key,
    org_id     uuid not null references organizations (id),
    kind       text not null check (length(kind) between 1 and 100),
    -- The thing that the message is about; together with the kind it names the message.
    subject_id uuid not null,
    to_address text not null check (length(to_address) between 3 and 320),
    subject    text not null,
    -- Emptied once the message was sent, or was not for days: it may hold a secret, such as an
    -- invitation's token or the link to a file.
    body       text not null,
    created_at timestamptz not null default now(),
    sent_at    timestamptz,
    failed_at  timestamptz,
    constraint email_is_written
        unique (kind, subject_id)
);

-- Messages that wait.
create index emails_unsent
    on emails (created_at)
    where sent_at is null and failed_at is null;
-- Sent messages whose text was not emptied with the sending.
create index emails_with_a_text_left
    on emails (sent_at)
    where sent_at is not null and body <> '';

select wall('emails');
