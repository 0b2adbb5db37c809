//! Grants against a reference that counts coins: every cent is a coin with the priority, the
//! expiry and the age of its grant, and whoever pays takes the first that are free.

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

use super::{charge, idle_app, run};
use crate::harness::app::{App, phone_number};

/// A cent, and a second of talk.
const COIN: i64 = 10_000;

#[derive(Clone, Debug)]
enum Step {
    Grant {
        coins: i64,
        priority: i16,
        lasts: Option<i64>,
    },
    Hold {
        coins: i64,
    },
    /// Ends one of the calls that have a hold; or, if it has ended, corrects it.
    End {
        which: usize,
        coins: i64,
    },
    Pass {
        ticks: i64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1_i64..30, prop::sample::select(vec![10_i16, 50]), prop::option::of(1_i64..12))
            .prop_map(|(coins, priority, lasts)| Step::Grant { coins, priority, lasts }),
        4 => (1_i64..25).prop_map(|coins| Step::Hold { coins }),
        4 => (0_usize..6, 0_i64..30).prop_map(|(which, coins)| Step::End { which, coins }),
        2 => (1_i64..5).prop_map(|ticks| Step::Pass { ticks }),
    ];
    prop::collection::vec(step, 1..40)
}

/// Where a coin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    /// Set aside for, or spent on, the n-th call.
    With(usize),
    Gone,
}

#[derive(Clone, Debug)]
struct Coin {
    priority: i16,
    expires: Option<i64>,
    grant: usize,
    place: Place,
}

#[derive(Clone, Debug)]
struct Call {
    held: i64,
    /// What it has of the pool.
    pool: i64,
    /// Its coins, in the order in which it took them.
    coins: Vec<usize>,
    ended: bool,
    cost: i64,
}

/// The reference.
#[derive(Debug, Default)]
struct Purse {
    now: i64,
    coins: Vec<Coin>,
    grants: usize,
    pool: i64,
    calls: Vec<Call>,
}

impl Purse {
    fn over(&self, coin: &Coin) -> bool {
        coin.expires.is_some_and(|until| until <= self.now)
    }

    fn sweep(&mut self) {
        let now = self.now;
        for coin in &mut self.coins {
            if coin.place == Place::Free && coin.expires.is_some_and(|until| until <= now) {
                coin.place = Place::Gone;
            }
        }
    }

    fn grant(&mut self, coins: i64, priority: i16, lasts: Option<i64>) {
        for _ in 0..coins {
            self.coins.push(Coin {
                priority,
                expires: lasts.map(|lasts| self.now + lasts),
                grant: self.grants,
                place: Place::Free,
            });
        }
        self.grants += 1;
    }

    /// The coins that are free, the first to be spent first.
    fn free(&self) -> Vec<usize> {
        let mut free: Vec<usize> = (0..self.coins.len())
            .filter(|n| self.coins[*n].place == Place::Free && !self.over(&self.coins[*n]))
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
        i64::try_from(self.free().len()).unwrap() + self.pool
    }

    /// Takes so many for a call: free coins, then of the pool, whether there is so much or not.
    fn take(&mut self, call: usize, coins: i64) -> (Vec<usize>, i64) {
        let wanted = usize::try_from(coins).unwrap();
        let taken: Vec<usize> = self.free().into_iter().take(wanted).collect();
        for coin in &taken {
            self.coins[*coin].place = Place::With(call);
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
        let (taken, pool) = self.take(call, coins);
        self.calls.push(Call {
            held: coins,
            pool,
            coins: taken,
            ended: false,
            cost: 0,
        });
        true
    }

    /// A call that has ended costs so many: what it has pays first, and what it does not need
    /// is free again.
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
                self.coins[coin].place = Place::Free;
            }
        }
        let from_pool = left.min(call.pool);
        self.pool += call.pool - from_pool;
        left -= from_pool;
        let (more, beyond) = self.take(which, left);
        kept.extend(more);
        self.calls[which] = Call {
            pool: from_pool + beyond,
            coins: kept,
            ended: true,
            cost,
            ..call
        };
        self.sweep();
    }

    fn posted(&self) -> i64 {
        let there = self.coins.iter().filter(|coin| match coin.place {
            Place::Free => true,
            Place::With(call) => !self.calls[call].ended,
            Place::Gone => false,
        });
        let open = self.calls.iter().filter(|call| !call.ended);
        i64::try_from(there.count()).unwrap() + self.pool + open.map(|call| call.pool).sum::<i64>()
    }

    fn held(&self) -> i64 {
        let open = self.calls.iter().filter(|call| !call.ended);
        open.map(|call| call.held).sum()
    }

    /// What remains of each grant, and what of that holds have taken.
    fn grants(&self) -> Vec<(i64, i64)> {
        (0..self.grants)
            .map(|grant| {
                let of = |wanted: fn(&Self, Place) -> bool| {
                    let coins = self.coins.iter();
                    let coins =
                        coins.filter(|coin| coin.grant == grant && wanted(self, coin.place));
                    i64::try_from(coins.count()).unwrap()
                };
                let pinned = of(
                    |purse, place| matches!(place, Place::With(call) if !purse.calls[call].ended),
                );
                (of(|_, place| place == Place::Free) + pinned, pinned)
            })
            .collect()
    }
}

/// A wallet in the database that the same happens to.
struct Real<'a> {
    app: &'a App,
    wallet: WalletId,
    user: UserId,
    began: DateTime<Utc>,
    snapshot: SnapshotId,
    calls: Vec<CallId>,
    grants: Vec<GrantId>,
}

/// Makes e-mail addresses differ.
fn next(counter: &Cell<u32>) -> u32 {
    counter.set(counter.get() + 1);
    counter.get()
}

impl<'a> Real<'a> {
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
            began: app.context.clock.now(),
            snapshot,
            calls: Vec::new(),
            grants: Vec::new(),
        }
    }

    fn at(&self, tick: i64) -> DateTime<Utc> {
        self.began + TimeDelta::hours(tick)
    }

    async fn grant(&mut self, now: i64, coins: i64, priority: i16, lasts: Option<i64>) {
        let mut db = self.app.context.pool.begin().await.unwrap();
        lock_unscoped(&mut db, &[self.wallet], self.at(now))
            .await
            .unwrap();
        let grant = GrantId::new();
        let leg = |account, entry, amount| Leg {
            account,
            entry,
            amount,
            grant: Some(grant),
        };
        let amount = Usd(coins * COIN);
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
        .bind(lasts.map(|lasts| self.at(now + lasts)))
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
        let mut wallets = lock_unscoped(&mut db, &[self.wallet], self.at(now))
            .await
            .unwrap();
        let wanted = HoldRequest {
            call,
            org: self.app.tenant.org,
            wallet: self.wallet,
            snapshot: self.snapshot,
            amount: Usd(coins * COIN),
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
        super::end(self.app, call, i32::try_from(seconds).unwrap()).await;
        peal_shared::billing::settle::settle_due_unscoped(&self.app.context.pool, 10, self.at(now))
            .await
            .unwrap();
    }

    /// What there is: available, posted, held, and of each grant what remains and is pinned.
    async fn picture(&self, now: i64) -> (i64, i64, i64, Vec<(i64, i64)>) {
        expire_due_unscoped(&self.app.context.pool, self.at(now))
            .await
            .unwrap();
        let mut db = self.app.context.pool.acquire().await.unwrap();
        let seen = read_unscoped(&mut db, &[self.wallet], self.at(now))
            .await
            .unwrap();
        let wallet = &seen[&self.wallet];
        let coins = |amount: Usd| {
            assert_eq!(amount.0 % COIN, 0);
            amount.0 / COIN
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

async fn play(app: &App, n: u32, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut purse = Purse::default();
    let mut real = Real::new(app, n).await;
    for step in steps {
        match *step {
            Step::Grant {
                coins,
                priority,
                lasts,
            } => {
                purse.grant(coins, priority, lasts);
                real.grant(purse.now, coins, priority, lasts).await;
            }
            Step::Hold { coins } => {
                prop_assert_eq!(
                    purse.hold(coins),
                    real.hold(purse.now, coins).await,
                    "{:?}",
                    step
                );
            }
            Step::End { which, coins } => {
                if which >= purse.calls.len() {
                    continue;
                }
                purse.end(which, coins);
                real.end(purse.now, which, coins).await;
            }
            Step::Pass { ticks } => {
                purse.now += ticks;
                purse.sweep();
            }
        }
        let expected = (
            purse.available(),
            purse.posted(),
            purse.held(),
            purse.grants(),
        );
        prop_assert_eq!(expected, real.picture(purse.now).await, "{:?}", step);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_are_spent_held_and_expire_as_coins_would() {
    let app = idle_app(Usd::dollars(1)).await;
    charge(&app, "0", "0.6").await;
    // A call, so that there is a snapshot of these prices.
    let path = format!(
        "/api/call/create_call?phoneNumber=%2B{}&agent_id={}",
        phone_number(9999).trim_start_matches('+'),
        app.tenant.agent
    );
    run(&app, "update agents set session_timeout_secs = 10").await;
    app.post(&path, serde_json::json!({})).await.expect(202);
    let counter = Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&steps(), |steps| {
            Handle::current().block_on(play(&app, next(&counter), &steps))
        })
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    app.finish().await;
}
