-- Features that a user may use; without a row a feature is on.

create table feature_flags (
    org_id     uuid not null,
    user_id    uuid not null,
    flag       text not null check (length(flag) between 1 and 60),
    enabled    boolean not null,
    updated_at timestamptz not null default now(),
    primary key (user_id, flag),
    foreign key (org_id, user_id) references users (org_id, id)
);

select wall('feature_flags');
