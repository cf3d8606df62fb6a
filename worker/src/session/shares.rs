//! How several coordinators share one worker's slots: as evenly as their demands allow.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use widemap_common::limits::QUEUE_MAX;
use widemap_proto::session::{Credit, LeftOut};

/// A session among those that share a worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ShareId(u64);

/// What every session of a worker asks for.
#[derive(Debug)]
pub(crate) struct Shares {
    slots: u32,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Why the worker takes no work for now.
    paused: Option<String>,
    /// Whether a session has held attempts since that was asked for.
    has_worked: bool,
    claims: BTreeMap<ShareId, Claim>,
}

#[derive(Debug)]
struct Claim {
    demand: u32,
    /// Whether the session holds attempts.
    busy: bool,
    /// Until when its coordinator gives this worker no work, and why.
    left_out: Option<(Instant, String)>,
}

impl Shares {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots, state: Mutex::default(), changed: watch::channel(()).0 }
    }

    /// Adds a session, which could use everything until it says otherwise.
    pub(crate) fn join(&self) -> ShareId {
        let mut state = self.lock();
        let id = ShareId(state.next);
        state.next += 1;
        state.claims.insert(id, Claim { demand: u32::MAX, busy: false, left_out: None });
        drop(state);
        self.changed.send_replace(());
        id
    }

    pub(crate) fn leave(&self, id: ShareId) {
        self.lock().claims.remove(&id);
        self.changed.send_replace(());
    }

    pub(crate) fn set_demand(&self, id: ShareId, demand: u32) {
        self.change(id, |claim| std::mem::replace(&mut claim.demand, demand) != demand);
    }

    pub(crate) fn set_busy(&self, id: ShareId, busy: bool) {
        self.change(id, |claim| std::mem::replace(&mut claim.busy, busy) != busy);
        if busy {
            self.lock().has_worked = true;
        }
    }

    /// A session's coordinator gives this worker no work for a time.
    pub(crate) fn set_left_out(&self, id: ShareId, left_out: LeftOut) {
        let until = Instant::now().checked_add(Duration::from_millis(left_out.for_ms));
        if let Some(claim) = self.lock().claims.get_mut(&id) {
            claim.left_out = until.map(|until| (until, left_out.why));
        }
    }

    /// The longest time for which a coordinator still gives this worker no work.
    pub(crate) fn left_out(&self) -> Option<LeftOut> {
        let state = self.lock();
        let (until, why) = state
            .claims
            .values()
            .filter_map(|claim| claim.left_out.as_ref())
            .max_by_key(|it| it.0)?;
        let left = until.checked_duration_since(Instant::now())?;
        let for_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        Some(LeftOut { for_ms, why: why.clone() })
    }

    /// The worker takes no work for now, and why; or takes it again.
    pub(crate) fn pause(&self, why: Option<String>) {
        self.lock().paused = why;
        self.changed.send_replace(());
    }

    /// Why the worker takes no work for now.
    pub(crate) fn paused(&self) -> Option<String> {
        self.lock().paused.clone()
    }

    /// Whether no session holds attempts any more, where one has since this was asked for.
    pub(crate) fn take_rest(&self) -> bool {
        let mut state = self.lock();
        let is_at_rest = !state.claims.values().any(|claim| claim.busy);
        is_at_rest && std::mem::take(&mut state.has_worked)
    }

    /// Whether any session holds attempts.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock().claims.values().any(|claim| claim.busy)
    }

    /// What a session may count on now.
    pub(crate) fn credit(&self, id: ShareId) -> Credit {
        let state = self.lock();
        if state.paused.is_some() {
            return Credit { slots: 0, queue: 0 };
        }
        let demands = state.claims.iter().map(|(id, claim)| (*id, claim.demand));
        let slots = divide(self.slots, demands).get(&id).copied().unwrap_or(0);
        let wanting = state.claims.values().filter(|claim| claim.demand > 0).count();
        let wanting = u32::try_from(wanting).unwrap_or(u32::MAX).max(1);
        Credit { slots, queue: if slots > 0 { (QUEUE_MAX / wanting).max(1) } else { 0 } }
    }

    /// Tells of changes of any session's claim.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn change(&self, id: ShareId, what: impl FnOnce(&mut Claim) -> bool) {
        let changed = self.lock().claims.get_mut(&id).is_some_and(what);
        if changed {
            self.changed.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

/// Divides `slots`: nobody gets more than it asks for, the rest is even, and whoever asks gets one
/// at least.
fn divide(slots: u32, demands: impl Iterator<Item = (ShareId, u32)>) -> BTreeMap<ShareId, u32> {
    let mut wanting: Vec<_> = demands.filter(|(_, demand)| *demand > 0).collect();
    wanting.sort_by_key(|&(id, demand)| (demand, id));
    let mut shares = BTreeMap::new();
    let mut slots_left = slots;
    let mut left = u32::try_from(wanting.len()).unwrap_or(u32::MAX);
    for (id, demand) in wanting {
        // Rounded up: who asks for little goes first, so the remainder is not wasted.
        let share = demand.min(slots_left.div_ceil(left));
        shares.insert(id, share.max(1));
        slots_left = slots_left.saturating_sub(share);
        left -= 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided<const N: usize>(slots: u32, demands: [u32; N]) -> Vec<u32> {
        let demands = (0..).map(ShareId).zip(demands);
        divide(slots, demands).into_values().collect()
    }

    #[test]
    fn slots_are_even_up_to_what_is_asked_for() {
        assert_eq!(divided(8, [u32::MAX]), [8]);
        assert_eq!(divided(8, [100, 100]), [4, 4]);
        assert_eq!(divided(8, [1, 100]), [1, 7]);
        assert_eq!(divided(1, [5, 5]), [1, 1]);
        assert_eq!(divided(8, [0, 3]), [3]);
    }

    #[test]
    fn an_idle_session_leaves_everything_to_the_others() {
        let shares = Shares::new(4);
        let (first, second) = (shares.join(), shares.join());
        assert_eq!(shares.credit(first).slots, 2);
        shares.set_demand(second, 0);
        assert_eq!(shares.credit(first).slots, 4);
        assert_eq!(shares.credit(second), Credit { slots: 0, queue: 0 });
        shares.pause(Some("it is low on memory".to_owned()));
        assert_eq!(shares.credit(first), Credit { slots: 0, queue: 0 });
        shares.pause(None);
        assert_eq!(shares.credit(first).slots, 4);
        shares.leave(second);
        shares.set_busy(first, true);
        assert!(shares.is_busy());
    }
}
