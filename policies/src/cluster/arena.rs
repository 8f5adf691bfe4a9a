//! Dense tables with an index type of their own each, so that one kind of index is never used for another.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::num::NonZeroU32;

use slab::Slab;

/// A place in an [`Arena`] of `T`: its number and one more, so that an index that may be missing is no wider.
pub(super) struct Ix<T>(NonZeroU32, PhantomData<fn() -> T>);

impl<T> Clone for Ix<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ix<T> {}

impl<T> PartialEq for Ix<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Eq for Ix<T> {}

impl<T> PartialOrd for Ix<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Ix<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

impl<T> Hash for Ix<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.0.get());
    }
}

impl<T> fmt::Debug for Ix<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.place())
    }
}

impl<T> Ix<T> {
    fn new(place: usize) -> Self {
        let number = u32::try_from(place + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("fewer than 2^32 entries fit in memory"), PhantomData)
    }

    fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// A table of `T`. An index is valid until its entry is removed; then its place is used again.
pub(super) struct Arena<T>(Slab<T>);

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self(Slab::new())
    }
}

impl<T> Arena<T> {
    pub(super) fn insert(&mut self, value: T) -> Ix<T> {
        Ix::new(self.0.insert(value))
    }

    pub(super) fn remove(&mut self, ix: Ix<T>) -> T {
        self.0.remove(ix.place())
    }

    pub(super) fn get(&self, ix: Ix<T>) -> Option<&T> {
        self.0.get(ix.place())
    }

    pub(super) fn get_mut(&mut self, ix: Ix<T>) -> Option<&mut T> {
        self.0.get_mut(ix.place())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ix<T>, &T)> {
        self.0.iter().map(|(place, value)| (Ix::new(place), value))
    }
}

impl<T> std::ops::Index<Ix<T>> for Arena<T> {
    type Output = T;

    fn index(&self, ix: Ix<T>) -> &T {
        &self.0[ix.place()]
    }
}

impl<T> std::ops::IndexMut<Ix<T>> for Arena<T> {
    fn index_mut(&mut self, ix: Ix<T>) -> &mut T {
        &mut self.0[ix.place()]
    }
}
