use proptest::prelude::*;

use super::*;

fn rate(service: Service, matched: &str, price: &str, increment_secs: i32) -> ServiceRate {
    ServiceRate {
        service,
        matched: matched.to_owned(),
        price_usd: price.parse().unwrap(),
        increment_secs,
    }
}

fn distributor(markup: &str, commission: &str) -> ResellerTerms {
    ResellerTerms {
        reseller_org_id: Some(OrgId::new()),
        org_type: "distributor".to_owned(),
        markup_percent: markup.parse().unwrap(),
        commission_percent: commission.parse().unwrap(),
    }
}

fn answered(seconds: i32) -> CallUsage {
    CallUsage {
        attempted: true,
        seconds,
    }
}

#[test]
fn the_longest_prefix_and_the_agents_model_names_match() {
    let catalogue: PriceCatalogue = [
        rate(Service::Telephony, "", "0.25", 60),
        rate(Service::Telephony, "33", "0.02", 60),
        rate(Service::Telephony, "336", "0.04", 60),
        rate(Service::Model, "", "0.02", 1),
        rate(Service::Model, "big", "0.2", 1),
        rate(Service::Platform, "", "0.01", 1),
        rate(Service::Attempt, "", "0", 1),
    ]
    .into_iter()
    .collect();

    for (to, model, prefix, model_match) in [
        ("+33612345678", None, "336", ""),
        ("+33112345678", Some("big"), "33", "big"),
        ("+12125550123", Some("unknown"), "", ""),
    ] {
        let to = E164::try_from(to.to_owned()).unwrap();
        let rates = catalogue.rates_for(&PricedCall {
            to: &to,
            model,
            speech: Some("unknown"),
        });

        let found: Vec<_> = rates
            .iter()
            .map(|rate| (rate.service, rate.matched.as_str()))
            .collect();
        // Speech has no rate, and the rate of attempts is zero: neither is on the bill.
        let expected = [
            (Service::Telephony, prefix),
            (Service::Model, model_match),
            (Service::Platform, ""),
        ];
        assert_eq!(found, expected, "{}", to.as_str());
    }
}

#[test]
fn minutes_are_billed_in_steps_and_only_for_answered_calls() {
    let prices = CallPrices {
        rates: vec![
            rate(Service::Telephony, "1", "0.014", 60),
            rate(Service::Platform, "", "0.01", 1),
            rate(Service::Attempt, "", "0.001", 1),
        ],
        terms: ResellerTerms::direct(),
    };
    for (seconds, attempted, billed, micros) in [
        (0, false, 0, 0),
        (0, true, 0, 1_000),
        (1, true, 60, 14_000 + 167 + 1_000),
        (60, true, 60, 14_000 + 10_000 + 1_000),
        (61, true, 120, 28_000 + 10_167 + 1_000),
        (-5, false, 0, 0),
    ] {
        let bill = price_call(&prices, CallUsage { attempted, seconds });
        assert_eq!(
            (bill.billed_seconds, bill.retail),
            (billed, Usd(micros)),
            "{seconds}"
        );
        assert_eq!((bill.markup, bill.commission), (Usd::ZERO, Usd::ZERO));
    }
    assert_eq!(max_cost(&prices, 61), Usd(39_167));
}

#[test]
fn a_distributor_earns_the_markup_and_a_partner_its_share_of_the_base() {
    let rates = vec![rate(Service::Telephony, "1", "0.1", 60)];
    let distributor = CallPrices {
        rates: rates.clone(),
        terms: distributor("25", "10"),
    };
    let bill = price_call(&distributor, answered(30));
    assert_eq!((bill.base, bill.retail), (Usd(100_000), Usd(125_000)));
    assert_eq!((bill.markup, bill.commission), (Usd(25_000), Usd(10_000)));
    let partner = CallPrices {
        rates,
        terms: ResellerTerms {
            org_type: "channel_partner".to_owned(),
            markup_percent: Decimal::ZERO,
            ..distributor.terms
        },
    };
    let bill = price_call(&partner, answered(30));
    assert_eq!((bill.retail, bill.markup), (Usd(100_000), Usd::ZERO));
    assert_eq!(bill.commission, Usd(10_000));
}

#[test]
fn a_line_is_rounded_once_half_to_even() {
    for (price_usd, seconds, micros) in [
        ("0.0000005", 60, 0),
        ("0.0000015", 60, 2),
        ("0.0000025", 60, 2),
        ("0.00003", 1, 0),
        ("0.00009", 1, 2),
    ] {
        let prices = CallPrices {
            rates: vec![rate(Service::Platform, "", price_usd, 1)],
            terms: ResellerTerms::direct(),
        };
        assert_eq!(
            price_call(&prices, answered(seconds)).base,
            Usd(micros),
            "{price_usd}"
        );
    }
}

prop_compose! {
    fn a_rate()(service in prop::sample::select(Service::ALL.to_vec()), tenths in 0_i64..2_000_000_000_000, step in 1_i32..120) -> ServiceRate {
        ServiceRate {
            service,
            matched: String::new(),
            price_usd: Decimal::new(tenths, 10),
            increment_secs: step,
        }
    }
}

proptest! {
    #[test]
    fn parts_of_a_bill_add_up_and_are_not_negative(
        rates in prop::collection::vec(a_rate(), 0..6),
        markup in 0_i64..1_000_000_000,
        commission in 0_i64..=100_000_000,
        seconds in 0_i32..86_400,
        attempted: bool,
    ) {
        let terms = ResellerTerms {
            reseller_org_id: Some(OrgId::new()),
            org_type: "distributor".to_owned(),
            markup_percent: Decimal::new(markup, 6),
            commission_percent: Decimal::new(commission, 6),
        };
        let prices = CallPrices { rates, terms };
        let bill = price_call(&prices, CallUsage { attempted, seconds });
        let platform = bill.retail.minus(bill.markup).minus(bill.commission);
        prop_assert!(bill.markup >= Usd::ZERO && bill.commission >= Usd::ZERO && platform >= Usd::ZERO);
        prop_assert_eq!(bill.lines.iter().map(|line| Usd(line.base_micros)).sum::<Usd>(), bill.base);
        prop_assert_eq!(bill.lines.iter().map(|line| Usd(line.retail_micros)).sum::<Usd>(), bill.retail);
        prop_assert!(max_cost(&prices, seconds) >= bill.retail);
        prop_assert_eq!(bill.reversed().reversed(), bill);
    }

    #[test]
    fn a_call_never_costs_more_than_a_longer_one(
        rates in prop::collection::vec(a_rate(), 0..6),
        seconds in 0_i32..86_399,
    ) {
        let prices = CallPrices { rates, terms: ResellerTerms::direct() };
        prop_assert!(max_cost(&prices, seconds) <= max_cost(&prices, seconds + 1));
    }
}
