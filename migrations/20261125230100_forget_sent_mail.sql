-- A message may hold a secret (an invitation's token, the link to a file). Its text is forgotten
-- once it has been sent, or cannot be.

alter table emails add column failed_at timestamptz;

update emails set body = '' where sent_at is not null;
