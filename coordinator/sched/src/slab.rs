//! Storage with small stable keys, so that memory follows what is in flight and not what has been.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

/// Where an entry of a [`Slab`] lies. A key in hand belongs to a living entry: whoever removes an
/// entry removes its keys first.
pub(crate) struct Key<T> {
    index: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    fn new(index: usize) -> Self {
        Self {
            index: u32::try_from(index).expect("far fewer than 2^32 in flight"),
            of: PhantomData,
        }
    }

    pub(crate) fn index(self) -> usize {
        self.index as usize
    }

    /// The key of this index, from a table beside the slab.
    pub(crate) fn at(index: usize) -> Self {
        Self::new(index)
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}

impl<T> Eq for Key<T> {}

impl<T> PartialOrd for Key<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Key<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.index.cmp(&other.index)
    }
}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.index)
    }
}

/// Entries by [`Key`]; the places of removed ones are used again.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<Key<T>>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert(&mut self, entry: T) -> Key<T> {
        if let Some(key) = self.free.pop() {
            self.entries[key.index()] = Some(entry);
            return key;
        }
        self.entries.push(Some(entry));
        Key::new(self.entries.len() - 1)
    }

    pub(crate) fn remove(&mut self, key: Key<T>) -> T {
        let entry = self.entries[key.index()].take().expect("a key in hand is alive");
        self.free.push(key);
        entry
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        let pairs = self.entries.iter().enumerate();
        pairs.filter_map(|(index, entry)| Some((Key::new(index), entry.as_ref()?)))
    }
}

impl<T> Index<Key<T>> for Slab<T> {
    type Output = T;
    fn index(&self, key: Key<T>) -> &T {
        self.entries[key.index()].as_ref().expect("a key in hand is alive")
    }
}

impl<T> IndexMut<Key<T>> for Slab<T> {
    fn index_mut(&mut self, key: Key<T>) -> &mut T {
        self.entries[key.index()].as_mut().expect("a key in hand is alive")
    }
}
