//! A list that grows without being moved.

/// What a segment holds: of sessions 2 KiB.
const SEGMENT: usize = 128;

type Segment<T> = Box<[T; SEGMENT]>;

/// A list of values that lie in segments.
///
/// To grow copies nothing; and as every segment is as large as the next, memory that one column gives up serves another. A vector
/// that grows leaves behind what hardly anything fits into: with vectors, four million sessions that were created in a few seconds
/// took half as much memory again.
///
/// A column never asks for memory by itself, but for the list of its segments: it is [given](Self::add) what it is
/// [missing](Self::missing).
#[derive(Clone)]
pub(super) struct Column<T> {
    /// What lies in them behind `len` is of no meaning.
    segments: Vec<Segment<T>>,
    len: usize,
}

/// Segments for a column.
pub(super) struct Segments<T>(Vec<Segment<T>>);

impl<T: Copy + Default> Segments<T> {
    /// So many of them, in memory that has been touched.
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

    /// How many values there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.segments.len() * SEGMENT
    }

    pub(super) fn get(&self, place: usize) -> Option<T> {
        (place < self.len).then(|| self.segments[place / SEGMENT][place % SEGMENT])
    }

    /// All values, run by run.
    pub(super) fn runs(&self) -> impl Iterator<Item = &[T]> {
        let before = (0..self.len).step_by(SEGMENT);
        before.zip(&self.segments).map(|(before, segment)| &segment[..(self.len - before).min(SEGMENT)])
    }

    /// Replaces the value at `place`, where there must be one.
    pub(super) fn set(&mut self, place: usize, value: T) {
        self.segments[place / SEGMENT][place % SEGMENT] = value;
    }

    /// Appends a value, for which there must be room.
    pub(super) fn push(&mut self, value: T) {
        self.set(self.len, value);
        self.len += 1;
    }

    /// Removes the value at `place`, where the last one goes.
    pub(super) fn swap_remove(&mut self, place: usize) {
        if let Some(last) = self.get(self.len - 1) {
            self.set(place, last);
            self.len -= 1;
        }
    }

    /// How many segments it must be given so that there is room for `len` values in all.
    pub(super) fn missing(&self, len: usize) -> usize {
        len.div_ceil(SEGMENT).saturating_sub(self.segments.len())
    }

    /// Takes all of `segments`.
    pub(super) fn add(&mut self, segments: &mut Segments<T>) {
        self.segments.append(&mut segments.0);
    }

    /// Whether it has far more room than for `len` values, which are no fewer than it holds.
    pub(super) fn is_wasteful(&self, len: usize) -> bool {
        self.capacity() >= 2 * (len + SEGMENT)
    }

    /// Puts to `unused` the segments for which it [is wasteful](Self::is_wasteful), but for one that growth can use.
    pub(super) fn give_back(&mut self, unused: &mut Segments<T>, len: usize) {
        if self.is_wasteful(len) {
            unused.0.extend(self.segments.drain(len.div_ceil(SEGMENT) + 1..));
        }
    }
}
