//! What was counted and not logged. Pure.

use std::collections::BTreeMap;

/// The difference between what the kernel has counted and what came as records, for each `K`.
#[derive(Debug)]
pub(super) struct Unlogged<K> {
    each: BTreeMap<K, Books>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Books {
    /// What had been counted when we began.
    before: u64,
    /// Records since.
    records: u64,
    /// What was told to be missing.
    told: u64,
}

impl<K: Ord + Clone> Unlogged<K> {
    /// From these counts on.
    pub(super) fn since(counts: BTreeMap<K, u64>) -> Self {
        let books = |before| Books { before, ..Books::default() };
        Self { each: counts.into_iter().map(|(key, before)| (key, books(before))).collect() }
    }

    /// A record came.
    pub(super) fn record(&mut self, key: K) {
        self.each.entry(key).or_default().records += 1;
    }

    /// These are the counts now. Returns what was counted since the last call and did not come as a record. What is not
    /// counted any more is forgotten.
    pub(super) fn counted(&mut self, counts: &BTreeMap<K, u64>) -> Vec<(K, u64)> {
        self.each.retain(|key, _| counts.contains_key(key));
        let mut missing = Vec::new();
        for (key, &count) in counts {
            let books = self.each.entry(key.clone()).or_default();
            if count < books.before {
                // It was counted anew: another one of the same name.
                *books = Books::default();
            }
            let new = (count - books.before).saturating_sub(books.records + books.told);
            if new > 0 {
                books.told += new;
                missing.push((key.clone(), new));
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_less_records() {
        let counts = |of: &[(char, u64)]| of.iter().copied().collect::<BTreeMap<_, _>>();
        let mut unlogged = Unlogged::since(counts(&[('a', 100), ('b', 5)]));
        assert_eq!(unlogged.counted(&counts(&[('a', 100), ('b', 5)])), []);
        unlogged.record('a');
        unlogged.record('a');
        assert_eq!(unlogged.counted(&counts(&[('a', 112), ('b', 5), ('c', 3)])), [('a', 10), ('c', 3)]);
        assert_eq!(unlogged.counted(&counts(&[('a', 112), ('b', 5), ('c', 3)])), []);
        // A record may come before its packet is counted.
        unlogged.record('a');
        assert_eq!(unlogged.counted(&counts(&[('a', 112), ('c', 3)])), []);
        assert_eq!(unlogged.counted(&counts(&[('a', 114), ('b', 2), ('c', 3)])), [('a', 1), ('b', 2)]);
        assert_eq!(unlogged.counted(&counts(&[('a', 7), ('b', 2), ('c', 3)])), [('a', 7)], "counted anew");
    }
}
