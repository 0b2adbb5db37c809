//! Fair division of a trunk's slots: round robin over organisations, and within an organisation
//! round robin over its lanes, which are each of its batches and all its direct calls together.
//! Turns are counted in rows (start-time fair queueing): the lane served last waits for the
//! others however the slots are split into claims, and an idle lane joins at the current turn
//! instead of catching up.

use std::collections::HashMap;

use crate::platform::ids::{BatchId, OrgId};

/// A batch, or the direct calls of an organisation, with due work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialLane {
    pub org: OrgId,
    /// None for the organisation's direct calls.
    pub batch: Option<BatchId>,
    pub turn: i64,
    /// More calls that its limit and its due work allow.
    pub capacity: u32,
}

/// An organisation's turn on the trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrgShare {
    pub turn: i64,
    /// More calls that the organisation's limit allows.
    pub capacity: u32,
}

/// Slots given to one lane, and its turn afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotGrant {
    pub org: OrgId,
    pub batch: Option<BatchId>,
    pub count: u32,
    pub turn: i64,
}

/// Result of one division.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotDivision {
    pub grants: Vec<SlotGrant>,
    /// Each served organisation's turn afterwards.
    pub org_turns: Vec<(OrgId, i64)>,
    /// The trunk's virtual time afterwards.
    pub turn: i64,
}

struct LaneProgress {
    lane: DialLane,
    given: u32,
}

/// Divides `slots` over the lanes. `turn` is the trunk's virtual time: no organisation
/// starts before it.
#[must_use]
pub fn divide_slots(
    slots: u32,
    turn: i64,
    shares: &HashMap<OrgId, OrgShare>,
    lanes: Vec<DialLane>,
) -> SlotDivision {
    // 1. Group the lanes by organisation.
    let mut orgs: Vec<(OrgId, OrgShare, Vec<LaneProgress>)> = Vec::new();
    for lane in lanes.into_iter().filter(|lane| lane.capacity > 0) {
        let Some(share) = shares.get(&lane.org) else {
            continue;
        };
        let entry = LaneProgress { lane, given: 0 };
        match orgs.iter_mut().find(|(org, ..)| *org == entry.lane.org) {
            Some((_, _, lanes)) => lanes.push(entry),
            None => {
                let start = OrgShare {
                    turn: share.turn.max(turn),
                    capacity: share.capacity,
                };
                orgs.push((entry.lane.org, start, vec![entry]));
            }
        }
    }
    for (.., lanes) in &mut orgs {
        raise_idle_lanes(lanes);
    }

    // 2. Give each slot to the organisation, and in it the lane, with the lowest turn.
    let mut now = turn;
    for _ in 0..slots {
        let next = orgs
            .iter_mut()
            .filter(|(_, share, lanes)| {
                share.capacity > 0 && lanes.iter().any(|lane| lane.lane.capacity > 0)
            })
            .min_by_key(|(org, share, _)| (share.turn, *org));
        let Some((_, share, lanes)) = next else { break };
        now = now.max(share.turn);
        share.turn += 1;
        share.capacity -= 1;
        grant_one(lanes);
    }

    collect_grants(orgs, now)
}

/// Raises the turn of lanes that were idle, so that they do not catch up: no turn is below the
/// highest one by more than the number of lanes.
fn raise_idle_lanes(lanes: &mut [LaneProgress]) {
    let floor = lanes
        .iter()
        .map(|lane| lane.lane.turn)
        .max()
        .unwrap_or_default();
    let spread = i64::try_from(lanes.len()).unwrap_or(i64::MAX);
    for lane in lanes {
        lane.lane.turn = lane.lane.turn.max(floor.saturating_sub(spread));
    }
}

fn grant_one(lanes: &mut [LaneProgress]) {
    let next = lanes
        .iter_mut()
        .filter(|lane| lane.lane.capacity > 0)
        .min_by_key(|lane| (lane.lane.turn, lane.lane.batch));
    if let Some(lane) = next {
        lane.lane.turn += 1;
        lane.lane.capacity -= 1;
        lane.given += 1;
    }
}

fn collect_grants(orgs: Vec<(OrgId, OrgShare, Vec<LaneProgress>)>, turn: i64) -> SlotDivision {
    let mut division = SlotDivision {
        turn,
        ..SlotDivision::default()
    };
    for (org, share, lanes) in orgs {
        let before = division.grants.len();
        division
            .grants
            .extend(
                lanes
                    .into_iter()
                    .filter(|lane| lane.given > 0)
                    .map(|lane| SlotGrant {
                        org,
                        batch: lane.lane.batch,
                        count: lane.given,
                        turn: lane.lane.turn,
                    }),
            );
        if division.grants.len() > before {
            division.org_turns.push((org, share.turn));
        }
    }
    division
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(org: OrgId, batch: BatchId, turn: i64, room: u32) -> DialLane {
        DialLane {
            org,
            batch: Some(batch),
            turn,
            capacity: room,
        }
    }

    fn shares(orgs: &[(OrgId, i64, u32)]) -> HashMap<OrgId, OrgShare> {
        orgs.iter()
            .map(|(org, turn, room)| {
                let share = OrgShare {
                    turn: *turn,
                    capacity: *room,
                };
                (*org, share)
            })
            .collect()
    }

    fn given(division: &SlotDivision, batch: BatchId) -> u32 {
        division
            .grants
            .iter()
            .filter(|grant| grant.batch == Some(batch))
            .map(|grant| grant.count)
            .sum()
    }

    #[test]
    fn a_million_rows_do_not_starve_a_hundred() {
        let (a, b) = (OrgId::new(), OrgId::new());
        let (big, small) = (BatchId::new(), BatchId::new());
        let lanes = vec![lane(a, big, 0, 1_000_000), lane(b, small, 0, 100)];
        let division = divide_slots(150, 0, &shares(&[(a, 0, 9999), (b, 0, 9999)]), lanes);
        assert_eq!((given(&division, big), given(&division, small)), (75, 75));
    }

    #[test]
    fn two_batches_of_one_organisation_share_its_part() {
        let (a, b) = (OrgId::new(), OrgId::new());
        let [one, two, other] = [BatchId::new(), BatchId::new(), BatchId::new()];
        let lanes = vec![
            lane(a, one, 0, 99),
            lane(a, two, 0, 99),
            lane(b, other, 0, 99),
        ];
        let division = divide_slots(40, 0, &shares(&[(a, 0, 99), (b, 0, 99)]), lanes);
        assert_eq!(
            [
                given(&division, one),
                given(&division, two),
                given(&division, other)
            ],
            [10, 10, 20]
        );
    }

    #[test]
    fn single_slots_alternate_over_claims() {
        let (a, b) = (OrgId::new(), OrgId::new());
        let (one, two) = (BatchId::new(), BatchId::new());
        let (mut turn_a, mut turn_b, mut turn) = (0, 0, 0);
        let mut served = Vec::new();
        for _ in 0..6 {
            let lanes = vec![lane(a, one, 0, 9), lane(b, two, 0, 9)];
            let division = divide_slots(1, turn, &shares(&[(a, turn_a, 9), (b, turn_b, 9)]), lanes);
            turn = division.turn;
            let (org, after) = division.org_turns[0];
            if org == a {
                turn_a = after
            } else {
                turn_b = after
            }
            served.push(org == a);
        }
        assert_eq!(served.iter().filter(|was_a| **was_a).count(), 3);
        assert!(served.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn limits_hold_and_unused_slots_go_to_the_others() {
        let (a, b) = (OrgId::new(), OrgId::new());
        let (one, two) = (BatchId::new(), BatchId::new());
        let lanes = vec![lane(a, one, 0, 99), lane(b, two, 0, 3)];
        let division = divide_slots(10, 0, &shares(&[(a, 0, 5), (b, 0, 99)]), lanes);
        assert_eq!((given(&division, one), given(&division, two)), (5, 3));
    }

    #[test]
    fn an_idle_lane_does_not_catch_up() {
        let (a, b) = (OrgId::new(), OrgId::new());
        let (one, two) = (BatchId::new(), BatchId::new());
        let lanes = vec![lane(a, one, 5000, 99), lane(b, two, 0, 99)];
        let division = divide_slots(20, 5000, &shares(&[(a, 5000, 99), (b, 0, 99)]), lanes);
        assert_eq!((given(&division, one), given(&division, two)), (10, 10));
    }

    #[test]
    fn no_lanes_give_no_grants() {
        assert_eq!(
            divide_slots(10, 7, &HashMap::new(), Vec::new()),
            SlotDivision {
                turn: 7,
                ..SlotDivision::default()
            }
        );
    }
}
