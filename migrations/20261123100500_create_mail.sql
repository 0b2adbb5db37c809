-- Mail to send. One row is one message; (kind, subject_id) makes a second one impossible.

create table emails (
    id         uuid primary key,
    org_id     uuid not null references organizations (id),
    kind       text not null check (length(kind) between 1 and 100),
    -- What the message is about; together with the kind it names the message.
    subject_id uuid not null,
    to_address text not null check (length(to_address) between 3 and 320),
    subject    text not null,
    body       text not null,
    created_at timestamptz not null default now(),
    sent_at    timestamptz,
    constraint email_is_written unique (kind, subject_id)
);
