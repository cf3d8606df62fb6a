//! The workers that have room for a job, least loaded first, found without looking at the others.

use crate::slab::Key;
use crate::worker::Worker;

/// Levels below this one have an idle slot; from it on attempts wait.
pub(crate) const LEVEL_BUSY: u32 = 16;

/// Every level there is: one bit of a word for each.
pub(crate) const LEVELS: u32 = 64;

/// What a worker can do for a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// How loaded it is: lower ones come first.
    pub(crate) level: u32,
    /// Its slots.
    pub(crate) slots: u32,
    /// Those of them that are idle and may be filled.
    pub(crate) idle: u32,
    /// Attempts that it could take, prefetch included. Without room it is not listed.
    pub(crate) room: u32,
}

/// The level of a worker with so many attempts on so many slots.
pub(crate) fn level(attempts: u32, slots: u32) -> u32 {
    let slots = u64::from(slots.max(1));
    let attempts = u64::from(attempts);
    if attempts < slots {
        return narrow(attempts * u64::from(LEVEL_BUSY) / slots);
    }
    // Linear up to three waiting for each slot, then by powers of two.
    let waiting = (attempts - slots) * 8 / slots;
    let above = if waiting < 24 { waiting } else { 20 + u64::from(waiting.ilog2()) };
    (LEVEL_BUSY + narrow(above)).min(LEVELS - 1)
}

fn narrow(level: u64) -> u32 {
    u32::try_from(level).unwrap_or(LEVELS - 1)
}

/// Workers ordered by level, and by key within one.
#[derive(Debug)]
pub(crate) struct Pool {
    places: Vec<Option<Place>>,
    /// For each level, one bit for each worker.
    levels: Vec<Vec<u64>>,
    /// For each level, how many workers it lists.
    listed: [u32; LEVELS as usize],
    occupied: u64,
    usable: u32,
    slots: u64,
    idle: u64,
    room: u64,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self {
            places: Vec::new(),
            levels: vec![Vec::new(); LEVELS as usize],
            listed: [0; LEVELS as usize],
            occupied: 0,
            usable: 0,
            slots: 0,
            idle: 0,
            room: 0,
        }
    }

    /// Says what the worker can do from now on; `None` if it is not usable.
    pub(crate) fn set(&mut self, worker: Key<Worker>, place: Option<Place>) {
        let index = worker.index();
        if self.places.len() <= index {
            if place.is_none() {
                return;
            }
            self.places.resize(index + 1, None);
        }
        let before = std::mem::replace(&mut self.places[index], place);
        if before == place {
            return;
        }
        if let Some(before) = before {
            self.usable -= 1;
            self.slots -= u64::from(before.slots);
            self.idle -= u64::from(before.idle);
            self.room -= u64::from(before.room);
        }
        if let Some(now) = place {
            self.usable += 1;
            self.slots += u64::from(now.slots);
            self.idle += u64::from(now.idle);
            self.room += u64::from(now.room);
        }
        let listed = |place: Place| (place.room > 0).then_some(place.level);
        let (from, to) = (before.and_then(listed), place.and_then(listed));
        if from != to {
            self.relist(index, from, to);
        }
    }

    fn relist(&mut self, index: usize, from: Option<u32>, to: Option<u32>) {
        let (word, bit) = (index / 64, 1_u64 << (index % 64));
        if let Some(level) = from {
            self.levels[level as usize][word] &= !bit;
            self.listed[level as usize] -= 1;
            if self.listed[level as usize] == 0 {
                self.occupied &= !(1 << level);
            }
        }
        if let Some(level) = to {
            let words = &mut self.levels[level as usize];
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= bit;
            self.listed[level as usize] += 1;
            self.occupied |= 1 << level;
        }
    }

    /// The worker's place, if it is usable.
    pub(crate) fn place(&self, worker: Key<Worker>) -> Option<Place> {
        self.places.get(worker.index()).copied().flatten()
    }

    /// The workers with room below the level, least loaded first.
    pub(crate) fn below(&self, level: u32) -> impl Iterator<Item = Key<Worker>> {
        let wanted = if level >= LEVELS { u64::MAX } else { (1 << level) - 1 };
        bits(self.occupied & wanted).flat_map(|level| {
            let words = self.levels[level].iter().enumerate();
            words.flat_map(|(word, &set)| bits(set).map(move |bit| Key::at(word * 64 + bit)))
        })
    }

    /// Workers that could run the job, with or without room.
    pub(crate) fn usable(&self) -> u32 {
        self.usable
    }

    /// Their slots.
    pub(crate) fn slots(&self) -> u64 {
        self.slots
    }

    /// Their idle slots.
    pub(crate) fn idle(&self) -> u64 {
        self.idle
    }

    /// Attempts that they could take.
    pub(crate) fn room(&self) -> u64 {
        self.room
    }

    /// Whether nobody is listed.
    pub(crate) fn is_empty(&self) -> bool {
        self.occupied == 0
    }
}

/// The positions of the bits that are set, lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_come_first_and_the_full_not_at_all() {
        let mut pool = Pool::new();
        let place = |attempts, room| {
            Some(Place {
                level: level(attempts, 4),
                slots: 4,
                idle: 4_u32.saturating_sub(attempts),
                room,
            })
        };
        for (index, attempts, room) in [(0, 5, 3), (70, 1, 3), (3, 2, 2), (4, 4, 0)] {
            pool.set(Key::at(index), place(attempts, room));
        }
        let order = |pool: &Pool, level| pool.below(level).map(Key::index).collect::<Vec<_>>();
        assert_eq!(order(&pool, LEVELS), [70, 3, 0]);
        assert_eq!(order(&pool, LEVEL_BUSY), [70, 3]);
        assert_eq!((pool.usable(), pool.slots(), pool.idle(), pool.room()), (4, 16, 5, 8));
        pool.set(Key::at(70), None);
        assert_eq!(order(&pool, LEVELS), [3, 0]);
        assert_eq!((pool.usable(), pool.idle()), (3, 2));
    }

    #[test]
    fn levels_grow_with_load_and_stay_in_their_word() {
        let mut last = 0;
        for attempts in 0..20_000 {
            let level = level(attempts, 8);
            assert!(level >= last && level < LEVELS);
            assert_eq!(level < LEVEL_BUSY, attempts < 8);
            last = level;
        }
    }
}
