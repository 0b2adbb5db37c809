-- Trunks that are no longer used. Calls of the past still name them; their secrets are gone.

alter table trunks
    add column deleted_at timestamptz,
    add constraint deleted_trunks_are_paused check (deleted_at is null or status = 'paused');

create index trunks_by_org on trunks (org_id) where deleted_at is null;
