//! The wall clock is set while the server runs, with libfaketime.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use sessiond::{
    access::NewToken,
    client::{Client, Watch, WatchOptions, WatchStart, WatchUpdate},
    session::{DestroyReason, SessionChange, SessionEvent, SessionKey},
};
use tonic::Code;

use crate::{certificates::text, fake::soon, program::Program, wall_clock::WallClock};

const DAY: i64 = 24 * 3600;
const HELD: SessionKey = SessionKey::new(0, 0);

/// Waits until the lease of `session` has expired, and asserts that no other session changes meanwhile.
async fn expires(watch: &mut Watch, session: SessionKey) {
    loop {
        match soon(watch.next()).await.unwrap() {
            WatchUpdate::Events(events) => {
                for SessionEvent { session: changed, change, .. } in events {
                    assert_eq!(changed, session, "{change:?}");
                    if change == SessionChange::Destroyed(DestroyReason::LeaseExpired) {
                        return;
                    }
                    assert_eq!(change, SessionChange::Created);
                }
            }
            WatchUpdate::Heartbeat => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn setting_the_wall_clock_expires_tokens_and_nothing_else() {
    let Some(clock) = WallClock::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("access");
    let (lasting, brief) = (NewToken::generate("lasting").unwrap(), NewToken::generate("brief").unwrap());
    let until = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(DAY as u64));
    let lines =
        [lasting.line("admin".parse().unwrap()), format!("{} until={until}", brief.line("read".parse().unwrap()))];
    fs::write(&list, lines.join("\n")).unwrap();
    let environment = clock.environment();
    let environment = environment.each_ref().map(|(name, value)| (name.as_str(), value.as_str()));
    let program = Program::start_in(&environment, &["--access-file", text(&list)]).await;
    let client = |token: &NewToken| {
        let builder = Client::builder(&format!("http://{}", program.addr)).unwrap();
        builder.token(token.token()).unwrap().connect_lazy().unwrap()
    };
    let (gateway, brief) = (client(&lasting), client(&brief));

    let lease = gateway.lease(Duration::from_secs(2), "gateway").await.unwrap();
    assert!(gateway.create_under(HELD, lease.id()).await.unwrap());
    let granted = lease.id();
    let mut watch = gateway.watch(WatchOptions::from_start(WatchStart::Now));
    assert!(matches!(soon(watch.next()).await.unwrap(), WatchUpdate::Subscribed { .. }));
    for (id, jump) in [(1, 2 * DAY), (2, -2 * DAY), (3, 3650 * DAY), (4, 0)] {
        let abandoned = SessionKey::new(0, id);
        let its_lease = gateway.grant_lease(Duration::from_secs(1), "").await.unwrap();
        assert!(gateway.create_under(abandoned, its_lease.id).await.unwrap());
        clock.set(jump);
        // Tokens expire by the wall clock, which shows that the server sees the jump.
        let code = soon(brief.has(HELD)).await.err().and_then(|error| error.status().map(tonic::Status::code));
        assert_eq!(code, (jump > 0).then_some(Code::Unauthenticated));
        // Leases ignore the wall clock: the abandoned one expires on time, and the one that is kept alive does not.
        expires(&mut watch, abandoned).await;
        assert!(soon(gateway.has(HELD)).await.unwrap());
    }
    assert!(lease.is_held());
    assert_eq!(lease.id(), granted);
}
