//! The program's lease commands against the real server.

use std::time::Duration;

use sessiond::{client::Client, session::LeaseId};

use crate::{
    cli::{assert_fails, exit_code, line, lines, printed, sessiond},
    fake::{nowhere, soon},
    lease_guard::Registry,
    program::{Ended, run, signal},
};

const TTL: Duration = Duration::from_secs(60);

async fn granted(client: &Client) -> LeaseId {
    client.grant_lease(TTL, "test").await.unwrap().id
}

async fn ended(registry: &Registry, args: &[&str]) -> Ended {
    run(sessiond(&registry.url(), args)).await
}

#[tokio::test]
async fn a_lease_is_granted_used_and_revoked() {
    let registry = Registry::start().await;
    let grant = ended(&registry, &["lease", "grant", "--ttl", "1m", "--owner", "a gateway"]).await;
    let lease = grant.stdout.trim_end().to_owned();
    assert_eq!(grant, printed(0, &format!("{lease}\n")));
    let parsed: LeaseId = lease.parse().unwrap();
    assert_eq!(registry.client().keep_lease_alive(parsed).await.unwrap(), TTL);

    let create = ended(&registry, &["create", "--lease", &lease, "1", "2", "-3"]).await;
    assert_eq!(create, printed(0, "1 created\n2 created\n-3 created\n"));
    let keep = ended(&registry, &["lease", "keep-alive", &lease]).await;
    assert_eq!(keep, printed(0, &format!("{lease} lives for 1m\n")));
    let destroy = ended(&registry, &["destroy", "2", "--lease", &lease]).await;
    assert_eq!(destroy, printed(0, "2 destroyed\n"));
    let revoke = ended(&registry, &["lease", "revoke", &lease]).await;
    assert_eq!(revoke, printed(0, &format!("{lease} revoked, 2 sessions destroyed\n")));
    assert_eq!(ended(&registry, &["has", "1"]).await, printed(1, "1 missing\n"));
}

#[tokio::test]
async fn lease_list_shows_leases_and_revoke_lets_them_linger() {
    let registry = Registry::start().await;
    assert_eq!(ended(&registry, &["lease", "list"]).await, printed(0, ""));
    let lease = ended(&registry, &["lease", "grant", "--ttl", "10m", "--owner", "10.0.0.1:443"]).await.stdout;
    let lease = lease.trim_end();
    ended(&registry, &["create", "--lease", lease, "1", "2"]).await;
    let list = ended(&registry, &["lease", "list"]).await;
    assert_eq!(list.code, Some(0), "{list:?}");
    assert!(list.stdout.starts_with(&format!("{lease} 10.0.0.1:443 2 sessions, ends in 9m 5")), "{list:?}");
    let list = ended(&registry, &["lease", "list", "--format", "json"]).await.stdout;
    let line =
        format!("{{\"lease_id\":\"{lease}\",\"owner\":\"10.0.0.1:443\",\"session_count\":\"2\",\"ttl_ms\":600000,");
    assert!(list.starts_with(&line) && list.ends_with(",\"lingers\":false}\n"), "{list}");
    let linger = ended(&registry, &["lease", "revoke", lease, "--linger", "1m"]).await;
    assert_eq!(linger, printed(0, &format!("{lease} lingers and ends within 1m\n")));
    let list = ended(&registry, &["lease", "list", lease, "--owner", "10.0.0.1:443"]).await;
    assert!(list.stdout.starts_with(&format!("{lease} 10.0.0.1:443 2 sessions, lingers, ends in 5")), "{list:?}");
    assert_fails(&ended(&registry, &["create", "--lease", lease, "3"]).await, 1, "lingers");
    let revoke = ended(&registry, &["lease", "revoke", lease]).await;
    assert_eq!(revoke, printed(0, &format!("{lease} revoked, 2 sessions destroyed\n")));
    assert_eq!(ended(&registry, &["lease", "list", lease]).await, printed(1, ""));
}

#[tokio::test]
async fn lookup_prints_leases_and_create_takes_only_from_the_given_lease() {
    let registry = Registry::start().await;
    let grant = async |owner| registry.client().grant_lease(TTL, owner).await.unwrap().id.to_string();
    let (a, b) = (grant("10.0.0.1:443").await, grant("10.0.0.2:443").await);
    ended(&registry, &["create", "--lease", &a, "1"]).await;
    ended(&registry, &["create", "2"]).await;
    let lookup = ended(&registry, &["lookup", "1", "2"]).await;
    assert_eq!(lookup, printed(0, &format!("1 {a} 10.0.0.1:443\n2 under no lease\n")));
    let take = ended(&registry, &["create", "--lease", &b, "--only-from", "0", "1", "2", "3"]).await;
    assert_eq!(take, printed(0, "1 held by another lease\n2 held\n3 held\n"));
    let take = ended(&registry, &["create", "--lease", &b, "--only-from", &a, "1"]).await;
    assert_eq!(take, printed(0, "1 held\n"));
    let lookup = ended(&registry, &["lookup", "1", "4"]).await;
    assert_eq!(lookup, printed(1, &format!("1 {b} 10.0.0.2:443\n4 missing\n")));
    let json = ended(&registry, &["lookup", "1", "--format", "json"]).await;
    let line = format!(
        "{{\"session_id\":\"1\",\"auth_key_id\":\"0\",\"exists\":true,\"lease_id\":\"{b}\",\"owner\":\"10.0.0.2:443\"}}\n"
    );
    assert_eq!(json, printed(0, &line));
}

#[tokio::test]
async fn json_lines_have_lease_ids_as_strings() {
    let registry = Registry::start().await;
    let grant = ended(&registry, &["lease", "grant", "--format", "json"]).await;
    let lease: String = grant.stdout.chars().filter(char::is_ascii_digit).collect();
    let lease = lease.strip_suffix("30000").unwrap();
    let alive = format!("{{\"lease_id\":\"{lease}\",\"ttl_ms\":30000}}\n");
    assert_eq!(grant, printed(0, &alive));
    assert_eq!(ended(&registry, &["lease", "keep-alive", lease, "--format", "json"]).await, printed(0, &alive));
    let revoked = format!("{{\"lease_id\":\"{lease}\",\"sessions_destroyed\":\"0\"}}\n");
    assert_eq!(ended(&registry, &["lease", "revoke", lease, "--format", "json"]).await, printed(0, &revoked));
}

#[tokio::test]
async fn commands_exit_with_1_if_the_lease_is_gone() {
    let registry = Registry::start().await;
    for args in [
        &["lease", "keep-alive", "7"][..],
        &["lease", "keep-alive", "7", "--hold"],
        &["lease", "revoke", "7"],
        &["create", "1", "--lease", "7"],
    ] {
        let ended = ended(&registry, args).await;
        assert_fails(&ended, 1, "lease 7 is gone: ");
        assert_eq!(ended.stdout, "");
    }
    let destroy = ended(&registry, &["destroy", "1", "--lease", "7"]).await;
    assert_eq!(destroy, printed(0, "1 not under this lease\n"));
}

#[tokio::test]
async fn bad_arguments_exit_with_2_and_failed_calls_with_3() {
    let registry = Registry::start().await;
    assert_fails(&ended(&registry, &["lease", "grant", "--ttl", "100ms"]).await, 3, "ttl");
    assert_fails(&run(sessiond(&nowhere().await, &["lease", "grant"])).await, 3, "--addr");
    for args in [
        &["lease"][..],
        &["lease", "revoke"],
        &["lease", "revoke", "0"],
        &["create", "1", "--lease", "x"],
        &["lease", "grant", "--ttl", "0s"],
    ] {
        assert_eq!(ended(&registry, args).await.code, Some(2), "{args:?}");
    }
}

#[tokio::test]
async fn only_commands_with_a_lease_flag_read_it_from_the_environment() {
    let registry = Registry::start().await;
    let client = registry.client();
    let lease = granted(&client).await;
    let command = |args: &[&str], lease: &str| {
        let mut command = sessiond(&registry.url(), args);
        command.env("SESSIOND_LEASE", lease);
        command
    };
    assert_eq!(run(command(&["create", "1"], &lease.to_string())).await, printed(0, "1 created\n"));
    assert_eq!(run(command(&["has", "1"], "nonsense")).await, printed(0, "1 exists\n"));
    assert_eq!(run(command(&["destroy", "1"], "7")).await, printed(0, "1 not under this lease\n"));
    assert_eq!(client.revoke_lease(lease).await.unwrap(), 1);
}

#[tokio::test]
#[cfg(unix)]
async fn keep_alive_holds_the_lease_until_it_is_interrupted() {
    let registry = Registry::start().await;
    let client = registry.client();
    let lease = client.grant_lease(Duration::from_secs(1), "test").await.unwrap().id;
    let args = ["lease", "keep-alive", "--hold", &lease.to_string()];
    let mut child = sessiond(&registry.url(), &args).spawn().unwrap();
    let mut stdout = lines(&mut child);
    // Two ttls.
    for _ in 0..7 {
        assert_eq!(line(&mut stdout).await, format!("{lease} lives for 1s"));
    }
    signal(&child, "TERM").await;
    assert_eq!(exit_code(&mut child).await, Some(0));

    let lease = granted(&client).await;
    // The environment sets the flag too.
    let mut command = sessiond(&registry.url(), &["lease", "keep-alive", &lease.to_string()]);
    let mut child = command.env("SESSIOND_HOLD", "1").spawn().unwrap();
    let mut stdout = lines(&mut child);
    assert_eq!(line(&mut stdout).await, format!("{lease} lives for 1m"));
    signal(&child, "INT").await;
    assert_eq!(exit_code(&mut child).await, Some(0));
    client.keep_lease_alive(lease).await.expect("the lease is not revoked");
}

#[tokio::test]
async fn keep_alive_exits_when_the_lease_is_revoked_elsewhere() {
    let registry = Registry::start().await;
    let client = registry.client();
    let lease = client.grant_lease(Duration::from_secs(1), "test").await.unwrap().id;
    let mut child = sessiond(&registry.url(), &["lease", "keep-alive", "--hold", &lease.to_string()]).spawn().unwrap();
    line(&mut lines(&mut child)).await;
    client.revoke_lease(lease).await.unwrap();
    let output = soon(child.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected =
        format!("sessiond: lease {lease} is gone: grant a new one, and create the sessions again under it\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
}
