//! Money: holds, charges, grants, the ledger's constraints and batches without credit. Every test
//! of the whole app ends with a ledger verification; these tests cover money itself.

mod books;
mod grants;
mod holds;
mod settlement;
mod starvation;

use peal_shared::platform::ids::{CallId, UserId, WalletId};
use peal_shared::platform::money::Usd;
use peal_shared::wallets::operator_credit;
use sqlx::AssertSqlSafe;

use crate::harness::app::{App, AppOptions};

/// An app without workers.
async fn app_without_workers(credit: Usd) -> App {
    App::start_with(AppOptions {
        workers: 0,
        credit,
        ..AppOptions::default()
    })
    .await
}

/// The tenant's user and its wallet.
async fn paying_user(app: &App) -> (UserId, WalletId) {
    sqlx::query_as(
        "select u.id, w.id from users u join wallets w on w.user_id = u.id where u.org_id = $1",
    )
    .bind(app.tenant.org)
    .fetch_one(&app.context.pool)
    .await
    .expect("a user with a wallet")
}

/// Sets the prices in USD of each call that the carrier accepts and of each minute, billed by the
/// second.
async fn set_prices(app: &App, per_call: &str, per_minute: &str) {
    execute_sql(
        app,
        &format!(
            "update service_prices
             set price_usd = case service when 'attempt' then {per_call} when 'platform' then {per_minute} else 0 end"
        ),
    )
    .await;
}

/// Runs a statement.
async fn execute_sql(app: &App, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&app.context.pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Credits the wallet of the tenant's user.
async fn top_up(app: &App, amount: Usd) {
    let (user, _) = paying_user(app).await;
    let mut db = app.context.pool.begin().await.expect("transaction");
    operator_credit::grant_unscoped(&mut db, user, amount, app.context.clock.now())
        .await
        .expect("credit");
    db.commit().await.expect("commit");
}

/// Marks a call as accepted by the carrier, answered and ended after `seconds`.
async fn end_call(app: &App, call: CallId, seconds: i32) {
    sqlx::query(
        "with ended as (
             update calls
             set status = 'final', outcome = 'completed', ended_at = now(), duration_seconds = $2,
                 carrier_call_id = id::text
             where id = $1
             returning id
         )
         insert into charges_due (call_id) select id from ended",
    )
    .bind(call)
    .bind(seconds)
    .execute(&app.context.pool)
    .await
    .expect("an end");
}

/// Queries one amount.
async fn query_amount(app: &App, sql: &'static str) -> Usd {
    sqlx::query_scalar(sql)
        .fetch_one(&app.context.pool)
        .await
        .expect(sql)
}
