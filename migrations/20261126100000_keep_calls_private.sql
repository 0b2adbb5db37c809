-- Calls under HIPAA: an agent may have the flag besides its organisation, and a call keeps for
-- good what held when it was made.

alter table agents
    add column hipaa_compliance boolean not null default false;
alter table calls
    add column hipaa_compliance boolean not null default false;

-- Calls of organisations that had their flag before calls did.
update calls c
set hipaa_compliance = true
from organizations o
where o.id = c.org_id
  and o.hipaa_compliance;
