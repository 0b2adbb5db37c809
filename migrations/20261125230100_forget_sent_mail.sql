-- A message may hold a secret (an invitation's token, the link to a file). Its text is forgotten
-- once it has been sent, or was not for days.

alter table emails add column failed_at timestamptz;

update emails set body = '' where sent_at is not null;

-- What is looked for again and again: messages that wait, and texts that are left of those that a
-- process of the version before has sent.
create index emails_unsent on emails (created_at) where sent_at is null and failed_at is null;
create index emails_with_a_text_left on emails (sent_at) where sent_at is not null and body <> '';
