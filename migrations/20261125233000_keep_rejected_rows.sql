-- What a rejected row said under the columns that its batch uses, in the order of the error file.
alter table ingest_rejects add column cells jsonb;
