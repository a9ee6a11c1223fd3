//! Passwords in `--storage` are never printed, however the URL is given and whatever is wrong with it.

use tokio::process::Command;

use crate::program::{command, run};

/// The two halves of the password, which every URL below contains.
const SECRETS: [&str; 2] = ["hu9t", "er7x"];

const URLS: [&str; 20] = [
    // These three are valid, but nothing listens there.
    "redis://user:hu9ter7x@127.0.0.1:1",
    "redis+cluster://:hu9ter7x@127.0.0.1:1,127.0.0.1:2",
    "redis+sentinel://:hu9ter7x@127.0.0.1:1,127.0.0.1:2/main?sentinel_password=hu9ter7x",
    "redis+sentinel://h:1/main?sentinel_username=user&sentinel_password=hu9t&er7x",
    "redis+sentinel://h:1/main?sentinel_password=hu9t?er7x",
    "redis+sentinel://h:1/main?sentinel_password=hu9t@er7x",
    "redis+sentinel://h:1/main?sentinel_password=hu9t#er7x",
    "redis+sentinel://h:1?sentinel_password=hu9ter7x",
    "valkey://user:hu9ter7x@h:1",
    "redis:user:hu9ter7x@h:1",
    "redis:/user:hu9ter7x@h:1",
    "user:hu9ter7x@h:1",
    "hu9ter7x",
    "redis://user:hu9t?er7x@h:1",
    "redis://user:hu9t/er7x@h:1",
    "redis://user:hu9t#er7x@h:1",
    "redis://user:hu9ter7x@h:1?partitions=x",
    "redis://user:hu9t@er7x@h:x",
    "redis://user:hu9ter7x@",
    "redis://h:1?password=hu9ter7x",
];

fn sessiond(args: &[&str]) -> Command {
    let mut command = command(args);
    // A server that starts anyway would never exit, so the deadline would fail the test.
    command.env("SESSIOND_LISTEN", "127.0.0.1:0").env("SESSIOND_ADMIN_LISTEN", "127.0.0.1:0");
    command.env("SESSIOND_STORAGE_WAIT", "0").env("SESSIOND_LOG", "trace");
    command
}

async fn printed(command: Command) -> String {
    let ended = run(command).await;
    ended.stdout + &ended.stderr
}

#[tokio::test]
async fn a_storage_password_is_never_printed() {
    let mut leaks = Vec::new();
    for url in URLS {
        let (flag, misspelt) = (format!("--storage={url}"), format!("--storag={url}"));
        let as_storage: [&[&str]; 7] = [
            &["serve", "--storage", url],
            &["serve", &flag],
            &["--storage", url],
            &["serve", &flag, "--storage", url],
            &["serve", &misspelt],
            &["serve", &flag, "--workers", "none"],
            &["serve", &flag, "--help"],
        ];
        // Elsewhere on the command line, only text that looks like a URL or a login is redacted.
        let misplaced: [&[&str]; 7] = [
            &["serve", "--storag", url],
            &["serve", "--storage", "memory:", url],
            &["serve", "--listen", url],
            &["serve", "--workers", url],
            &["serve", "--otlp-endpoint", url],
            &["has", "1", "--addr", url],
            &[url],
        ];
        let misplaced = misplaced.into_iter().filter(|_| url.contains(['@', '?']));
        let mut commands: Vec<(String, Command)> =
            as_storage.into_iter().chain(misplaced).map(|args| (format!("{args:?}"), sessiond(args))).collect();
        for args in [&["serve"][..], &["--help"], &["serve", "--help"], &["serve", "-h"], &["serve", "--nonsense"]] {
            let mut command = sessiond(args);
            command.env("SESSIOND_STORAGE", url);
            commands.push((format!("SESSIOND_STORAGE={url} {args:?}"), command));
        }
        for variable in ["SESSIOND_ADDR", "SESSIOND_OTLP_ENDPOINT"] {
            for command in ["serve", "has"] {
                let mut help = sessiond(&[command, "--help"]);
                help.env(variable, url);
                commands.push((format!("{variable}={url} {command} --help"), help));
            }
        }
        for (what, command) in commands {
            let text = printed(command).await;
            if SECRETS.iter().any(|secret| text.contains(secret)) {
                leaks.push(format!("{what}:\n{text}"));
            }
        }
    }
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
}

#[tokio::test]
async fn storage_errors_without_the_password_still_say_what_is_wrong() {
    for (url, says) in [
        (
            "valkey://user:hu9ter7x@h:1",
            "valkey:// does not name a storage: write memory:, file:PATH, or redis://HOST:PORT",
        ),
        ("redis://user:hu9t?er7x@h:1", "%3F"),
        ("redis://h:1?password=hu9ter7x", "redis://USER:PASSWORD@HOST:PORT"),
        ("redis://user:hu9ter7x@h:1?partitions=x", "partitions=x is not a number"),
        ("redis+sentinel://h:1/main?sentinel_password=hu9t&er7x", "%26 for &"),
        ("redis+sentinel://h:1/main?sentinel_password=hu9t:er7x", "%3A for :"),
        ("redis+sentinel://127.0.0.1:1/main?sentinel_password=hu9ter7x", "sentinel_password=*** cannot be opened"),
        ("redis://user:hu9ter7x@127.0.0.1:1", "redis://user:***@127.0.0.1:1 cannot be opened"),
    ] {
        let text = printed(sessiond(&["serve", "--storage", url])).await;
        assert!(text.contains(says), "{url}: {text}");
    }
}
