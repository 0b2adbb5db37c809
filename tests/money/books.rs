//! The ledger's tables: changes that the database refuses for every role, and the checks of the
//! verifier.

use peal_shared::billing::verify::verify_unscoped;
use peal_shared::platform::money::Usd;
use reqwest::Method;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{app_without_workers, end_call, execute_sql, paying_user, set_prices};
use crate::harness::app::{App, phone_number, send_request};

/// An app with one charged call.
async fn app_with_charged_call() -> App {
    let app = app_without_workers(Usd::dollars(100)).await;
    set_prices(&app, "0", "0.6").await;
    let call = queue_call(&app, 0).await;
    end_call(&app, call, 30).await;
    app.settle().await;
    app.verify().await;
    app
}

/// Queues a direct call.
async fn queue_call(app: &App, n: u32) -> peal_shared::platform::ids::CallId {
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
        phone_number(n).trim_start_matches('+'),
        app.tenant.agent
    );
    let queued = send_request(app.request(Method::POST, &path).json(&json!({})))
        .await
        .expect(202);
    queued["call_session_id"]
        .as_str()
        .expect("an id")
        .parse()
        .expect("an id")
}

#[tokio::test(flavor = "multi_thread")]
async fn posted_rows_cannot_be_changed_even_by_the_owner_of_the_tables() {
    let app = app_with_charged_call().await;
    // The owner of the tables, not one of the application's roles.
    let mut owner = PgConnection::connect(app.database_url()).await.unwrap();

    for table in [
        "ledger_entries",
        "ledger_transactions",
        "ledger_accounts",
        "charges",
        "price_snapshots",
    ] {
        for change in [
            format!("update {table} set org_id = org_id"),
            format!("delete from {table}"),
        ] {
            let refused = sqlx::query(AssertSqlSafe(change.clone()))
                .execute(&mut owner)
                .await;
            let refused = refused.expect_err(&change).to_string();
            assert!(refused.contains("append-only"), "{change}: {refused}");
        }
    }

    for table in [
        "ledger_entries",
        "ledger_transactions",
        "grant_uses",
        "charges",
    ] {
        let change = format!("truncate {table} cascade");
        let refused = sqlx::query(AssertSqlSafe(change.clone()))
            .execute(&mut owner)
            .await;
        let refused = refused.expect_err(&change).to_string();
        assert!(refused.contains("append-only"), "{change}: {refused}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_and_charges_refer_only_to_rows_of_their_organisation() {
    let app = app_with_charged_call().await;
    queue_call(&app, 1).await;
    let mut owner = PgConnection::connect(app.database_url()).await.unwrap();
    let other = "insert into organizations (id, name) values (gen_random_uuid(), 'Other')";
    sqlx::query(other).execute(&mut owner).await.unwrap();
    let others = "select id from wallets w where w.org_id = (select id from organizations where name = 'Other')";
    let hold = |changed: &str| {
        format!(
            "with old as (delete from holds where state = 'open' returning *)
             insert into holds
             select (jsonb_populate_record(null::holds, to_jsonb(old) || jsonb_build_object({changed}))).*
             from old"
        )
    };

    let charge = |changed: &str| {
        format!(
            "insert into charges
             select (jsonb_populate_record(null::charges, to_jsonb(c)
                         || jsonb_build_object('id', gen_random_uuid(), 'version', 9, {changed}))).*
             from charges c"
        )
    };

    for (change, refusal) in [
        (
            hold(&format!("'wallet_id', ({others})")),
            "a wallet or of prices that its organisation does not have",
        ),
        (
            hold("'price_snapshot_id', gen_random_uuid()"),
            "a wallet or of prices that its organisation does not have",
        ),
        (
            format!("update holds set wallet_id = ({others})"),
            "keeps its call, its wallet and its prices",
        ),
        (
            charge("'transaction_id', gen_random_uuid()"),
            "a transaction that its organisation does not have",
        ),
        (
            charge(&format!("'wallet_id', ({others})")),
            "charge_is_of_its_hold",
        ),
        (
            charge("'price_snapshot_id', gen_random_uuid()"),
            "charge_is_of_its_hold",
        ),
        (
            format!("delete from wallets where id = ({others})"),
            "append-only",
        ),
    ] {
        let refused = sqlx::query(AssertSqlSafe(change.clone()))
            .execute(&mut owner)
            .await;
        let refused = refused.expect_err(&change).to_string();
        assert!(refused.contains(refusal), "{change}: {refused}");
    }

    // The same statements without the violation succeed, so the changes above fail for the
    // expected reason.
    for change in [hold("'pins', '[]'::jsonb"), charge("'version', 9")] {
        let mut db = owner.begin().await.unwrap();
        let allowed = sqlx::query(AssertSqlSafe(change.clone()))
            .execute(&mut *db)
            .await;
        allowed.unwrap_or_else(|refused| panic!("{change}: {refused}"));
        db.rollback().await.unwrap();
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_does_not_sum_to_zero_cannot_be_committed() {
    let app = app_with_charged_call().await;
    let mut owner = PgConnection::connect(app.database_url()).await.unwrap();

    for (case, amounts, balanced) in [
        ("one leg", &[5_i64][..], false),
        ("legs that differ", &[5, -4], false),
        ("legs that match", &[5, -5], true),
    ] {
        let mut db = owner.begin().await.unwrap();
        sqlx::query(
            "insert into ledger_transactions (id, org_id, kind, idem_key)
             select $1, org_id, 'grant', $2 from ledger_accounts limit 1",
        )
        .bind(peal_shared::platform::ids::TransactionId::new())
        .bind(case)
        .execute(&mut *db)
        .await
        .unwrap();
        for amount in amounts {
            sqlx::query(
                "insert into ledger_entries (org_id, transaction_id, account_id, entry_type, amount_micros)
                 select t.org_id, t.id, a.id, 'mint', $2
                 from ledger_transactions t
                 join ledger_accounts a on a.org_id = t.org_id and a.kind = 'mint'
                 where t.idem_key = $1",
            )
            .bind(case)
            .bind(amount)
            .execute(&mut *db)
            .await
            .unwrap();
        }
        // A balanced transaction is rolled back, so that the ledger stays unchanged.
        let committed = sqlx::query("set constraints all immediate")
            .execute(&mut *db)
            .await;
        assert_eq!(committed.is_ok(), balanced, "{case}: {committed:?}");
        db.rollback().await.unwrap();
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verifier_detects_every_kind_of_drift() {
    let app = app_with_charged_call().await;
    let (_, wallet) = paying_user(&app).await;
    let held = queue_call(&app, 1).await;
    app.verify().await;

    for (damage, repair, check) in [
        (
            "update wallets set posted_micros = posted_micros + 1",
            "update wallets set posted_micros = posted_micros - 1",
            "wallet_is_its_entries",
        ),
        (
            "update wallets set held_micros = held_micros + 1",
            "update wallets set held_micros = held_micros - 1",
            "wallet_holds_its_holds",
        ),
        (
            "update wallets set cap_spent_micros = cap_spent_micros + 1",
            "update wallets set cap_spent_micros = cap_spent_micros - 1",
            "wallet_counts_its_month",
        ),
        (
            "update grants set remaining_micros = remaining_micros - 1",
            "update grants set remaining_micros = remaining_micros + 1",
            "grant_is_its_uses",
        ),
        (
            "update grants set pinned_micros = pinned_micros - 1",
            "update grants set pinned_micros = pinned_micros + 1",
            "grant_pins_its_holds",
        ),
        (
            "update calls set duration_seconds = 31 where status = 'final'",
            "update calls set duration_seconds = 30 where status = 'final'",
            "call_is_charged_its_price",
        ),
        (
            "update holds set state = 'voided', ended_at = now() where state = 'open'",
            "update holds set state = 'open', ended_at = null where state = 'voided'",
            "hold_ends_with_its_call",
        ),
    ] {
        execute_sql(&app, damage).await;
        let found = verify_unscoped(&app.context.pool).await.unwrap();
        assert!(
            found.iter().any(|offender| offender.check == check),
            "{damage}: {found:?}"
        );
        execute_sql(&app, repair).await;
        app.verify().await;
    }

    assert_ne!(held.to_string(), wallet.to_string());
    app.finish().await;
}
