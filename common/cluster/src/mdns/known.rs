//! Everybody that has been told of and not taken back: so many at the most.

use std::collections::HashMap;

use super::Instance;

/// Those that have been told of and not taken back.
pub(super) struct Known {
    most: usize,
    entries: Vec<Entry>,
    places: HashMap<String, usize>,
    random: fastrand::Rng,
}

struct Entry {
    instance: Instance,
    generation: u64,
}

/// What came of learning of an instance.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Learnt {
    /// Whether anything of it was not known.
    pub(super) is_new: bool,
    /// Who had to make room.
    pub(super) evicted: Option<String>,
}

impl Known {
    pub(super) fn new(most: usize, random: fastrand::Rng) -> Self {
        Self { most, entries: Vec::new(), places: HashMap::new(), random }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Instance> {
        self.places.get(name).map(|place| &self.entries[*place].instance)
    }

    /// Where there is no room one of the others is forgotten, whichever: neither those who came first
    /// nor those who announce themselves most often can keep another out for ever.
    pub(super) fn learn(&mut self, instance: &Instance, generation: u64) -> Learnt {
        if let Some(place) = self.places.get(&instance.instance) {
            let entry = &mut self.entries[*place];
            entry.generation = entry.generation.max(generation);
            let is_new = entry.instance != *instance;
            if is_new {
                entry.instance = instance.clone();
            }
            return Learnt { is_new, evicted: None };
        }
        let is_full = self.entries.len() >= self.most;
        let evicted = is_full.then(|| {
            let place = self.random.usize(..self.entries.len());
            self.remove(place)
        });
        self.places.insert(instance.instance.clone(), self.entries.len());
        self.entries.push(Entry { instance: instance.clone(), generation });
        Learnt { is_new: true, evicted }
    }

    /// Whether it was known.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        let place = self.places.get(name).copied();
        place.map(|place| self.remove(place)).is_some()
    }

    /// Forgets those that have not been heard in this generation.
    pub(super) fn sweep(&mut self, generation: u64) -> Vec<String> {
        let stale = self.entries.iter().filter(|entry| entry.generation < generation);
        let stale: Vec<String> = stale.map(|entry| entry.instance.instance.clone()).collect();
        for name in &stale {
            self.forget(name);
        }
        stale
    }

    fn remove(&mut self, place: usize) -> String {
        let removed = self.entries.swap_remove(place).instance.instance;
        self.places.remove(&removed);
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(moved.instance.instance.clone(), place);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::testing::announcement;
    use super::*;

    fn instance(name: &str, port: u16) -> Instance {
        let addresses = vec![Ipv4Addr::new(10, 0, 0, 1).into()];
        Instance { instance: name.to_owned(), announcement: announcement(name), port, addresses }
    }

    fn known() -> Known {
        Known::new(3, fastrand::Rng::with_seed(7))
    }

    #[test]
    fn the_same_again_is_nothing_new_and_a_change_is() {
        let mut known = known();
        for (port, is_new) in [(1, true), (1, false), (2, true), (2, false)] {
            let learnt = known.learn(&instance("ann", port), 0);
            assert_eq!(learnt, Learnt { is_new, evicted: None });
        }
        assert!(known.forget("ann") && !known.forget("ann"));
    }

    #[test]
    fn there_are_never_more_than_the_most_and_anyone_may_have_to_go() {
        let mut known = known();
        let mut evicted_places = [false; 3];
        for number in 0..1_000_u16 {
            let before: Vec<_> =
                known.entries.iter().map(|e| e.instance.instance.clone()).collect();
            let learnt = known.learn(&instance(&format!("w{number}"), 1), 0);
            if let Some(evicted) = learnt.evicted {
                let place = before.iter().position(|name| *name == evicted);
                evicted_places[place.expect("it was known")] = true;
            }
            assert!(known.entries.len() <= 3 && known.places.len() == known.entries.len());
            for (place, entry) in known.entries.iter().enumerate() {
                assert_eq!(known.places.get(&entry.instance.instance), Some(&place));
            }
        }
        assert_eq!(evicted_places, [true; 3]);
    }

    #[test]
    fn those_that_a_new_daemon_does_not_hear_are_given_up() {
        let mut known = known();
        for (name, generation) in [("ann", 0), ("bob", 0), ("ann", 1), ("bob", 0), ("ann", 0)] {
            known.learn(&instance(name, 1), generation);
        }
        assert_eq!(known.sweep(1), ["bob"]);
        assert_eq!(known.sweep(1), [""; 0]);
    }
}
