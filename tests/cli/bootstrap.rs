//! The `peal-api bootstrap` command.

use clap::Parser;
use peal_api::cli::bootstrap::{BootstrapArgs, bootstrap};
use serde_json::{Value, json};

use crate::harness::app::{ApiClient, App, AppOptions, Tenant};

#[derive(Parser)]
struct BootstrapCommand {
    #[command(flatten)]
    bootstrap: BootstrapArgs,
}

/// Parses the required arguments and these.
fn parse_args(more: &[&str]) -> Result<BootstrapArgs, clap::Error> {
    let required = [
        "peal-api",
        "--org=Patel",
        "--email=asha@example.com",
        "--trunk-account=ACbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        "--trunk-token=00112233445566778899aabbccddeeff",
        "--number=+12125550199",
        "--agent-message=Namaste {{name}}",
    ];
    BootstrapCommand::try_parse_from([&required, more].concat()).map(|typed| typed.bootstrap)
}

/// Bootstraps an organisation with these arguments and returns a client for it.
async fn bootstrap_client(app: &App, more: &[&str]) -> ApiClient {
    let ready = bootstrap(&app.context, &parse_args(more).unwrap())
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
    ApiClient::new(app.url.clone(), tenant)
}

/// Uploads an Indian number without its country code; returns the inserted count and error code.
async fn upload_national_number(client: &ApiClient, batch: Value) -> (Value, Value) {
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
async fn the_organisations_default_country_applies_unless_the_batch_has_one() {
    let app = App::start_with(AppOptions {
        workers: 0,
        ..AppOptions::default()
    })
    .await;
    let client = bootstrap_client(&app, &[]).await;
    let rejected = |code: &str| (json!(0), json!(code));
    assert_eq!(
        upload_national_number(&client, json!({})).await,
        rejected("missing_country")
    );

    let client = bootstrap_client(&app, &["--default-country", "in"]).await;
    let added = (json!(1), Value::Null);
    assert_eq!(upload_national_number(&client, json!({})).await, added);

    let us = json!({"default_country": "US"});
    assert_eq!(
        upload_national_number(&client, us).await,
        rejected("invalid_for_country")
    );

    let stored = "select count(*) from batch_data where to_phonenumber = '+919876543210'";
    assert_eq!(app.count(stored).await, 1);

    // Bootstrapping again with other arguments keeps the country.
    let client = bootstrap_client(&app, &["--trunk-cps", "2"]).await;
    assert_eq!(upload_national_number(&client, json!({})).await, added);

    sqlx::query("delete from jobs")
        .execute(&app.context.pool)
        .await
        .unwrap();
    app.finish().await;
}

#[test]
fn a_country_is_two_letters_of_iso_3166() {
    for wrong in ["XX", "IND", "India", "91", ""] {
        let refused = parse_args(&["--default-country", wrong]).unwrap_err();
        let message = refused.to_string();
        assert!(
            message.contains("two letters, such as IN or US"),
            "{message}"
        );
    }
}
