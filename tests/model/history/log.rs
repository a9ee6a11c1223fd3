//! A log, and the points in it.

/// The maximum number of changes in a log.
const MOST: usize = 8;

/// A change, with the mark of the stream entry that holds it.
///
/// A mark is a random number, so entries of different histories never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Entry {
    pub(super) mark: u8,
    /// The session that is created, or destroyed if it exists.
    pub(super) session: u8,
}

/// A position in a log, and the mark of the change there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Point {
    pub(super) position: u8,
    pub(super) mark: u8,
}

/// A partition's log, from its birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Log {
    end: u8,
    entries: [Entry; MOST],
}

impl Log {
    pub(super) fn push(&mut self, entry: Entry) {
        self.entries[self.end as usize] = entry;
        self.end += 1;
    }

    /// Returns the position of the newest change.
    pub(super) fn end(&self) -> u8 {
        self.end
    }

    /// Returns the change right after a position.
    pub(super) fn after(&self, position: u8) -> Entry {
        self.entries[position as usize]
    }

    /// Returns the point at a position. At position 0 the mark is that of the log's birth.
    pub(super) fn point(&self, position: u8) -> Point {
        let mark = position.checked_sub(1).map_or(0, |before| self.entries[before as usize].mark);
        Point { position, mark }
    }

    /// Returns whether this log has the same history up to a point (`mark_at.lua`).
    pub(super) fn contains(&self, point: Point) -> bool {
        point.position <= self.end && self.point(point.position) == point
    }

    /// Returns the sessions that exist after the change at a position, as a bit set.
    pub(super) fn sessions(&self, position: u8) -> u8 {
        self.entries[..position as usize].iter().fold(0, |sessions, entry| sessions ^ 1 << entry.session)
    }
}
