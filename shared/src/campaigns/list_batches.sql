select id as "id: BatchId", user_id as "user_id: UserId", agent_id as "agent_id: AgentId",
       null::uuid as workflow_id, caller_phone_id as "caller_phone_id: PhoneId", batch_name, description,
       status as "status: BatchStatus", status_reason, variable_names, batch_size, max_retries,
       retry_delay_seconds, retry_lost, default_country, started_at, completed_at, created_at, updated_at,
       org_id as "org_id: OrgId"
from call_batches
where ($1::uuid is null or org_id = $1)
  and ($2::uuid is null or user_id = $2)
  and ($5::uuid[] is null or org_id = any($5))
  and ($6::uuid[] is null or user_id = any($6))
  and ($7::text[] is null or exists (select from users u where u.id = call_batches.user_id and u.role = any($7)))
order by created_at desc, id desc
limit $3
offset $4
