//! The lines that `watch` prints for an update.

use std::fmt::Write as _;

use sessiond::{
    client::{Place, SnapshotSession, WatchUpdate},
    session::{LeaseId, SessionChange, SessionEvent, SessionKey},
};

use crate::cli::format::JsonLine;

/// Prints sessions and events in columns as wide as the longest id. Leases are printed only if the watch has
/// placements.
pub(super) fn text(update: &WatchUpdate, out: &mut String) {
    match update {
        WatchUpdate::Snapshot(sessions) => {
            for SnapshotSession { session, lease } in sessions {
                text_line("exists", session, None, *lease, None, out);
            }
        }
        WatchUpdate::Events(events) => {
            for event in events {
                let (what, reason, previous) = describe(event.change);
                text_line(what, &event.session, reason, event.lease, previous, out);
            }
        }
        _ => {}
    }
}

fn text_line(
    what: &str,
    session: &SessionKey,
    reason: Option<&str>,
    lease: Option<LeaseId>,
    previous: Option<LeaseId>,
    out: &mut String,
) {
    let mut line = format!("{what:<9} {:>20} {:>20} ", session.session_id, session.auth_key_id);
    // Writing to a `String` cannot fail.
    if let Some(reason) = reason {
        let _ = write!(line, " {reason}");
    }
    if let Some(lease) = lease {
        let _ = write!(line, " lease={lease}");
    }
    if let Some(previous) = previous {
        let _ = write!(line, " from={previous}");
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// Returns what people want to know besides sessions and events. It is printed to standard error.
pub(super) fn status(update: &WatchUpdate, addr: &str) -> Option<String> {
    match update {
        WatchUpdate::Subscribed { registry_id, .. } => Some(format!("watching registry {registry_id} at {addr}")),
        WatchUpdate::Synced { session_count } => Some(format!("the snapshot is complete: {session_count} sessions")),
        WatchUpdate::Reset(reason) => {
            Some(format!("reset ({reason}): discard what was printed before; a full snapshot follows"))
        }
        WatchUpdate::Disconnected { error, retry_in } => {
            // Milliseconds are precise enough for people.
            let retry_in = std::time::Duration::from_millis(u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX));
            Some(format!("{error}: retrying {addr} in {retry_in:?}"))
        }
        _ => None,
    }
}

/// Prints a line for each session, event and other update. `cursor` and `places` are those after the whole update, so
/// only its last line has them.
pub(super) fn json(update: &WatchUpdate, cursor: Option<&str>, places: &[Place], out: &mut String) {
    let end = |line: JsonLine<'_>| with_places(line, places).text_if("cursor", cursor).end();
    match update {
        WatchUpdate::Subscribed { registry_id, heartbeat, .. } => end(JsonLine::begin(out)
            .text("type", "subscribed")
            .text("registry_id", registry_id)
            .plain("heartbeat_ms", heartbeat.as_millis())),
        WatchUpdate::Snapshot(sessions) => {
            for SnapshotSession { session, lease } in sessions {
                with_ids(JsonLine::begin(out).text("type", "snapshot"), session).int64_if("lease_id", *lease).end();
            }
        }
        WatchUpdate::Synced { session_count } => {
            end(JsonLine::begin(out).text("type", "synced").int64("session_count", session_count));
        }
        WatchUpdate::Events(events) => {
            if let [earlier @ .., last] = &events[..] {
                earlier.iter().for_each(|event| json_event(event, out).end());
                end(json_event(last, out));
            }
        }
        WatchUpdate::Heartbeat => end(JsonLine::begin(out).text("type", "heartbeat")),
        WatchUpdate::Reset(reason) => {
            JsonLine::begin(out).text("type", "reset").text("reason", &reason.to_string()).end();
        }
        WatchUpdate::Disconnected { error, retry_in } => JsonLine::begin(out)
            .text("type", "disconnected")
            .text("error", &error.to_string())
            .plain("retry_in_ms", retry_in.as_millis())
            .end(),
        // An update of a kind that this version does not know prints nothing.
        _ => {}
    }
}

fn json_event<'a>(event: &SessionEvent, out: &'a mut String) -> JsonLine<'a> {
    let (what, reason, previous) = describe(event.change);
    with_ids(JsonLine::begin(out).text("type", what), &event.session)
        .text_if("reason", reason)
        .int64_if("lease_id", event.lease)
        .int64_if("previous_lease_id", previous)
}

/// Returns what happened, why, and the lease that the session came from.
fn describe(change: SessionChange) -> (&'static str, Option<&'static str>, Option<LeaseId>) {
    match change {
        SessionChange::Created => ("created", None, None),
        SessionChange::Destroyed(reason) => ("destroyed", Some(reason.name()), None),
        SessionChange::Moved { previous } => ("moved", None, previous),
    }
}

fn with_places<'a>(line: JsonLine<'a>, places: &[Place]) -> JsonLine<'a> {
    if places.is_empty() {
        return line;
    }
    let place =
        |Place { partition, position }: &Place| format!("{{\"partition\":{partition},\"position\":\"{position}\"}}");
    let list: Vec<String> = places.iter().map(place).collect();
    line.plain("places", format_args!("[{}]", list.join(",")))
}

fn with_ids<'a>(line: JsonLine<'a>, session: &SessionKey) -> JsonLine<'a> {
    line.int64("session_id", session.session_id).int64("auth_key_id", session.auth_key_id)
}

#[cfg(test)]
mod tests {
    use sessiond::session::DestroyReason;

    use super::*;

    fn events() -> WatchUpdate {
        WatchUpdate::Events(vec![
            SessionEvent::created(SessionKey::new(7, i64::MIN), None),
            SessionEvent::destroyed(SessionKey::new(0, 42), DestroyReason::LeaseExpired, None),
        ])
    }

    #[test]
    fn text_columns_are_aligned() {
        let mut out = String::new();
        text(&events(), &mut out);
        assert_eq!(
            out,
            "created   -9223372036854775808                    7\n\
             destroyed                   42                    0  lease_expired\n"
        );
    }

    #[test]
    fn only_the_last_line_of_a_message_has_the_cursor() {
        let mut out = String::new();
        json(&events(), Some("c1"), &[], &mut out);
        assert_eq!(
            out,
            "{\"type\":\"created\",\"session_id\":\"-9223372036854775808\",\"auth_key_id\":\"7\"}\n\
             {\"type\":\"destroyed\",\"session_id\":\"42\",\"auth_key_id\":\"0\",\"reason\":\"lease_expired\",\"cursor\":\"c1\"}\n"
        );
    }
}
