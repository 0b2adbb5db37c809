-- The protocol had another transport before March 2025, and many servers still speak it.

alter table mcp_servers
    drop constraint mcp_servers_transport_check,
    add constraint mcp_transport_is_known check (transport in ('streamable_http', 'sse'));
