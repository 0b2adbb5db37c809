-- What the requests of an agent's outgoing webhook prove themselves with: headers and
-- authentication, sealed as those of tools are. null: none.

alter table agents
    add column webhook_credentials bytea;
