//! Many packets of a kind, few lines: the first is told at once, what follows is counted and told together. Pure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant, SystemTime};

/// Counts the packets of each kind. `L` is the line that the first one made.
#[derive(Debug)]
pub(super) struct Fold<K, L> {
    /// How long packets of a kind are counted before they are told.
    window: Duration,
    /// How many kinds are kept in mind.
    most: usize,
    kinds: HashMap<K, Count<L>>,
    /// When each kind is due, in order: all windows are of one length.
    due: VecDeque<(Instant, K)>,
}

#[derive(Debug)]
struct Count<L> {
    line: L,
    packets: u64,
    first: SystemTime,
    last: SystemTime,
}

/// What is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repeated<L> {
    /// The line that the first of the kind made.
    pub(super) line: L,
    /// How many there were since.
    pub(super) packets: u64,
    /// When the first of these was.
    pub(super) first: SystemTime,
    /// And the last.
    pub(super) last: SystemTime,
}

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sight<L> {
    /// It is the first of its kind, and this is its line.
    New(L),
    /// It is counted.
    Again,
    /// There are too many kinds: nothing becomes of it.
    TooMany,
}

impl<K: Copy + Eq + Hash, L: Clone> Fold<K, L> {
    pub(super) fn new(window: Duration, most: usize) -> Self {
        Self { window, most, kinds: HashMap::new(), due: VecDeque::new() }
    }

    /// A packet of a kind was dropped at `time`. `line` makes the line of the first one.
    pub(super) fn see(
        &mut self,
        kind: K,
        now: Instant,
        time: SystemTime,
        line: impl FnOnce() -> L,
    ) -> Sight<L> {
        let full = self.kinds.len() >= self.most;
        match self.kinds.entry(kind) {
            Entry::Occupied(mut entry) => {
                let count = entry.get_mut();
                if count.packets == 0 {
                    count.first = time;
                }
                count.last = time;
                count.packets += 1;
                Sight::Again
            }
            Entry::Vacant(_) if full => Sight::TooMany,
            Entry::Vacant(entry) => {
                let line = line();
                entry.insert(Count { line: line.clone(), packets: 0, first: time, last: time });
                self.due.push_back((now + self.window, kind));
                Sight::New(line)
            }
        }
    }

    /// When there is something to do next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.front().map(|(due, _)| *due)
    }

    /// Tells the kinds whose time has come. Those that were seen again are kept in mind for another while.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Repeated<L>> {
        let mut told = Vec::new();
        while let Some((_, kind)) = self.due.pop_front_if(|(due, _)| *due <= now) {
            let Entry::Occupied(mut entry) = self.kinds.entry(kind) else { continue };
            let Count { line, packets, first, last } = entry.get_mut();
            if *packets == 0 {
                entry.remove();
                continue;
            }
            told.push(Repeated { line: line.clone(), packets: *packets, first: *first, last: *last });
            *packets = 0;
            self.due.push_back((now + self.window, kind));
        }
        told
    }

    /// Tells all that is counted: nobody counts on.
    pub(super) fn finish(mut self) -> Vec<Repeated<L>> {
        let last = self.due.back().map(|(due, _)| *due);
        last.map(|last| self.due(last)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_is_told_and_the_others_counted() {
        let (start, epoch) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let at = |seconds| (start + Duration::from_secs(seconds), epoch + Duration::from_secs(seconds));
        let mut fold = Fold::new(WINDOW, 2);
        let see = |fold: &mut Fold<char, String>, kind, seconds| {
            let (now, time) = at(seconds);
            fold.see(kind, now, time, || format!("line {kind}"))
        };
        assert_eq!(fold.next(), None);
        assert_eq!(see(&mut fold, 'a', 0), Sight::New("line a".into()));
        assert_eq!(see(&mut fold, 'b', 1), Sight::New("line b".into()));
        assert_eq!(see(&mut fold, 'c', 1), Sight::TooMany);
        assert_eq!(see(&mut fold, 'a', 2), Sight::Again);
        assert_eq!(see(&mut fold, 'a', 3), Sight::Again);
        assert_eq!(fold.next(), Some(at(10).0));
        assert_eq!(fold.due(at(9).0), []);
        let repeated = |packets, first, last| Repeated {
            line: "line a".to_owned(),
            packets,
            first: at(first).1,
            last: at(last).1,
        };
        assert_eq!(fold.due(at(11).0), [repeated(2, 2, 3)], "b was not seen again and is forgotten");
        assert_eq!(see(&mut fold, 'c', 12), Sight::New("line c".into()), "and leaves room");
        assert_eq!(see(&mut fold, 'a', 13), Sight::Again, "a goes on, and is no news");
        assert_eq!(fold.next(), Some(at(21).0));
        assert_eq!(fold.due(at(21).0), [repeated(1, 13, 13)]);
        assert_eq!(fold.due(at(31).0), [], "quiet for a while: a is forgotten");
        assert_eq!(see(&mut fold, 'a', 32), Sight::New("line a".into()));
        assert_eq!(see(&mut fold, 'a', 33), Sight::Again);
        assert_eq!(fold.finish(), [repeated(1, 33, 33)]);
    }
}
