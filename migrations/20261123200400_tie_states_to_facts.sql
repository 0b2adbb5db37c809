-- What a job and an ingest must have, and must not have, in each of their states.

alter table jobs
    add constraint running_jobs_were_claimed
        check (state <> 'running' or (worker is not null and attempts > 0 and fence > 0)),
    add constraint dead_jobs_have_a_reason check (state <> 'dead' or last_error is not null);

alter table ingests
    add constraint queued_ingests_have_not_begun
        check (state <> 'queued' or (started_at is null and checkpoint is null and total_rows = 0)),
    add constraint begun_ingests_have_a_place
        check (state not in ('running', 'completed') or (started_at is not null and checkpoint is not null)),
    add constraint failed_ingests_have_a_reason
        check ((state = 'failed') = (failure_code is not null and failure_message is not null));
