//! Places that somebody on the network has announced and that wait to be dialled. Anybody can announce
//! anything, so only so many are tried at a time, and one that does not answer makes way for the next:
//! a flood of false ones only delays the true ones.

use std::collections::VecDeque;
use std::time::Duration;

use widemap_common::time::Time;

use crate::places::Place;

/// Before what did not answer is tried once more.
const ROUND: Duration = Duration::from_secs(10);

/// A place and who announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) source: String,
    pub(super) place: Place,
}

/// See the file's head. As many as the sources tell of, which bound it.
#[derive(Debug, Default)]
pub(super) struct Hints {
    waiting: VecDeque<Hint>,
    resting: VecDeque<Hint>,
    round: Option<Time>,
    random: fastrand::Rng,
}

impl Hints {
    /// These are the places of a source that are not dialled yet; what was tried rests on.
    pub(super) fn replace(&mut self, source: &str, places: Vec<Place>) {
        let known: std::collections::HashSet<&Place> = places.iter().collect();
        self.resting.retain(|hint| hint.source != source || known.contains(&hint.place));
        self.waiting.retain(|hint| hint.source != source);
        let tried: std::collections::HashSet<Place> =
            self.resting.iter().map(|hint| hint.place.clone()).collect();
        let untried = places.into_iter().filter(|place| !tried.contains(place));
        self.waiting.extend(untried.map(|place| Hint { source: source.to_owned(), place }));
    }

    /// One more.
    pub(super) fn put(&mut self, hint: Hint) {
        self.waiting.push_back(hint);
    }

    /// The next one to dial: any of them, so that nobody comes first by how it calls itself.
    pub(super) fn next(&mut self) -> Option<Hint> {
        let place = self.random.usize(..self.waiting.len().max(1));
        self.waiting.swap_remove_back(place)
    }

    /// Whether one that does not answer should make way.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// One has not answered.
    pub(super) fn rest(&mut self, now: Time, hint: Hint) {
        self.round.get_or_insert(now + ROUND);
        self.resting.push_back(hint);
    }

    /// Lets those that rest be tried once more, when it is time.
    pub(super) fn wake(&mut self, now: Time) {
        if self.round.is_some_and(|at| at <= now) {
            self.round = None;
            self.waiting.append(&mut self.resting);
        }
    }

    /// When that is.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.round
    }

    /// How many are not being dialled.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.resting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: &str) -> Place {
        Place { addresses: vec![address.to_owned()], incarnation: None }
    }

    fn addresses(hints: &mut Hints) -> Vec<String> {
        let next = std::iter::from_fn(|| hints.next());
        let mut addresses: Vec<_> = next.map(|hint| hint.place.addresses[0].clone()).collect();
        addresses.sort();
        addresses
    }

    #[test]
    fn what_did_not_answer_rests_until_the_others_had_their_turn() {
        let mut hints = Hints::default();
        hints.replace("mDNS", vec![place("a"), place("b")]);
        let first = hints.next().unwrap();
        let tried = first.place.addresses[0].clone();
        hints.rest(Time::ZERO, first);
        hints.replace("mDNS", vec![place("a"), place("b"), place("c")]);
        assert_eq!(hints.len(), 3);
        let others: Vec<_> = ["a", "b", "c"].into_iter().filter(|name| *name != tried).collect();
        assert_eq!(addresses(&mut hints), others);
        hints.wake(Time::ZERO + ROUND / 2);
        assert_eq!(addresses(&mut hints), [""; 0]);
        assert_eq!(hints.deadline(), Some(Time::ZERO + ROUND));
        hints.wake(Time::ZERO + ROUND);
        assert_eq!(addresses(&mut hints), [tried]);
        assert_eq!(hints.deadline(), None);
    }

    #[test]
    fn what_is_announced_no_more_is_forgotten() {
        let mut hints = Hints::default();
        hints.replace("mDNS", vec![place("a"), place("b")]);
        let first = hints.next().unwrap();
        hints.rest(Time::ZERO, first);
        hints.replace("mDNS", vec![]);
        assert_eq!(hints.len(), 0);
    }
}
