//! Cursors: an observer's place in a registry's changes, as text that it can resume with.

use std::{fmt, str::FromStr};

use smallvec::SmallVec;

use crate::storage::{LogPoint, Mark, Position, RegistryId};

/// A position in each partition of a storage's log.
pub(crate) type Positions = SmallVec<[Position; 1]>;

/// A log point in each partition.
pub(crate) type Points = SmallVec<[LogPoint; 1]>;

/// Returns the later of the two points in each partition.
pub(crate) fn later(points: &Points, others: &Points) -> Points {
    let later = |(point, other): (&LogPoint, &LogPoint)| if point.position < other.position { *other } else { *point };
    points.iter().zip(others).map(later).collect()
}

/// A place in a registry's changes, from which an observer can resume.
///
/// Its text is opaque to clients. It consists of the registry's id, a hexadecimal position for each partition of the
/// log, a hash of the marks at these positions, and a checksum. A cursor before a snapshot has `s` instead of positions
/// and hash. The checksum keeps truncated or mistyped text from being taken for another place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(crate) registry_id: RegistryId,
    pub(crate) place: CursorPlace,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CursorPlace {
    /// Right before a full snapshot.
    SnapshotStart,
    /// Right after the change at this position in each partition, in this history.
    After(Positions, History),
}

/// A hash of the marks at a cursor's positions. It distinguishes the cursor's history from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct History(u64);

impl History {
    /// Hashes the marks of all partitions, in order.
    pub(crate) fn of(marks: impl IntoIterator<Item = Mark>) -> Self {
        Self(fnv(marks.into_iter().map(|mark| mark.0)))
    }
}

/// The error for text that is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed cursor: send a cursor exactly as it was received, or none")]
pub struct ParseCursorError;

/// The maximum length of a cursor with one position, in bytes.
const TEXT_LEN: usize = 16 + 1 + 16 + 1 + 16 + 1 + 4;

/// More partitions than any log has. Parsing stops there.
const MAX_PARTITIONS: usize = 1024;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl FromStr for Cursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, ParseCursorError> {
        let mut parts = text.split('-');
        let registry_id = parts.next().and_then(hex).map(RegistryId).ok_or(ParseCursorError)?;
        let mut parts: SmallVec<[&str; 4]> = parts.take(MAX_PARTITIONS + 3).collect();
        parts.pop();
        let place = match parts.as_slice() {
            ["s"] => CursorPlace::SnapshotStart,
            [positions @ .., history] if !positions.is_empty() => {
                let positions: Option<Positions> = positions.iter().map(|part| hex(part).map(Position)).collect();
                let history = hex(history).map(History).ok_or(ParseCursorError)?;
                CursorPlace::After(positions.ok_or(ParseCursorError)?, history)
            }
            _ => return Err(ParseCursorError),
        };
        let cursor = Self { registry_id, place };
        // Each place has exactly one text. Comparing it rejects a wrong checksum, upper case, leading zeros and any
        // other deviation.
        if cursor.text() == text { Ok(cursor) } else { Err(ParseCursorError) }
    }
}

impl Cursor {
    /// Returns the cursor of the place right after these points.
    pub(crate) fn after(registry_id: RegistryId, points: &[LogPoint]) -> Self {
        let positions = points.iter().map(|point| point.position).collect();
        let history = History::of(points.iter().map(|point| point.mark));
        Self { registry_id, place: CursorPlace::After(positions, history) }
    }

    /// Returns the cursor's text. Every message of events carries one, and `fmt` would double its cost.
    pub(crate) fn text(&self) -> String {
        let mut text = String::with_capacity(TEXT_LEN);
        push_hex(&mut text, self.registry_id.0, 16);
        match &self.place {
            CursorPlace::SnapshotStart => text.push_str("-s"),
            CursorPlace::After(positions, history) => {
                for position in positions {
                    text.push('-');
                    push_hex(&mut text, position.0, 1);
                }
                text.push('-');
                push_hex(&mut text, history.0, 16);
            }
        }
        text.push('-');
        push_hex(&mut text, self.checksum().into(), 4);
        text
    }

    /// Returns a 16-bit hash of all numbers. It protects against accidents, not against forgers, who could only gain
    /// another place in the same log.
    fn checksum(&self) -> u16 {
        let place: SmallVec<[u64; 2]> = match &self.place {
            CursorPlace::SnapshotStart => SmallVec::from_slice(&[u64::MAX]),
            CursorPlace::After(positions, history) => {
                positions.iter().map(|position| position.0).chain([history.0]).collect()
            }
        };
        let hash = fnv([self.registry_id.0].into_iter().chain(place));
        (hash ^ (hash >> 16) ^ (hash >> 32) ^ (hash >> 48)) as u16
    }
}

/// Hashes numbers with FNV-1a, as specified in draft-eastlake-fnv.
fn fnv(numbers: impl IntoIterator<Item = u64>) -> u64 {
    let bytes = numbers.into_iter().flat_map(u64::to_le_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Appends a number in hexadecimal with at least `least` digits.
fn push_hex(text: &mut String, number: u64, least: u32) {
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(least);
    text.extend((0..digits).rev().map(|place| char::from(b"0123456789abcdef"[(number >> (4 * place)) as usize % 16])));
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(numbers: &[u64]) -> Points {
        numbers.iter().map(|number| LogPoint { position: Position(*number), mark: Mark(!number) }).collect()
    }

    fn cursor(numbers: &[u64]) -> Cursor {
        Cursor::after(RegistryId(0xdead_beef), &points(numbers))
    }

    #[test]
    fn cursor_round_trips_through_text() {
        let start = Cursor { registry_id: RegistryId(7), place: CursorPlace::SnapshotStart };
        for cursor in [cursor(&[0]), cursor(&[u64::MAX]), cursor(&[1, 0, 0xabc]), start] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }

    #[test]
    fn text_format_is_stable() {
        let text = "144b0767d0c03804-0-1-ffffffffffffffff-0000000000000000-bc17";
        let positions = [0, 1, u64::MAX].into_iter().map(Position).collect();
        let place = CursorPlace::After(positions, History(0));
        assert_eq!(text.parse(), Ok(Cursor { registry_id: RegistryId(0x144b_0767_d0c0_3804), place }));
        let text = "144b0767d0c03804-2f-9e3779b97f4a7c15-6b54";
        assert_eq!(text.parse::<Cursor>().unwrap().to_string(), text);
    }

    #[test]
    fn malformed_text_is_refused() {
        let text = cursor(&[0x1234, 7]).to_string();
        for end in 0..text.len() {
            assert_eq!(text[..end].parse::<Cursor>(), Err(ParseCursorError), "{}", &text[..end]);
        }
        let bad = ["-", "s", "-s-", "00000000deadbeef--0000", "00000000deadbeef-1-0000", "\u{0}", "é-é-é-é"];
        for bad in bad.into_iter().chain(["+0000000deadbeef-1-0000000000000000-0000"]) {
            assert_eq!(bad.parse::<Cursor>(), Err(ParseCursorError), "{bad}");
        }
        assert_eq!(text.to_uppercase().parse::<Cursor>(), Err(ParseCursorError));
        assert_eq!(text.replace("1234", "1235").parse::<Cursor>(), Err(ParseCursorError));
        assert_eq!("-".repeat(1 << 20).parse::<Cursor>(), Err(ParseCursorError));
    }

    #[test]
    fn cursors_of_different_histories_differ() {
        let all = cursor(&[1, 2, 3]);
        for differs in 0..3 {
            let mut points = points(&[1, 2, 3]);
            points[differs].mark.0 ^= 1;
            assert_ne!(Cursor::after(all.registry_id, &points), all);
        }
        let mut swapped = points(&[1, 1, 3]);
        (swapped[0].mark, swapped[1].mark) = (Mark(1), Mark(2));
        let straight = Cursor::after(all.registry_id, &swapped);
        (swapped[0].mark, swapped[1].mark) = (Mark(2), Mark(1));
        assert_ne!(Cursor::after(all.registry_id, &swapped), straight);
    }
}
