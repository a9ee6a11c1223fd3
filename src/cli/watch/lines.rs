//! The lines that `watch` prints for an update.

use sessiond::{
    client::WatchUpdate,
    session::{DestroyReason, SessionChange, SessionEvent, SessionKey},
};

use crate::cli::format::JsonLine;

/// Sessions and events, in columns as wide as the longest id.
pub(super) fn text(update: &WatchUpdate, out: &mut String) {
    let mut line = |what: &str, session: &SessionKey, reason: &str| {
        let text = format!("{what:<9} {:>20} {:>20}  {reason}", session.session_id, session.auth_key_id);
        out.push_str(text.trim_end());
        out.push('\n');
    };
    match update {
        WatchUpdate::Snapshot(sessions) => sessions.iter().for_each(|found| line("exists", &found.session, "")),
        WatchUpdate::Events(events) => {
            for SessionEvent { session, change, .. } in events {
                match change {
                    SessionChange::Created => line("created", session, ""),
                    SessionChange::Destroyed(reason) => line("destroyed", session, destroy_reason(*reason)),
                    SessionChange::Moved { .. } => line("moved", session, ""),
                }
            }
        }
        _ => {}
    }
}

/// What people want to know beside sessions and events, for standard error.
pub(super) fn status(update: &WatchUpdate, addr: &str) -> Option<String> {
    match update {
        WatchUpdate::Subscribed { registry_id, .. } => Some(format!("watching registry {registry_id} at {addr}")),
        WatchUpdate::Synced { session_count } => Some(format!("the snapshot is complete: {session_count} sessions")),
        WatchUpdate::Reset(reason) => {
            Some(format!("reset ({reason}): what was printed before does not count any more, a whole snapshot follows"))
        }
        WatchUpdate::Disconnected { error, retry_in } => {
            // To the millisecond: nobody reads the rest.
            let retry_in = std::time::Duration::from_millis(u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX));
            Some(format!("{error}: trying {addr} again in {retry_in:?}"))
        }
        _ => None,
    }
}

/// A line for every session, event and other update. `cursor` is the place after the update: only its last line has it.
pub(super) fn json(update: &WatchUpdate, cursor: Option<&str>, out: &mut String) {
    match update {
        WatchUpdate::Subscribed { registry_id, heartbeat, .. } => JsonLine::begin(out)
            .text("type", "subscribed")
            .text("registry_id", registry_id)
            .plain("heartbeat_ms", heartbeat.as_millis())
            .text_if("cursor", cursor)
            .end(),
        WatchUpdate::Snapshot(sessions) => {
            for found in sessions {
                with_ids(JsonLine::begin(out).text("type", "snapshot"), &found.session).end();
            }
        }
        WatchUpdate::Synced { session_count } => JsonLine::begin(out)
            .text("type", "synced")
            .int64("session_count", session_count)
            .text_if("cursor", cursor)
            .end(),
        WatchUpdate::Events(events) => {
            for (index, event) in events.iter().enumerate() {
                let is_last = index + 1 == events.len();
                json_event(event, cursor.filter(|_| is_last), out);
            }
        }
        WatchUpdate::Heartbeat => JsonLine::begin(out).text("type", "heartbeat").text_if("cursor", cursor).end(),
        WatchUpdate::Reset(reason) => {
            JsonLine::begin(out).text("type", "reset").text("reason", &reason.to_string()).end();
        }
        WatchUpdate::Disconnected { error, retry_in } => JsonLine::begin(out)
            .text("type", "disconnected")
            .text("error", &error.to_string())
            .plain("retry_in_ms", retry_in.as_millis())
            .end(),
        // An update that this version does not know has no line.
        _ => {}
    }
}

fn json_event(event: &SessionEvent, cursor: Option<&str>, out: &mut String) {
    let (what, reason) = match event.change {
        SessionChange::Created => ("created", None),
        SessionChange::Destroyed(reason) => ("destroyed", Some(destroy_reason(reason))),
        SessionChange::Moved { .. } => ("moved", None),
    };
    with_ids(JsonLine::begin(out).text("type", what), &event.session)
        .text_if("reason", reason)
        .text_if("cursor", cursor)
        .end();
}

fn with_ids<'a>(line: JsonLine<'a>, session: &SessionKey) -> JsonLine<'a> {
    line.int64("session_id", session.session_id).int64("auth_key_id", session.auth_key_id)
}

fn destroy_reason(reason: DestroyReason) -> &'static str {
    match reason {
        DestroyReason::Requested => "requested",
        DestroyReason::Released => "released",
        DestroyReason::LeaseExpired => "lease_expired",
        DestroyReason::LeaseRevoked => "lease_revoked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> WatchUpdate {
        WatchUpdate::Events(vec![
            SessionEvent::created(SessionKey::new(7, i64::MIN), None),
            SessionEvent::destroyed(SessionKey::new(0, 42), DestroyReason::LeaseExpired, None),
        ])
    }

    #[test]
    fn text_is_aligned() {
        let mut out = String::new();
        text(&events(), &mut out);
        assert_eq!(
            out,
            "created   -9223372036854775808                    7\n\
             destroyed                   42                    0  lease_expired\n"
        );
    }

    #[test]
    fn only_the_last_line_of_a_message_has_its_cursor() {
        let mut out = String::new();
        json(&events(), Some("c1"), &mut out);
        assert_eq!(
            out,
            "{\"type\":\"created\",\"session_id\":\"-9223372036854775808\",\"auth_key_id\":\"7\"}\n\
             {\"type\":\"destroyed\",\"session_id\":\"42\",\"auth_key_id\":\"0\",\"reason\":\"lease_expired\",\"cursor\":\"c1\"}\n"
        );
    }
}
