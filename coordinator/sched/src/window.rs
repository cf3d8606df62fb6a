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
    /// The first id that it draws, and the first that is in `recent`.
    base: u64,
    first: u64,
    recent: VecDeque<Option<T>>,
    old: BTreeMap<u64, T>,
    living: usize,
}

impl<T> Window<T> {
    pub(crate) fn new() -> Self {
        Self { base: 0, first: 0, recent: VecDeque::new(), old: BTreeMap::new(), living: 0 }
    }

    /// The ids below `first` were drawn by somebody else.
    pub(crate) fn starting_at(first: AttemptId) -> Self {
        Self { base: first.0, first: first.0, ..Self::new() }
    }

    /// Takes in an entry whose id was drawn by somebody else.
    pub(crate) fn insert_foreign(&mut self, id: AttemptId, entry: T) {
        assert!(self.is_foreign(id), "{id} is drawn by this window");
        let former = self.old.insert(id.0, entry);
        assert!(former.is_none(), "{id} is there once");
        self.living += 1;
    }

    /// Whether the id is one that this window has drawn or will draw.
    pub(crate) fn is_foreign(&self, id: AttemptId) -> bool {
        id.0 < self.base
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
