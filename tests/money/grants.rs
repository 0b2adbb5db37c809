//! Grants against a reference model: every cent is a coin with the priority, the expiry and the age
//! of its grant, and a payment takes the first free coins.

use std::cell::Cell;

use chrono::{DateTime, TimeDelta, Utc};
use peal_shared::access::Role;
use peal_shared::platform::ids::{CallId, GrantId, SnapshotId, UserId, WalletId};
use peal_shared::platform::money::Usd;
use peal_shared::users;
use peal_shared::wallets::expiry::expire_due_unscoped;
use peal_shared::wallets::holds::{HoldRequest, insert_unscoped, try_hold};
use peal_shared::wallets::ledger::{
    CallTotals, EntryType, LedgerAccount, Leg, Posting, TransactionKind, post_unscoped,
};
use peal_shared::wallets::{lock_unscoped, read_unscoped};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use tokio::runtime::Handle;

use super::{app_without_workers, execute_sql, set_prices};
use crate::harness::app::{App, phone_number};

/// One cent in micro-dollars, the price of a second of talk.
const COIN_MICROS: i64 = 10_000;

#[derive(Clone, Debug)]
enum WalletStep {
    Grant {
        coins: i64,
        priority: i16,
        lasts: Option<i64>,
    },
    Hold {
        coins: i64,
    },
    /// Ends one of the calls with a hold, or corrects an ended one.
    End {
        which: usize,
        coins: i64,
    },
    Pass {
        ticks: i64,
    },
}

fn step_lists() -> impl Strategy<Value = Vec<WalletStep>> {
    let step = prop_oneof![
        3 => (1_i64..30, prop::sample::select(vec![10_i16, 50]), prop::option::of(1_i64..12))
            .prop_map(|(coins, priority, lasts)| WalletStep::Grant { coins, priority, lasts }),
        4 => (1_i64..25).prop_map(|coins| WalletStep::Hold { coins }),
        4 => (0_usize..6, 0_i64..30).prop_map(|(which, coins)| WalletStep::End { which, coins }),
        2 => (1_i64..5).prop_map(|ticks| WalletStep::Pass { ticks }),
    ];
    prop::collection::vec(step, 1..40)
}

/// Location of a coin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CoinPlace {
    Free,
    /// Held for, or spent on, the n-th call.
    With(usize),
    Gone,
}

#[derive(Clone, Debug)]
struct ModelCoin {
    priority: i16,
    expires: Option<i64>,
    grant: usize,
    place: CoinPlace,
}

#[derive(Clone, Debug)]
struct ModelCall {
    held: i64,
    /// Coins held from the pool.
    from_pool: i64,
    /// Coins of grants, in the order of taking.
    coins: Vec<usize>,
    ended: bool,
    cost: i64,
}

/// Reference model of a wallet.
#[derive(Debug, Default)]
struct WalletModel {
    now: i64,
    coins: Vec<ModelCoin>,
    grants: usize,
    pool: i64,
    calls: Vec<ModelCall>,
}

impl WalletModel {
    fn is_expired(&self, coin: &ModelCoin) -> bool {
        coin.expires.is_some_and(|until| until <= self.now)
    }

    fn expire_coins(&mut self) {
        let now = self.now;
        for coin in &mut self.coins {
            if coin.place == CoinPlace::Free && coin.expires.is_some_and(|until| until <= now) {
                coin.place = CoinPlace::Gone;
            }
        }
    }

    fn grant(&mut self, coins: i64, priority: i16, lasts: Option<i64>) {
        for _ in 0..coins {
            self.coins.push(ModelCoin {
                priority,
                expires: lasts.map(|lasts| self.now + lasts),
                grant: self.grants,
                place: CoinPlace::Free,
            });
        }
        self.grants += 1;
    }

    /// Free coins, in the order of spending.
    fn free_coins(&self) -> Vec<usize> {
        let mut free: Vec<usize> = (0..self.coins.len())
            .filter(|n| {
                self.coins[*n].place == CoinPlace::Free && !self.is_expired(&self.coins[*n])
            })
            .collect();
        free.sort_by_key(|n| {
            let coin = &self.coins[*n];
            (
                coin.priority,
                coin.expires.unwrap_or(i64::MAX),
                coin.grant,
                *n,
            )
        });
        free
    }

    fn available(&self) -> i64 {
        i64::try_from(self.free_coins().len()).unwrap() + self.pool
    }

    /// Takes coins for a call: free coins first, the rest from the pool, which may go below zero.
    fn take_coins(&mut self, call: usize, coins: i64) -> (Vec<usize>, i64) {
        let wanted = usize::try_from(coins).unwrap();
        let taken: Vec<usize> = self.free_coins().into_iter().take(wanted).collect();
        for coin in &taken {
            self.coins[*coin].place = CoinPlace::With(call);
        }
        let rest = coins - i64::try_from(taken.len()).unwrap();
        self.pool -= rest;
        (taken, rest)
    }

    fn hold(&mut self, coins: i64) -> bool {
        if self.available() < coins {
            return false;
        }
        let call = self.calls.len();
        let (taken, pool) = self.take_coins(call, coins);
        self.calls.push(ModelCall {
            held: coins,
            from_pool: pool,
            coins: taken,
            ended: false,
            cost: 0,
        });
        true
    }

    /// Charges an ended call: its held coins pay first, and the coins it does not need become free
    /// again.
    fn end(&mut self, which: usize, cost: i64) {
        let mut call = self.calls[which].clone();
        if call.ended && call.cost == cost {
            return;
        }

        let mut left = cost;
        let mut kept = Vec::new();
        for coin in std::mem::take(&mut call.coins) {
            if left > 0 {
                left -= 1;
                kept.push(coin);
            } else {
                self.coins[coin].place = CoinPlace::Free;
            }
        }

        let from_pool = left.min(call.from_pool);
        self.pool += call.from_pool - from_pool;
        left -= from_pool;
        let (more, beyond) = self.take_coins(which, left);
        kept.extend(more);
        self.calls[which] = ModelCall {
            from_pool: from_pool + beyond,
            coins: kept,
            ended: true,
            cost,
            ..call
        };
        self.expire_coins();
    }

    fn posted(&self) -> i64 {
        let owned = self.coins.iter().filter(|coin| match coin.place {
            CoinPlace::Free => true,
            CoinPlace::With(call) => !self.calls[call].ended,
            CoinPlace::Gone => false,
        });
        let open = self.calls.iter().filter(|call| !call.ended);
        i64::try_from(owned.count()).unwrap()
            + self.pool
            + open.map(|call| call.from_pool).sum::<i64>()
    }

    fn held(&self) -> i64 {
        let open = self.calls.iter().filter(|call| !call.ended);
        open.map(|call| call.held).sum()
    }

    /// Remaining coins of each grant, and how many of them are pinned by holds.
    fn grant_balances(&self) -> Vec<(i64, i64)> {
        (0..self.grants)
            .map(|grant| {
                let of = |wanted: fn(&Self, CoinPlace) -> bool| {
                    let coins = self.coins.iter();
                    let coins =
                        coins.filter(|coin| coin.grant == grant && wanted(self, coin.place));
                    i64::try_from(coins.count()).unwrap()
                };
                let pinned = of(
                    |model, place| matches!(place, CoinPlace::With(call) if !model.calls[call].ended),
                );
                (of(|_, place| place == CoinPlace::Free) + pinned, pinned)
            })
            .collect()
    }
}

/// A wallet in the database that takes the same steps.
struct DatabaseWallet<'a> {
    app: &'a App,
    wallet: WalletId,
    user: UserId,
    started_at: DateTime<Utc>,
    snapshot: SnapshotId,
    calls: Vec<CallId>,
    grants: Vec<GrantId>,
}

/// Increments the counter that makes e-mail addresses unique.
fn next_number(counter: &Cell<u32>) -> u32 {
    counter.set(counter.get() + 1);
    counter.get()
}

impl<'a> DatabaseWallet<'a> {
    async fn new(app: &'a App, n: u32) -> Self {
        let mut db = app.context.pool.begin().await.unwrap();
        let email = format!("payer-{n}@example.com");
        let user = users::ensure_user_unscoped(&mut db, app.tenant.org, &email, Role::User)
            .await
            .unwrap();
        let wallet = sqlx::query_scalar("select id from wallets where user_id = $1")
            .bind(user)
            .fetch_one(&mut *db)
            .await
            .unwrap();
        db.commit().await.unwrap();
        let snapshot = sqlx::query_scalar("select id from price_snapshots limit 1")
            .fetch_one(&app.context.pool)
            .await
            .unwrap();
        Self {
            app,
            wallet,
            user,
            started_at: app.context.clock.now(),
            snapshot,
            calls: Vec::new(),
            grants: Vec::new(),
        }
    }

    fn time_of_tick(&self, tick: i64) -> DateTime<Utc> {
        self.started_at + TimeDelta::hours(tick)
    }

    async fn grant(&mut self, now: i64, coins: i64, priority: i16, lasts: Option<i64>) {
        let mut db = self.app.context.pool.begin().await.unwrap();
        lock_unscoped(&mut db, &[self.wallet], self.time_of_tick(now))
            .await
            .unwrap();
        let grant = GrantId::new();
        let leg = |account, entry, amount| Leg {
            account,
            entry,
            amount,
            grant: Some(grant),
        };
        let amount = Usd(coins * COIN_MICROS);
        let posting = Posting {
            org: self.app.tenant.org,
            kind: TransactionKind::Grant,
            idem_key: grant.to_string(),
            reverses: None,
            actor: None,
            reason: None,
            call_totals: CallTotals::default(),
            legs: vec![
                leg(LedgerAccount::Wallet(self.wallet), EntryType::Grant, amount),
                leg(LedgerAccount::Mint, EntryType::Mint, -amount),
            ],
            grant_uses: Vec::new(),
        };

        let transactions = post_unscoped(&mut db, &[posting]).await.unwrap();
        sqlx::query(
            "insert into grants (id, org_id, wallet_id, source, amount_micros, remaining_micros, priority, expires_at,
                                 transaction_id, created_at)
             values ($1, $2, $3, 'mint', $4, $4, $5, $6, $7, clock_timestamp())",
        )
        .bind(grant)
        .bind(self.app.tenant.org)
        .bind(self.wallet)
        .bind(amount)
        .bind(priority)
        .bind(lasts.map(|lasts| self.time_of_tick(now + lasts)))
        .bind(transactions[0])
        .execute(&mut *db)
        .await
        .unwrap();

        db.commit().await.unwrap();
        self.grants.push(grant);
    }

    async fn hold(&mut self, now: i64, coins: i64) -> bool {
        let mut db = self.app.context.pool.begin().await.unwrap();
        let call = CallId::new();
        let line = phone_number(u32::try_from(self.calls.len()).unwrap());
        sqlx::query(
            "insert into calls (id, org_id, user_id, agent_id, phone_id, trunk_id, from_number, to_number, status)
             values ($1, $2, $3, $4, $5, $6, '+12125550100', $7, 'queued')",
        )
        .bind(call)
        .bind(self.app.tenant.org)
        .bind(self.user)
        .bind(self.app.tenant.agent)
        .bind(self.app.tenant.phone)
        .bind(self.app.tenant.trunk)
        .bind(line)
        .execute(&mut *db)
        .await
        .unwrap();

        let mut wallets = lock_unscoped(&mut db, &[self.wallet], self.time_of_tick(now))
            .await
            .unwrap();
        let wanted = HoldRequest {
            call,
            org: self.app.tenant.org,
            wallet: self.wallet,
            snapshot: self.snapshot,
            amount: Usd(coins * COIN_MICROS),
        };
        let Ok(hold) = try_hold(wallets.get_mut(&self.wallet).unwrap(), &wanted) else {
            return false;
        };
        insert_unscoped(&mut db, &[hold]).await.unwrap();
        db.commit().await.unwrap();
        self.calls.push(call);
        true
    }

    async fn end(&self, now: i64, which: usize, seconds: i64) {
        let call = self.calls[which];
        super::end_call(self.app, call, i32::try_from(seconds).unwrap()).await;
        peal_shared::billing::settle::settle_due_unscoped(
            &self.app.context.pool,
            10,
            self.time_of_tick(now),
        )
        .await
        .unwrap();
    }

    /// State of the wallet: available, posted, held, and of each grant the remaining and pinned
    /// coins.
    async fn state(&self, now: i64) -> (i64, i64, i64, Vec<(i64, i64)>) {
        expire_due_unscoped(&self.app.context.pool, self.time_of_tick(now))
            .await
            .unwrap();
        let mut db = self.app.context.pool.acquire().await.unwrap();
        let wallets = read_unscoped(&mut db, &[self.wallet], self.time_of_tick(now))
            .await
            .unwrap();
        let wallet = &wallets[&self.wallet];
        let coins = |amount: Usd| {
            assert_eq!(amount.0 % COIN_MICROS, 0);
            amount.0 / COIN_MICROS
        };

        let mut grants = Vec::new();
        for grant in &self.grants {
            let (remaining, pinned): (Usd, Usd) =
                sqlx::query_as("select remaining_micros, pinned_micros from grants where id = $1")
                    .bind(grant)
                    .fetch_one(&mut *db)
                    .await
                    .unwrap();
            grants.push((coins(remaining), coins(pinned)));
        }

        (
            coins(wallet.available()),
            coins(wallet.posted),
            coins(wallet.held),
            grants,
        )
    }
}

async fn run_steps(app: &App, n: u32, steps: &[WalletStep]) -> Result<(), TestCaseError> {
    let mut model = WalletModel::default();
    let mut real = DatabaseWallet::new(app, n).await;

    for step in steps {
        match *step {
            WalletStep::Grant {
                coins,
                priority,
                lasts,
            } => {
                model.grant(coins, priority, lasts);
                real.grant(model.now, coins, priority, lasts).await;
            }
            WalletStep::Hold { coins } => {
                prop_assert_eq!(
                    model.hold(coins),
                    real.hold(model.now, coins).await,
                    "{:?}",
                    step
                );
            }
            WalletStep::End { which, coins } => {
                if which >= model.calls.len() {
                    continue;
                }
                model.end(which, coins);
                real.end(model.now, which, coins).await;
            }
            WalletStep::Pass { ticks } => {
                model.now += ticks;
                model.expire_coins();
            }
        }
        let expected = (
            model.available(),
            model.posted(),
            model.held(),
            model.grant_balances(),
        );
        prop_assert_eq!(expected, real.state(model.now).await, "{:?}", step);
    }

    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_behave_like_the_reference_model() {
    let app = app_without_workers(Usd::dollars(1)).await;
    set_prices(&app, "0", "0.6").await;

    // A call creates the snapshot of these prices.
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
        phone_number(9999).trim_start_matches('+'),
        app.tenant.agent
    );
    execute_sql(&app, "update agents set session_timeout_secs = 10").await;
    app.post(&path, serde_json::json!({})).await.expect(202);

    let counter = Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&step_lists(), |steps| {
            Handle::current().block_on(run_steps(&app, next_number(&counter), &steps))
        })
    });

    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    app.finish().await;
}
