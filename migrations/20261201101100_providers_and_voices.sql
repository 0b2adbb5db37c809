-- The platform's catalogue of models, speech services and voices for agents. Tenants read it;
-- only the platform writes it.

create table providers (
    id            uuid primary key,
    kind          text not null check (kind in ('model', 'tts', 'stt', 'vad')),
    -- Name in configurations.
    code          text not null check (length(code) between 1 and 200),
    provider_name text not null,
    model_name    text not null,
    is_default    boolean not null default false,
    created_at    timestamptz not null default now(),
    constraint provider_code_is_taken
        unique (kind, code)
);

create unique index providers_have_one_default
    on providers (kind)
    where is_default;

alter table providers enable row level security;
alter table providers force row level security;
create policy tenant_sees
    on providers
    for select
    to peal_tenant
    using (true);
create policy system
    on providers
    to peal_system
    using (true)
    with check (true);

create table tts_voices (
    id                  uuid primary key,
    provider_id         uuid not null references providers (id),
    -- The vendor's code, as answer documents name the voice.
    voice_id            text not null check (length(voice_id) between 1 and 200),
    voice_name          text not null,
    supported_languages text[] not null check (cardinality(supported_languages) > 0),
    gender              text check (gender in ('female', 'male', 'neutral')),
    preview_url         text,
    is_public           boolean not null default true,
    created_at          timestamptz not null default now(),
    constraint voice_is_listed
        unique (provider_id, voice_id)
);

alter table tts_voices enable row level security;
alter table tts_voices force row level security;
create policy tenant_sees
    on tts_voices
    for select
    to peal_tenant
    using (true);
create policy system
    on tts_voices
    to peal_system
    using (true)
    with check (true);
