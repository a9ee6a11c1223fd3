//! Checks what an observer receives: each session is created and destroyed in turn, and no change is missing.

use super::{
    failure::Failure,
    fields::{Fields, Malformed, Value},
};

/// The field numbers of the bodies in a `SubscribeResponse` that matter here.
const EVENTS: u64 = 1;
const SUBSCRIBED: u64 = 3;
const SNAPSHOT: u64 = 4;
const RESET: u64 = 7;

/// The field number of the list elements in those bodies.
const ELEMENT: u64 = 1;

const CREATED: u64 = 1;
const DESTROYED: u64 = 2;

/// One observer's view of the run's sessions. Other sessions are ignored.
#[derive(Debug)]
pub(super) struct Check {
    auth_key_id: u64,
    /// The lowest bits of how often each session has changed. A session with an odd number exists.
    seen: Box<[u8]>,
    pub(super) events: u64,
    /// Events that repeat or contradict earlier ones.
    pub(super) violations: u64,
    pub(super) resets: u64,
    pub(super) subscribed: bool,
}

/// A change that was received: the session, and how often it has changed so far.
pub(super) type Received = (u32, u8);

impl Check {
    /// `seen` says how often each session has already changed.
    pub(super) fn new(auth_key_id: i64, seen: Box<[u8]>) -> Self {
        let auth_key_id = auth_key_id.cast_unsigned();
        Self { auth_key_id, seen, events: 0, violations: 0, resets: 0, subscribed: false }
    }

    /// Reads a message and calls `on_change` for each change in it.
    pub(super) fn read(&mut self, message: &[u8], mut on_change: impl FnMut(Received)) -> Result<(), Failure> {
        let mut fields = Fields(message);
        while let Some((number, value)) = fields.next()? {
            let Value::Bytes(body) = value else { continue };
            match number {
                EVENTS => each(body, |event| {
                    let [kind, session, auth_key_id] = numbers(event)?;
                    if auth_key_id == self.auth_key_id
                        && let Some(received) = self.event(kind, session)
                    {
                        on_change(received);
                    }
                    Ok(())
                })?,
                SUBSCRIBED => self.subscribed = true,
                SNAPSHOT => each(body, |session| {
                    // A session has no type, so its field numbers are one lower.
                    let [session, auth_key_id, _] = numbers(session)?;
                    if auth_key_id == self.auth_key_id {
                        self.existing(session);
                    }
                    Ok(())
                })?,
                RESET => {
                    self.resets += 1;
                    self.seen.fill(0);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn event(&mut self, kind: u64, session: u64) -> Option<Received> {
        self.events += 1;
        let seen = usize::try_from(session).ok().and_then(|session| self.seen.get_mut(session));
        let Some(seen) = seen.filter(|seen| kind == if **seen % 2 == 0 { CREATED } else { DESTROYED }) else {
            self.violations += 1;
            return None;
        };
        *seen = seen.wrapping_add(1);
        // An index of `seen` fits into 32 bits.
        Some((session as u32, *seen))
    }

    /// Adds a session of a snapshot.
    fn existing(&mut self, session: u64) {
        let seen = usize::try_from(session).ok().and_then(|session| self.seen.get_mut(session));
        match seen.filter(|seen| **seen % 2 == 0) {
            Some(seen) => *seen = 1,
            None => self.violations += 1,
        }
    }

    /// Returns how many sessions have not changed as often as `counts` says. Meaningless after a reset.
    pub(super) fn differences(&self, counts: &[u8]) -> u64 {
        self.seen.iter().zip(counts).filter(|(seen, count)| seen != count).count() as u64
    }
}

/// Passes the elements of a list to `take`.
fn each(list: &[u8], mut take: impl FnMut(&[u8]) -> Result<(), Malformed>) -> Result<(), Malformed> {
    let mut fields = Fields(list);
    while let Some((number, value)) = fields.next()? {
        if let (ELEMENT, Value::Bytes(element)) = (number, value) {
            take(element)?;
        }
    }
    Ok(())
}

/// Reads the fields 1 to 3 of a message of numbers.
fn numbers(message: &[u8]) -> Result<[u64; 3], Malformed> {
    let mut numbers = [0; 3];
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        if let (1..=3, Value::Number(value)) = (number, value) {
            numbers[number as usize - 1] = value;
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use sessiond::proto::{
        Reset, Session, SessionEvent, SessionEvents, Snapshot, SubscribeResponse, Subscribed, subscribe_response::Body,
    };

    use super::*;

    const KEY: i64 = -5;

    fn events(events: &[(i32, i64, i64)]) -> Body {
        let event = |&(r#type, session_id, auth_key_id): &(i32, i64, i64)| SessionEvent {
            r#type,
            session_id,
            auth_key_id,
            reason: r#type - 1,
            ..Default::default()
        };
        Body::Events(SessionEvents { events: events.iter().map(event).collect(), ..Default::default() })
    }

    fn snapshot(sessions: &[i64]) -> Body {
        let session = |&session_id: &i64| Session { session_id, auth_key_id: KEY, ..Default::default() };
        Body::Snapshot(Snapshot { sessions: sessions.iter().map(session).collect() })
    }

    fn read(check: &mut Check, body: Body) -> Vec<Received> {
        let message = SubscribeResponse { body: Some(body), cursor: "a cursor".to_owned() }.encode_to_vec();
        let mut received = Vec::new();
        check.read(&message, |change| received.push(change)).unwrap();
        received
    }

    #[test]
    fn alternating_changes_are_accepted() {
        let mut check = Check::new(KEY, [0, 1, 0].into());
        read(&mut check, Body::Subscribed(Subscribed::default()));
        assert!(check.subscribed);
        let received = read(&mut check, events(&[(1, 0, KEY), (2, 1, KEY), (1, 0, 7), (2, 0, KEY), (1, 1, KEY)]));
        assert_eq!(received, [(0, 1), (1, 2), (0, 2), (1, 3)]);
        assert_eq!((check.events, check.violations, check.differences(&[2, 3, 0])), (4, 0, 0));
        assert_eq!(check.differences(&[4, 3, 0]), 1);
    }

    #[test]
    fn repeated_missing_and_unknown_changes_are_violations() {
        for bad in [(1, 1), (2, 0), (1, 3), (1, -1), (0, 0), (3, 1)] {
            let mut check = Check::new(KEY, [0, 1, 0].into());
            assert_eq!(read(&mut check, events(&[(bad.0, bad.1, KEY)])), []);
            assert_eq!((check.events, check.violations), (1, 1), "{bad:?}");
        }
    }

    #[test]
    fn snapshot_after_a_reset_starts_over() {
        let mut check = Check::new(KEY, [0, 1, 0].into());
        read(&mut check, Body::Reset(Reset { reason: 3 }));
        read(&mut check, snapshot(&[0]));
        read(&mut check, events(&[(1, 1, KEY), (2, 0, KEY)]));
        read(&mut check, snapshot(&[2]));
        assert_eq!((check.resets, check.violations), (1, 0));
        read(&mut check, snapshot(&[2]));
        assert_eq!(check.violations, 1);
    }
}
