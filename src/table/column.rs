//! A list that grows without moving its elements.

/// The number of values in a segment. A segment of sessions has 2 KiB.
const SEGMENT: usize = 128;

type Segment<T> = Box<[T; SEGMENT]>;

/// A list of values in segments of equal size.
///
/// Growing copies nothing, and a segment that one column frees fits any other. A growing vector fragments the memory
/// instead: with vectors, four million sessions created within a few seconds took half as much memory again.
///
/// Except for the list of its segments, a column never allocates memory itself. It reports how many segments are
/// [missing](Self::missing), and is [given](Self::add) them.
#[derive(Clone)]
pub(super) struct Column<T> {
    /// Values beyond `len` are meaningless.
    segments: Vec<Segment<T>>,
    len: usize,
}

/// Segments outside of a column.
pub(super) struct Segments<T>(Vec<Segment<T>>);

impl<T: Copy + Default> Segments<T> {
    /// Allocates `count` segments and touches their memory.
    pub(super) fn new(count: usize) -> Self {
        Self((0..count).map(|_| Box::new([T::default(); SEGMENT])).collect())
    }
}

impl<T> Default for Column<T> {
    fn default() -> Self {
        Self { segments: Vec::new(), len: 0 }
    }
}

impl<T: Copy> Column<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns how many values fit.
    pub(super) fn capacity(&self) -> usize {
        self.segments.len() * SEGMENT
    }

    pub(super) fn get(&self, place: usize) -> Option<T> {
        (place < self.len).then(|| self.segments[place / SEGMENT][place % SEGMENT])
    }

    /// Returns all values, segment by segment.
    pub(super) fn runs(&self) -> impl Iterator<Item = &[T]> {
        let before = (0..self.len).step_by(SEGMENT);
        before.zip(&self.segments).map(|(before, segment)| &segment[..(self.len - before).min(SEGMENT)])
    }

    /// Replaces the value at `place`, which must exist.
    pub(super) fn set(&mut self, place: usize, value: T) {
        self.segments[place / SEGMENT][place % SEGMENT] = value;
    }

    /// Appends a value, for which there must be room.
    pub(super) fn push(&mut self, value: T) {
        self.set(self.len, value);
        self.len += 1;
    }

    /// Removes the value at `place` and moves the last one there.
    pub(super) fn swap_remove(&mut self, place: usize) {
        if let Some(last) = self.get(self.len - 1) {
            self.set(place, last);
            self.len -= 1;
        }
    }

    /// Returns how many more segments are needed to hold `len` values in all.
    pub(super) fn missing(&self, len: usize) -> usize {
        len.div_ceil(SEGMENT).saturating_sub(self.segments.len())
    }

    /// Takes all of `segments`.
    pub(super) fn add(&mut self, segments: &mut Segments<T>) {
        self.segments.append(&mut segments.0);
    }

    /// Returns whether there is room for far more than `len` values. `len` must be at least the current length.
    pub(super) fn is_wasteful(&self, len: usize) -> bool {
        self.capacity() >= 2 * (len + SEGMENT)
    }

    /// If the column [is wasteful](Self::is_wasteful) for `len` values, moves the segments beyond them to `unused`.
    /// Keeps one spare for growth.
    pub(super) fn give_back(&mut self, unused: &mut Segments<T>, len: usize) {
        if self.is_wasteful(len) {
            unused.0.extend(self.segments.drain(len.div_ceil(SEGMENT) + 1..));
        }
    }
}
