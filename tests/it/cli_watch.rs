//! `watch` with placements against the real server.

use std::time::Duration;

use sessiond::{
    client::Client,
    session::{LeaseId, SessionKey},
};

use crate::{
    cli::{line, lines, sessiond},
    fake::Fake,
    lease_guard::Registry,
};

fn key(id: i64) -> SessionKey {
    SessionKey::new(0, id)
}

async fn grant(client: &Client) -> LeaseId {
    client.grant_lease(Duration::from_secs(60), "gateway").await.unwrap().id
}

/// Moves session 1 from `a` to `b`, creates session 2, moves it to `a` and destroys it, then revokes `b`.
async fn change(client: &Client, a: LeaseId, b: LeaseId) {
    assert!(!client.create_under(key(1), b).await.unwrap());
    assert!(client.create(key(2)).await.unwrap());
    assert!(!client.create_under(key(2), a).await.unwrap());
    assert!(client.destroy_under(key(2), a).await.unwrap());
    assert_eq!(client.revoke_lease(b).await.unwrap(), 1);
}

#[tokio::test]
async fn text_lines_show_leases_only_with_placements() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (a, b) = (grant(&client).await, grant(&client).await);
    client.create_under(key(1), a).await.unwrap();
    let mut placed = sessiond(&registry.url(), &["watch", "--snapshot", "--placements"]).spawn().unwrap();
    let mut plain = sessiond(&registry.url(), &["watch", "--snapshot"]).spawn().unwrap();
    let (mut placed, mut plain) = (lines(&mut placed), lines(&mut plain));
    let columns = |what, id| format!("{what:<9} {id:>20}                    0");
    assert_eq!(line(&mut placed).await, format!("{}  lease={a}", columns("exists", 1)));
    assert_eq!(line(&mut plain).await, columns("exists", 1));
    change(&client, a, b).await;
    for expected in [
        format!("{}  lease={b} from={a}", columns("moved", 1)),
        columns("created", 2),
        format!("{}  lease={a}", columns("moved", 2)),
        format!("{}  released lease={a}", columns("destroyed", 2)),
        format!("{}  lease_revoked lease={b}", columns("destroyed", 1)),
    ] {
        assert_eq!(line(&mut placed).await, expected);
    }
    for expected in [
        columns("created", 2),
        format!("{}  requested", columns("destroyed", 2)),
        format!("{}  lease_revoked", columns("destroyed", 1)),
    ] {
        assert_eq!(line(&mut plain).await, expected);
    }
}

#[tokio::test]
async fn json_lines_of_a_watch_by_lease_have_leases_and_places() {
    let registry = Registry::start().await;
    let client = registry.client();
    let (a, b) = (grant(&client).await, grant(&client).await);
    client.create_under(key(1), a).await.unwrap();
    let args = ["watch", "--snapshot", "--lease", &a.to_string(), "--format", "json"];
    let mut child = sessiond(&registry.url(), &args).spawn().unwrap();
    let mut stdout = lines(&mut child);
    let places = |position| format!(r#""places":[{{"partition":0,"position":"{position}"}}],"cursor":""#);
    let session = |what, id| format!(r#"{{"type":"{what}","session_id":"{id}","auth_key_id":"0","#);
    let subscribed = line(&mut stdout).await;
    assert!(subscribed.contains(&places(1)), "{subscribed}");
    assert_eq!(line(&mut stdout).await, format!(r#"{}"lease_id":"{a}"}}"#, session("snapshot", 1)));
    let synced = line(&mut stdout).await;
    assert!(synced.starts_with(&format!(r#"{{"type":"synced","session_count":"1",{}"#, places(1))), "{synced}");

    // One change at a time, so that each message has one event.
    assert!(!client.create_under(key(1), b).await.unwrap());
    let moved = line(&mut stdout).await;
    let expected = format!(r#"{}"lease_id":"{b}","previous_lease_id":"{a}",{}"#, session("moved", 1), places(2));
    assert!(moved.starts_with(&expected), "{moved}");
    assert!(client.create(key(2)).await.unwrap());
    assert!(!client.create_under(key(2), a).await.unwrap());
    let moved = line(&mut stdout).await;
    let expected = format!(r#"{}"lease_id":"{a}",{}"#, session("moved", 2), places(4));
    assert!(moved.starts_with(&expected), "{moved}");
    assert!(client.destroy_under(key(2), a).await.unwrap());
    let destroyed = line(&mut stdout).await;
    let expected = format!(r#"{}"reason":"released","lease_id":"{a}",{}"#, session("destroyed", 2), places(5));
    assert!(destroyed.starts_with(&expected), "{destroyed}");
}

#[tokio::test]
async fn the_environment_sets_placements_and_leases() {
    let mut fake = Fake::start().await;
    let mut command = sessiond(&fake.addr, &["watch"]);
    let _watch = command.env("SESSIOND_PLACEMENTS", "1").env("SESSIOND_LEASE", "5,6").spawn().unwrap();
    let request = fake.stream().await.request;
    assert_eq!((request.placements, request.lease_ids), (true, vec![5, 6]));
}
