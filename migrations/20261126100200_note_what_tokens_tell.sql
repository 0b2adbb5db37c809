-- What another issuer's tokens tell of somebody besides their address; only they are shown it.

alter table users
    add column phone             text check (length(phone) <= 40),
    add column profile_image_url text check (length(profile_image_url) <= 2000),
    add column user_metadata     jsonb not null default '{}'
                                 check (jsonb_typeof(user_metadata) = 'object'),
    -- When the token was issued that told so. An older one changes nothing.
    add column told_at           timestamptz;
