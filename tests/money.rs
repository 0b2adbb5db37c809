//! Money always adds up. Every test of the whole app ends with a look through the books; here
//! is what can go wrong with money in particular.

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

/// An app whose workers would only be in the way.
async fn idle_app(credit: Usd) -> App {
    App::start_with(AppOptions {
        workers: 0,
        credit,
        ..AppOptions::default()
    })
    .await
}

/// The tenant's user, who pays.
async fn payer(app: &App) -> (UserId, WalletId) {
    sqlx::query_as(
        "select u.id, w.id from users u join wallets w on w.user_id = u.id where u.org_id = $1",
    )
    .bind(app.tenant.org)
    .fetch_one(&app.context.pool)
    .await
    .expect("a user with a wallet")
}

/// Replaces the catalogue: so much for each call that a carrier takes, and so much for each
/// minute, by the second.
async fn charge(app: &App, per_call: &str, per_minute: &str) {
    run(
        app,
        &format!(
            "update service_prices
             set price_usd = case service when 'attempt' then {per_call} when 'platform' then {per_minute} else 0 end"
        ),
    )
    .await;
}

/// Runs a statement.
async fn run(app: &App, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&app.context.pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Puts money into the wallet of the tenant's user.
async fn top_up(app: &App, amount: Usd) {
    let (user, _) = payer(app).await;
    let mut db = app.context.pool.begin().await.expect("transaction");
    operator_credit::grant_unscoped(&mut db, user, amount, app.context.clock.now())
        .await
        .expect("credit");
    db.commit().await.expect("commit");
}

/// Ends a call as its carrier would: it took the call, and it was answered for so long.
async fn end(app: &App, call: CallId, seconds: i32) {
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

/// One amount from the database.
async fn amount(app: &App, sql: &'static str) -> Usd {
    sqlx::query_scalar(sql)
        .fetch_one(&app.context.pool)
        .await
        .expect(sql)
}
