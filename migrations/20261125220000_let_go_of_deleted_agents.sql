-- Agents that were deleted before deleting took their tools and rules from them.

delete from agent_tools
where agent_id in (select id from agents where deleted_at is not null);
delete from agent_analysis_rules
where agent_id in (select id from agents where deleted_at is not null);
