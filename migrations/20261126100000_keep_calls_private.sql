-- Calls under HIPAA: an agent may have the flag besides its organisation, and a call keeps for
-- good what held when it was made.

alter table agents
    add column hipaa_compliance boolean not null default false;
alter table calls
    add column hipaa_compliance boolean not null default false;
