//! Attempts by id: ids are drawn in sequence, so a sliding window finds them without searching.

use std::collections::{BTreeMap, VecDeque};

use widemap_common::ids::AttemptId;

/// The window may be so many times longer than what lives in it, so that one attempt that runs for
/// hours does not hold the places of the millions after it.
const SPARSE: usize = 4;

/// A window is not thinned below this length.
const WINDOW_MIN: usize = 1_024;

/// Entries by an id that grows by one for each.
#[derive(Debug)]
pub(crate) struct Window<T> {
    first: u64,
    recent: VecDeque<Option<T>>,
    old: BTreeMap<u64, T>,
    living: usize,
}

impl<T> Window<T> {
    pub(crate) fn new() -> Self {
        Self { first: 0, recent: VecDeque::new(), old: BTreeMap::new(), living: 0 }
    }

    pub(crate) fn push(&mut self, entry: T) -> AttemptId {
        while self.recent.len() > WINDOW_MIN + SPARSE * self.living {
            self.retire_first();
        }
        self.recent.push_back(Some(entry));
        self.living += 1;
        AttemptId(self.first + self.recent.len() as u64 - 1)
    }

    pub(crate) fn get(&self, id: AttemptId) -> Option<&T> {
        match id.0.checked_sub(self.first) {
            Some(offset) => self.recent.get(usize::try_from(offset).ok()?)?.as_ref(),
            None => self.old.get(&id.0),
        }
    }

    pub(crate) fn get_mut(&mut self, id: AttemptId) -> Option<&mut T> {
        match id.0.checked_sub(self.first) {
            Some(offset) => self.recent.get_mut(usize::try_from(offset).ok()?)?.as_mut(),
            None => self.old.get_mut(&id.0),
        }
    }

    pub(crate) fn remove(&mut self, id: AttemptId) -> Option<T> {
        let entry = match id.0.checked_sub(self.first) {
            Some(offset) => self.recent.get_mut(usize::try_from(offset).ok()?)?.take(),
            None => self.old.remove(&id.0),
        }?;
        self.living -= 1;
        while let Some(None) = self.recent.front() {
            self.retire_first();
        }
        Some(entry)
    }

    pub(crate) fn len(&self) -> usize {
        self.living
    }

    fn retire_first(&mut self) {
        if let Some(Some(entry)) = self.recent.pop_front() {
            self.old.insert(self.first, entry);
        }
        self.first += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_long_attempt_does_not_hold_the_places_of_a_million() {
        let mut window = Window::new();
        let long = window.push("long");
        for _ in 0..1_000_000 {
            let short = window.push("short");
            assert_eq!(window.remove(short), Some("short"));
            assert_eq!(window.get(short), None);
        }
        assert!(window.recent.len() <= WINDOW_MIN + 2 * SPARSE);
        assert_eq!(window.get(long), Some(&"long"));
        assert_eq!(window.remove(long), Some("long"));
        assert_eq!((window.remove(long), window.len()), (None, 0));
    }
}
