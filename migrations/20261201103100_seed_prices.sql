-- Prices to begin with: they cover usual charges of carriers, and are meant to be replaced.

-- Edition before prices: an insert of prices replaces it, so it has to exist.
insert into price_book default values;

insert into service_prices (id, service, match, direction, price_usd, increment_secs, valid_from)
select gen_random_uuid(), service, match, direction, price_usd, increment_secs, timestamptz '2020-01-01 00:00:00Z'
from (values
    ('telephony', '', 'outbound', 0.25, 60),
    ('telephony', '1', 'outbound', 0.014, 60),
    ('telephony', '33', 'outbound', 0.02, 60),
    ('telephony', '336', 'outbound', 0.04, 60),
    ('telephony', '337', 'outbound', 0.04, 60),
    ('telephony', '34', 'outbound', 0.02, 60),
    ('telephony', '346', 'outbound', 0.04, 60),
    ('telephony', '39', 'outbound', 0.022, 60),
    ('telephony', '393', 'outbound', 0.05, 60),
    ('telephony', '44', 'outbound', 0.016, 60),
    ('telephony', '447', 'outbound', 0.032, 60),
    ('telephony', '49', 'outbound', 0.018, 60),
    ('telephony', '491', 'outbound', 0.04, 60),
    ('telephony', '52', 'outbound', 0.02, 60),
    ('telephony', '55', 'outbound', 0.04, 60),
    ('telephony', '61', 'outbound', 0.025, 60),
    ('telephony', '614', 'outbound', 0.07, 60),
    ('telephony', '65', 'outbound', 0.03, 60),
    ('telephony', '81', 'outbound', 0.08, 60),
    ('telephony', '86', 'outbound', 0.03, 60),
    ('telephony', '91', 'outbound', 0.04, 60),
    ('telephony', '971', 'outbound', 0.2, 60),
    ('telephony', '', 'inbound', 0.01, 60),
    ('model', '', 'outbound', 0.02, 1),
    ('speech', '', 'outbound', 0.01, 1),
    ('platform', '', 'outbound', 0.01, 1),
    ('attempt', '', 'outbound', 0, 1)
) as p (service, match, direction, price_usd, increment_secs);
