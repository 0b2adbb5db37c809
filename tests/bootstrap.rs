//! The `peal-api bootstrap` command.

use clap::Parser;
use peal_api::bootstrap::{Bootstrap, bootstrap};
use serde_json::{Value, json};

use crate::harness::app::{App, Client, Options, Tenant};

#[derive(Parser)]
struct Typed {
    #[command(flatten)]
    wanted: Bootstrap,
}

/// Parses the required arguments and these.
fn typed(more: &[&str]) -> Result<Bootstrap, clap::Error> {
    let required = [
        "peal-api",
        "--org=Patel",
        "--email=asha@example.com",
        "--trunk-account=ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        "--trunk-token=00112233445566778899aabbccddeeff",
        "--number=+12125550199",
        "--agent-message=Namaste {{name}}",
    ];
    Typed::try_parse_from([&required, more].concat()).map(|typed| typed.wanted)
}

/// Bootstraps an organisation with these arguments and returns a client for it.
async fn set_up(app: &App, more: &[&str]) -> Client {
    let ready = bootstrap(&app.context, &typed(more).unwrap())
        .await
        .unwrap();
    let tenant = Tenant {
        org: ready.org_id,
        agent: ready.agent_id,
        trunk: ready.trunk_id,
        phone: ready.phone_id,
        api_key: ready.api_key,
        session: None,
    };
    Client::new(app.url.clone(), tenant)
}

/// Uploads an Indian number without its country code; returns the inserted count and error code.
async fn national(client: &Client, batch: Value) -> (Value, Value) {
    let batch = client.create_batch(batch).await;
    let report = client
        .upload(&batch, "to_phonenumber,name\n98765 43210,Asha\n")
        .await;
    (
        report["inserted"].clone(),
        report["errors"][0]["code"].clone(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organisations_country_reads_numbers_unless_their_batch_has_one() {
    let app = App::with(Options {
        workers: 0,
        ..Options::default()
    })
    .await;
    let client = set_up(&app, &[]).await;
    let rejected = |code: &str| (json!(0), json!(code));
    assert_eq!(
        national(&client, json!({})).await,
        rejected("missing_country")
    );

    let client = set_up(&app, &["--default-country", "in"]).await;
    let added = (json!(1), Value::Null);
    assert_eq!(national(&client, json!({})).await, added);

    let us = json!({"default_country": "US"});
    assert_eq!(national(&client, us).await, rejected("invalid_for_country"));

    let stored = "select count(*) from batch_data where to_phonenumber = '+919876543210'";
    assert_eq!(app.count(stored).await, 1);

    // Bootstrapping again with other arguments keeps the country.
    let client = set_up(&app, &["--trunk-cps", "2"]).await;
    assert_eq!(national(&client, json!({})).await, added);

    sqlx::query("delete from jobs")
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.finish().await;
}

#[test]
fn a_country_is_two_letters_of_iso_3166() {
    for wrong in ["XX", "IND", "India", "91", ""] {
        let refused = typed(&["--default-country", wrong]).unwrap_err();
        let message = refused.to_string();
        assert!(
            message.contains("two letters, such as IN or US"),
            "{message}"
        );
    }
}
