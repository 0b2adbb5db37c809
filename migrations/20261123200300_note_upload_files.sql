-- Files of uploads that are in the store, or may be: the row comes before the file and goes
-- behind it, so that whatever dies in between, somebody knows what there is to clear away.

create table upload_files (
    -- Outlives its ingest, and is there before it.
    ingest_id  uuid primary key,
    org_id     uuid not null references organizations (id),
    file_key   text not null,
    created_at timestamptz not null default now()
);

select wall('upload_files');

create index ingests_open on ingests (id) where state in ('queued', 'running');
