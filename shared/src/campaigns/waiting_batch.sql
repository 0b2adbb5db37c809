select id as "id: BatchId", user_id as "user_id: UserId", agent_id as "agent_id: AgentId",
       null::uuid as workflow_id, caller_phone_id as "caller_phone_id: PhoneId", batch_name, description,
       status as "status: BatchStatus", status_reason, variable_names, batch_size, max_retries,
       retry_delay_seconds, retry_lost, default_country, started_at, completed_at, created_at, updated_at,
       org_id as "org_id: OrgId"
from call_batches
where id = $1
  and status = 'in_progress'
  and launched_at is null
