//! Accounts of the carrier: tokens, calls per second, counters.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::clock::Micros;
use crate::config::{AccountConfig, OverCps};
use crate::oracle::AccountTally;

const SECOND_MICROS: Micros = 1_000_000;

pub(crate) struct AccountState {
    pub(crate) sid: Arc<str>,
    pub(crate) token: Arc<str>,
    pub(crate) settings: AccountConfig,
    pub(crate) limiter: CpsLimiter,
    pub(crate) tally: AccountTally,
}

impl AccountState {
    fn new(sid: &str, settings: AccountConfig) -> Self {
        Self {
            sid: Arc::from(sid),
            token: Arc::from(settings.auth_token.as_str()),
            settings,
            limiter: CpsLimiter::default(),
            tally: AccountTally::default(),
        }
    }

    /// Dial time of a create that arrived at `arrived`; `None` refuses it.
    pub(crate) fn next_slot(&mut self, arrived: Micros) -> Option<Micros> {
        self.limiter
            .next_slot(arrived, self.settings.cps, self.settings.over_cps)
    }

    fn accepts_login(&self, user: &str, password: &str) -> bool {
        if user == &*self.sid {
            return password == self.settings.auth_token;
        }
        self.settings
            .api_keys
            .get(user)
            .is_some_and(|secret| secret == password)
    }
}

/// Limiter that gives at most `cps` slots in any window of a second: the n-th slot is at least a
/// second after the slot `cps` before it.
#[derive(Debug, Default)]
pub(crate) struct CpsLimiter(VecDeque<Micros>);

impl CpsLimiter {
    fn next_slot(&mut self, arrived: Micros, cps: u32, over: OverCps) -> Option<Micros> {
        let limit = usize::try_from(cps).unwrap_or(usize::MAX);
        if limit == 0 {
            return Some(arrived);
        }
        while self.0.len() > limit {
            self.0.pop_front();
        }
        let mut at = arrived;
        if self.0.len() == limit {
            let oldest = self.0.front().copied().unwrap_or(0);
            at = arrived.max(oldest.saturating_add(SECOND_MICROS));
            if at > arrived && over == OverCps::Refuse {
                return None;
            }
            self.0.pop_front();
        }
        self.0.push_back(at);
        Some(at)
    }
}

/// All accounts; any sid that starts with `AC` becomes an account at its first request, unless
/// only configured accounts are served.
pub(crate) struct AccountRegistry {
    list: Vec<AccountState>,
    by_sid: HashMap<Arc<str>, usize>,
    default: AccountConfig,
    known_only: bool,
}

impl AccountRegistry {
    pub(crate) fn new(
        known: &BTreeMap<String, AccountConfig>,
        default: AccountConfig,
        known_only: bool,
    ) -> Self {
        let mut accounts = Self {
            list: Vec::new(),
            by_sid: HashMap::new(),
            default,
            known_only,
        };
        for (sid, settings) in known {
            accounts.set(sid, settings.clone());
        }
        accounts
    }

    pub(crate) fn set(&mut self, sid: &str, settings: AccountConfig) {
        let known = self.find(sid).and_then(|index| self.list.get_mut(index));
        if let Some(customer) = known {
            customer.token = Arc::from(settings.auth_token.as_str());
            customer.settings = settings;
            return;
        }
        let customer = AccountState::new(sid, settings);
        self.by_sid
            .insert(Arc::clone(&customer.sid), self.list.len());
        self.list.push(customer);
    }

    pub(crate) fn find(&self, sid: &str) -> Option<usize> {
        self.by_sid.get(sid).copied()
    }

    pub(crate) fn get(&self, index: usize) -> Option<&AccountState> {
        self.list.get(index)
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut AccountState> {
        self.list.get_mut(index)
    }

    /// Index of the account of a request, if the credentials are valid.
    pub(crate) fn authenticate(
        &mut self,
        sid: &str,
        login: Option<&(String, String)>,
    ) -> Option<usize> {
        let (user, password) = login?;
        if self.find(sid).is_none() && !self.known_only && sid.starts_with("AC") {
            let is_valid = *password == self.default.auth_token && user == sid;
            if is_valid {
                self.set(sid, self.default.clone());
            }
        }
        let index = self.find(sid)?;
        self.get(index)?
            .accepts_login(user, password)
            .then_some(index)
    }

    pub(crate) fn settings(&self) -> BTreeMap<String, AccountConfig> {
        self.list
            .iter()
            .map(|customer| (customer.sid.to_string(), customer.settings.clone()))
            .collect()
    }

    /// Resets counters and limiters and keeps the accounts.
    pub(crate) fn reset(&mut self) {
        for customer in &mut self.list {
            customer.tally = AccountTally::default();
            customer.limiter = CpsLimiter::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::worst_window;

    #[test]
    fn a_queue_spreads_a_burst_over_seconds() {
        let mut pace = CpsLimiter::default();
        let slots: Vec<Micros> = (0..25)
            .map(|n| pace.next_slot(n, 10, OverCps::Queue).unwrap())
            .collect();
        assert_eq!(slots[..10], (0..10).collect::<Vec<_>>());
        assert_eq!(slots[10], SECOND_MICROS);
        assert_eq!(slots[24], 2 * SECOND_MICROS + 4);
        assert_eq!(worst_window(slots).unwrap().0, 10);
    }

    #[test]
    fn a_refusal_takes_no_slot() {
        let mut pace = CpsLimiter::default();
        assert!(pace.next_slot(0, 1, OverCps::Refuse).is_some());
        assert!(pace.next_slot(999_999, 1, OverCps::Refuse).is_none());
        assert!(pace.next_slot(1_000_000, 1, OverCps::Refuse).is_some());
    }

    #[test]
    fn only_the_right_credentials_enter() {
        let mut accounts = AccountRegistry::new(&BTreeMap::new(), "secret".parse().unwrap(), false);
        let login = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));

        assert!(accounts.authenticate("AC1", None).is_none());
        assert!(
            accounts
                .authenticate("AC1", login("AC1", "wrong").as_ref())
                .is_none()
        );
        assert!(
            accounts
                .authenticate("XX1", login("XX1", "secret").as_ref())
                .is_none()
        );
        assert!(
            accounts
                .authenticate("AC1", login("AC2", "secret").as_ref())
                .is_none()
        );
        assert_eq!(
            accounts.authenticate("AC1", login("AC1", "secret").as_ref()),
            Some(0)
        );

        let mut settings: AccountConfig = "other".parse().unwrap();
        settings.api_keys.insert("SK1".to_owned(), "key".to_owned());
        accounts.set("AC1", settings);
        assert!(
            accounts
                .authenticate("AC1", login("SK1", "key").as_ref())
                .is_some()
        );
        assert!(
            accounts
                .authenticate("AC1", login("AC1", "secret").as_ref())
                .is_none()
        );
    }
}
