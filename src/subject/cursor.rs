//! The place of an observer in a registry's changes, as text that it can come back with.

use std::{fmt, str::FromStr};

use smallvec::SmallVec;

use crate::storage::{LogPoint, Position, RegistryId};

/// A position in each partition of a storage's log.
pub(crate) type Positions = SmallVec<[Position; 1]>;

/// A point of each partition's log.
pub(crate) type Points = SmallVec<[LogPoint; 1]>;

/// The positions of some points.
pub(crate) fn positions(points: &[LogPoint]) -> Positions {
    points.iter().map(|point| point.position).collect()
}

/// A place in a registry's changes.
///
/// Its text is opaque to those who keep it: the registry's id, a hexadecimal position for each partition of its log (or `s`
/// for the place before a snapshot), and a checksum, so that a text cut short or mistyped is not taken for another place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(crate) registry_id: RegistryId,
    pub(crate) place: CursorPlace,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CursorPlace {
    /// Right before a whole snapshot.
    SnapshotStart,
    /// Right after the change at each partition's position.
    After(Positions),
}

/// A text that is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("that is no cursor: send one as it was received, or none")]
pub struct ParseCursorError;

/// More than any log has; what is longer is not worth reading.
const MAX_PARTITIONS: usize = 1024;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.registry_id)?;
        match &self.place {
            CursorPlace::SnapshotStart => f.write_str("-s")?,
            CursorPlace::After(positions) => {
                for position in positions {
                    write!(f, "-{:x}", position.0)?;
                }
            }
        }
        write!(f, "-{:04x}", self.checksum())
    }
}

impl FromStr for Cursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, ParseCursorError> {
        let mut parts = text.split('-');
        let registry_id = parts.next().and_then(hex).map(RegistryId).ok_or(ParseCursorError)?;
        let mut parts: SmallVec<[&str; 3]> = parts.take(MAX_PARTITIONS + 2).collect();
        parts.pop();
        let place = match parts.as_slice() {
            [] => return Err(ParseCursorError),
            ["s"] => CursorPlace::SnapshotStart,
            positions => {
                let positions: Option<Positions> = positions.iter().map(|part| hex(part).map(Position)).collect();
                CursorPlace::After(positions.ok_or(ParseCursorError)?)
            }
        };
        let cursor = Self { registry_id, place };
        // One place has one text: this refuses a wrong checksum, upper case, leading zeros and whatever else differs.
        if cursor.to_string() == text { Ok(cursor) } else { Err(ParseCursorError) }
    }
}

impl Cursor {
    /// FNV-1a (as of draft-eastlake-fnv) over all numbers, folded to 16 bits: against accidents, not against forgers, who
    /// could gain nothing but another place in the same log.
    fn checksum(&self) -> u16 {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut add = |number: u64| {
            for byte in number.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        add(self.registry_id.0);
        match &self.place {
            CursorPlace::SnapshotStart => add(u64::MAX),
            CursorPlace::After(positions) => positions.iter().for_each(|position| add(position.0)),
        }
        (hash ^ (hash >> 16) ^ (hash >> 32) ^ (hash >> 48)) as u16
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(positions: &[u64]) -> Cursor {
        let positions = positions.iter().copied().map(Position).collect();
        Cursor { registry_id: RegistryId(0xdead_beef), place: CursorPlace::After(positions) }
    }

    #[test]
    fn a_cursor_survives_its_text() {
        let start = Cursor { registry_id: RegistryId(7), place: CursorPlace::SnapshotStart };
        for cursor in [cursor(&[0]), cursor(&[u64::MAX]), cursor(&[1, 0, 0xabc]), start] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }

    #[test]
    fn any_other_text_is_refused() {
        let text = cursor(&[0x1234, 7]).to_string();
        for end in 0..text.len() {
            assert_eq!(text[..end].parse::<Cursor>(), Err(ParseCursorError), "{}", &text[..end]);
        }
        for bad in ["-", "s", "-s-", "00000000deadbeef--0000", "+0000000deadbeef-1-0000", "\u{0}", "é-é-é"] {
            assert_eq!(bad.parse::<Cursor>(), Err(ParseCursorError), "{bad}");
        }
        assert_eq!(text.to_uppercase().parse::<Cursor>(), Err(ParseCursorError));
        assert_eq!(text.replace("1234", "1235").parse::<Cursor>(), Err(ParseCursorError));
        assert_eq!("-".repeat(1 << 20).parse::<Cursor>(), Err(ParseCursorError));
    }
}
