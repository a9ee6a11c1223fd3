"""The Rust client, broken on purpose. Each mutant replaces some text of its source, and MUTANTS in suite.py says what notices it."""

import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[3]
# A copy of the tree, which stays so that the next mutant compiles only what differs.
COPY = ROOT / "target/mutants/tree"
GATEWAY = "src/client/gateway/"

# The file, the text, and what replaces it.
REPLACEMENTS = {
    "takes_from_anyone": (
        GATEWAY + "rounds.rs",
        "self.client.batch_take(&sessions, lease, only_from).await",
        "{ let holder = self.client.batch_lookup(&sessions).await?[0].lease; "
        "let _ = only_from; self.client.batch_take(&sessions, lease, holder).await }",
    ),
    "leaves_ghosts": (
        GATEWAY + "book.rs",
        "if lease != self.lease || self.is_stopped {",
        "if lease != self.lease || self.is_stopped || !self.entries.contains_key(&session) {",
    ),
    "destroys_under_any_lease": (
        GATEWAY + "rounds.rs",
        "self.client.batch_destroy_under(&sessions, lease).await",
        "self.client.batch_destroy(&sessions).await",
    ),
    "never_closes": (GATEWAY + "hints.rs", "book.left(event.session, id, left);", "let _ = left;"),
    "restores_nothing": (GATEWAY + "book.rs", "open.into_iter().for_each(|session| self.settle(session));", "drop(open);"),
    "closes_all_when_the_lease_is_lost": (GATEWAY + "rounds.rs", "        Ok((found, is_held))\n", "        Ok((found, true))\n"),
    "stops_without_linger": (GATEWAY[:-1] + ".rs", "lease.linger(linger).await", "lease.linger(linger * 0).await"),
    "first_close_ends_the_session": (
        GATEWAY + "book.rs",
        "entry.open.retain(|open| !Arc::ptr_eq(&open.signal, signal));",
        "entry.open.clear(); let _ = signal;",
    ),
    "forgets_the_cursor": ("src/client/watch.rs", "Some(Start::Cursor(cursor.clone()))", "{ let _ = cursor; None }"),
    "keeps_the_old_token": ("src/client/watch.rs", "error.is_retryable() || self.has_newer_token(&error)", "error.is_retryable()"),
    "ignores_moves": (GATEWAY + "hints.rs", "Some(to)) if to != id => Some(Left::Moved(to))", "Some(to)) if to != id => None"),
    "never_notices_silence": (
        "src/client/watch.rs",
        "(heartbeat * SILENT_HEARTBEATS).max(heartbeat + SILENCE_SLACK)",
        "MAX_HEARTBEAT.max(heartbeat * SILENT_HEARTBEATS + SILENCE_SLACK)",
    ),
}


def copy_tree():
    """Copies the files that git knows, unless the copy is up to date."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout
    for name in names.split("\0"):
        source, target = ROOT / name, COPY / name
        if name and source.is_file() and (not target.is_file() or source.read_bytes() != target.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def build(mutant):
    """Builds the agent with this mutant. Returns the path of the program."""
    copy_tree()
    file, text, replacement = REPLACEMENTS[mutant]
    source = (COPY / file).read_text()
    if source.count(text) != 1:
        raise SystemExit(f"{mutant}: {file} does not have {text!r} once: change the mutant with the source")
    (COPY / file).write_text(source.replace(text, replacement))
    command = ["cargo", "build", "--quiet", "--locked", "--example", "client_agent", "--no-default-features", "--features", "client"]
    environment = os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target/mutants"), "RUSTFLAGS": "--cap-lints warn"}
    subprocess.run(command, cwd=COPY, env=environment, check=True, stderr=subprocess.DEVNULL)
    return ROOT / "target/mutants/debug/examples/client_agent"
