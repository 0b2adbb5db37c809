-- A batch waits for its launch for a moment only. Who looks every other second for one whose launch
-- was lost reads next to nothing.
create index call_batches_launching on call_batches (id) where status = 'in_progress' and launched_at is null;
