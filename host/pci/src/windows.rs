//! Puts BARs into an address space, whatever the guest programs into them.
//!
//! Where windows overlap, the one that was programmed last answers, and the other comes back where and when it goes.
//! Ranges that others have mapped into the same space (the board's own ports and registers) always win: a window gets
//! what they leave free. A range that others give up is taken when a window of the space changes next.

use std::collections::BTreeMap;
use std::sync::Arc;

use cardcage_memory::{AddressSpace, IoHandler, MapError};

use crate::Devfn;

/// Which window: function, and number in that function.
pub(crate) type Key = (Devfn, u8);

/// A window as it should be.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) owner: Arc<str>,
    pub(crate) handler: Arc<dyn IoHandler>,
}

struct Entry {
    wanted: Wanted,
    /// Counts up with every change: the highest is on top.
    order: u64,
}

/// A visible part of a window.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    start: u64,
    last: u64,
    order: u64,
    key: Key,
}

/// The windows of one address space.
pub(crate) struct Windows {
    space: Arc<AddressSpace>,
    windows: BTreeMap<Key, Entry>,
    /// Visible parts, and where each of them was mapped: several starts if others' ranges lie in between.
    mapped: BTreeMap<Piece, Vec<u64>>,
    next_order: u64,
}

impl Windows {
    pub(crate) fn new(space: Arc<AddressSpace>) -> Self {
        Self { space, windows: BTreeMap::new(), mapped: BTreeMap::new(), next_order: 0 }
    }

    /// Makes `wanted` the windows of function `at`; those that stay where they were are not touched.
    pub(crate) fn update(&mut self, at: Devfn, wanted: Vec<(u8, Wanted)>) {
        let ours = |key: &Key| key.0 == at;
        let gone: Vec<Key> = self.windows.keys().filter(|key| ours(key)).copied().collect();
        let gone: Vec<Key> = gone.into_iter().filter(|key| wanted.iter().all(|(number, _)| *number != key.1)).collect();
        let mut changed = !gone.is_empty();
        for key in gone {
            self.windows.remove(&key);
        }
        for (number, wanted) in wanted {
            let same = |e: &Entry| e.wanted.start == wanted.start && e.wanted.len == wanted.len;
            if self.windows.get(&(at, number)).is_some_and(same) {
                continue;
            }
            self.next_order += 1;
            self.windows.insert((at, number), Entry { wanted, order: self.next_order });
            changed = true;
        }
        if changed {
            self.remap();
        }
    }

    fn remap(&mut self) {
        let visible = self.visible();
        let mut kept = BTreeMap::new();
        for (piece, starts) in std::mem::take(&mut self.mapped) {
            if visible.contains(&piece) && starts == [piece.start] {
                kept.insert(piece, starts);
                continue;
            }
            for start in starts {
                self.space.unmap(start);
            }
        }
        for piece in visible {
            kept.entry(piece).or_insert_with(|| self.map(piece));
        }
        self.mapped = kept;
    }

    /// What shows of each window: from the top down, each takes what is still free.
    fn visible(&self) -> Vec<Piece> {
        let mut windows: Vec<(&Key, &Entry)> = self.windows.iter().collect();
        windows.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.order));
        let mut taken: Vec<Piece> = Vec::new();
        for (&key, Entry { wanted, order }) in windows {
            let Some(last) = wanted.start.checked_add(wanted.len.wrapping_sub(1)) else { continue };
            let mut free = vec![(wanted.start, last)];
            for piece in &taken {
                free = free.into_iter().flat_map(|range| without(range, (piece.start, piece.last))).collect();
            }
            taken.extend(free.into_iter().map(|(start, last)| Piece { start, last, order: *order, key }));
        }
        taken
    }

    /// Maps a piece, around what others have there. Gives the starts of the ranges that were mapped.
    fn map(&self, piece: Piece) -> Vec<u64> {
        let Some(Entry { wanted, .. }) = self.windows.get(&piece.key) else { return Vec::new() };
        let mut open = vec![(piece.start, piece.last)];
        let mut starts = Vec::new();
        while let Some((start, last)) = open.pop() {
            let skip = start - wanted.start;
            let handler = if skip == 0 {
                wanted.handler.clone()
            } else {
                Arc::new(Shifted { skip, handler: wanted.handler.clone() })
            };
            // A length of 2^64 wraps to 0 and is refused as invalid, as it should be.
            let len = (last - start).wrapping_add(1);
            match self.space.map(start, len, &wanted.owner, handler) {
                Ok(()) => starts.push(start),
                Err(MapError::Taken { owner, owner_start, owner_last, .. }) => {
                    tracing::debug!(window = %wanted.owner, %owner, owner_start, owner_last, "hidden in part");
                    open.extend(without((start, last), (owner_start, owner_last)));
                }
                Err(error @ MapError::Invalid { .. }) => {
                    tracing::warn!(window = %wanted.owner, %error, "not mapped");
                }
            }
        }
        starts
    }
}

/// What of a range is left when `hole` is cut out. Both are first and last address.
fn without((start, last): (u64, u64), hole: (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let apart = hole.1 < start || last < hole.0;
    let before = if apart { Some((start, last)) } else { hole.0.checked_sub(1).map(|end| (start, end)) };
    let after = if apart { None } else { hole.1.checked_add(1).map(|begin| (begin, last)) };
    [before, after].into_iter().flatten().filter(|(start, last)| start <= last)
}

/// A window of which the first bytes do not show.
struct Shifted {
    skip: u64,
    handler: Arc<dyn IoHandler>,
}

impl IoHandler for Shifted {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.handler.read(self.skip + offset, size)
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.handler.write(self.skip + offset, size, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads give the window's number and the offset.
    struct Tag(u64);
    impl IoHandler for Tag {
        fn read(&self, offset: u64, _size: u8) -> u64 {
            self.0 << 32 | offset
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }

    fn wanted(tag: u64, start: u64, len: u64) -> Wanted {
        Wanted { start, len, owner: format!("w{tag}").into(), handler: Arc::new(Tag(tag)) }
    }

    fn at(slot: u8) -> Devfn {
        Devfn::new(slot, 0).unwrap()
    }

    #[test]
    fn the_window_programmed_last_wins_and_the_other_comes_back() {
        let space = Arc::new(AddressSpace::new());
        let mut windows = Windows::new(space.clone());
        windows.update(at(1), vec![(0, wanted(1, 0x1000, 0x1000))]);
        windows.update(at(2), vec![(0, wanted(2, 0x1400, 0x100))]);
        assert_eq!(space.read(0x13ff, 8), 1 << 32 | 0x3ff);
        assert_eq!(space.read(0x1400, 8), 2 << 32);
        assert_eq!(space.read(0x1500, 8), 1 << 32 | 0x500);
        windows.update(at(2), vec![]);
        assert_eq!(space.ranges(), [(0x1000, 0x1fff, "w1".to_string())]);
    }

    #[test]
    fn ranges_of_others_are_mapped_around() {
        let space = Arc::new(AddressSpace::new());
        space.map(0x1100, 0x10, "board", Arc::new(Tag(9))).unwrap();
        let mut windows = Windows::new(space.clone());
        windows.update(at(1), vec![(0, wanted(1, 0x1000, 0x1000))]);
        assert_eq!(space.read(0x1100, 8), 9 << 32);
        assert_eq!(space.read(0x1110, 8), 1 << 32 | 0x110);
        assert!(space.unmap(0x1100));
        windows.update(at(2), vec![(0, wanted(2, 0x8000, 0x10))]);
        assert_eq!(space.read(0x1100, 8), 1 << 32 | 0x100);
    }

    #[test]
    fn a_window_that_stays_is_not_touched() {
        let space = Arc::new(AddressSpace::new());
        let mut windows = Windows::new(space.clone());
        windows.update(at(1), vec![(0, wanted(1, 0x1000, 0x100)), (1, wanted(2, 0x2000, 0x100))]);
        let before = windows.mapped.clone();
        windows.update(at(1), vec![(0, wanted(1, 0x1000, 0x100)), (1, wanted(3, 0x2000, 0x100))]);
        assert!(before == windows.mapped);
        assert_eq!(space.read(0x2000, 8), 2 << 32);
    }

    proptest! {
        #[test]
        fn every_address_is_answered_by_the_top_window(
            steps in prop::collection::vec((0u8..6, prop::option::of((0u64..56, 1u64..40))), 1..30),
            board in prop::collection::btree_set(0u64..64, 0..4),
        ) {
            let space = Arc::new(AddressSpace::new());
            for &port in &board {
                space.map(port, 1, "board", Arc::new(Tag(99))).unwrap();
            }
            let mut windows = Windows::new(space.clone());
            let mut model: Vec<(u8, u64, u64)> = Vec::new();
            for (slot, place) in steps {
                let unchanged = place.is_some_and(|(start, len)| model.contains(&(slot, start, len)));
                if !unchanged {
                    model.retain(|w| w.0 != slot);
                    model.extend(place.map(|(start, len)| (slot, start, len)));
                }
                let list = place.map(|(start, len)| (0, wanted(u64::from(slot), start, len)));
                windows.update(at(slot), list.into_iter().collect());
                for addr in 0..100 {
                    let top = model.iter().rev().find(|w| addr >= w.1 && addr - w.1 < w.2);
                    let expected = match top {
                        _ if board.contains(&addr) => 99 << 32,
                        Some(&(slot, start, _)) => u64::from(slot) << 32 | (addr - start),
                        None => u64::MAX,
                    };
                    prop_assert_eq!(space.read(addr, 8), expected, "at {:#x}", addr);
                }
            }
        }
    }
}
