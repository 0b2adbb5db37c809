-- Uploads: files that the rows of batches come from, and the rows that were rejected.

create table ingests (
    id              uuid primary key,
    org_id          uuid not null,
    batch_id        uuid not null,
    user_id         uuid not null,
    file_name       text not null,
    -- Name of the upload in the store.
    file_key        text not null,
    file_bytes      bigint not null,
    state           text not null default 'queued' check (state in ('queued', 'running', 'completed', 'failed')),
    -- Data with which a resumed run goes on behind the last committed chunk.
    checkpoint      jsonb,
    total_rows      bigint not null default 0,
    inserted        bigint not null default 0,
    duplicates      bigint not null default 0,
    rejected        bigint not null default 0,
    warnings        text[] not null default '{}',
    failure_code    text,
    failure_message text,
    -- Set when the result is mailed, because the uploader waits for the answer to a small file only.
    notify          boolean not null default false,
    created_at      timestamptz not null default now(),
    started_at      timestamptz,
    finished_at     timestamptz,
    unique (org_id, id),
    foreign key (org_id, batch_id) references call_batches (org_id, id)
        on delete cascade,
    constraint ingest_counts_add_up
        check (total_rows = inserted + duplicates + rejected),
    constraint queued_ingests_have_not_begun
        check (state <> 'queued' or (started_at is null and checkpoint is null and total_rows = 0)),
    constraint begun_ingests_have_a_place
        check (state not in ('running', 'completed') or (started_at is not null and checkpoint is not null)),
    constraint failed_ingests_have_a_reason
        check ((state = 'failed') = (failure_code is not null and failure_message is not null)),
    constraint ended_ingests_have_an_end
        check ((state in ('completed', 'failed')) = (finished_at is not null))
);

create index ingests_by_batch
    on ingests (batch_id, created_at desc);
create index ingests_open
    on ingests (id)
    where state in ('queued', 'running');

select wall('ingests');

create table ingest_rejects (
    ingest_id   uuid not null references ingests (id) on delete cascade,
    -- The file's own line, counted from 1 with the header.
    line        bigint not null,
    column_name text not null,
    value       text not null,
    code        text not null,
    message     text not null,
    -- Cells under the columns that the batch uses, in the order of the error file.
    cells       jsonb,
    primary key (ingest_id, line)
);

select wall('ingest_rejects', 'exists (select from ingests i where i.id = ingest_id)');

-- Files that are in the store, or may be: the row is written before the file and removed after it,
-- so that a crash in between leaves no file unknown.
create table upload_files (
    -- References nothing: the row is there before its ingest and outlives it.
    ingest_id  uuid primary key,
    org_id     uuid not null references organizations (id),
    file_key   text not null,
    created_at timestamptz not null default now()
);

select wall('upload_files');
