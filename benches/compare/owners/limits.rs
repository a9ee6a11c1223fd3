//! What each of them leaves to its users, which no figure tells.
//!
//! What is said of the others is from their documentation, or follows from it:
//!
//! - Redis: [delivery at most once](https://redis.io/docs/latest/develop/pubsub/), [when `expired` events
//!   come](https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/), [asynchronous
//!   replication](https://redis.io/docs/latest/operate/oss_and_stack/management/replication/), and
//!   [what `WAIT` leaves open](https://redis.io/docs/latest/commands/wait/). A field of a hash can
//!   [expire by itself](https://redis.io/docs/latest/commands/hexpire/) from 7.4 on.
//! - etcd: [compaction and stale reads](https://etcd.io/docs/v3.4/learning/api/),
//!   [compaction by default](https://etcd.io/docs/v3.4/op-guide/configuration/),
//!   [the space it may take](https://etcd.io/docs/v3.4/dev-guide/limit/), `Revoke` in
//!   [its lessor](https://github.com/etcd-io/etcd/blob/main/server/lease/lessor.go), and
//!   [what that transaction blocks](https://github.com/kubernetes/kubernetes/pull/98257).
//! - NATS: [direct gets](https://docs.nats.io/nats-concepts/jetstream/key-value-store),
//!   [expiry and](https://github.com/nats-io/nats-server/issues/3268)
//!   [watchers](https://github.com/nats-io/nats-server/issues/4640),
//!   [markers](https://docs.nats.io/release-notes/whats_new/whats_new_211), and
//!   [syncs](https://docs.nats.io/nats-concepts/jetstream).

use super::super::report::Report;

const LIMITS: [(&str, &str); 7] = [
    (
        "sessiond, memory:",
        "One server, and sessions end with its process. Observers get a reset then, and gateways create their \
         sessions again.",
    ),
    ("sessiond, file:", "One server: while it is down, nothing is answered. Its disk holds the only copy."),
    (
        "sessiond, redis:",
        "A failover of Redis may lose answered changes, because Redis replicates asynchronously. Observers get a \
         reset then.",
    ),
    (
        "Redis HSET and PUBLISH",
        "A gateway that returns late overwrites the newer owner. Change and notice are two commands: one may \
         happen without the other, and two moves of a session may be published in the wrong order. A subscriber \
         that is disconnected loses notices and cannot resume. Sessions do not end with their gateway: each key \
         needs an expiry of its own (a field of a hash can have one from 7.4 on), renewed key by key. An expiry is \
         published when Redis deletes the key, which may be much later, and by the same pub/sub. A failover may \
         lose answered changes, and tells nobody.",
    ),
    (
        "Redis script",
        "Compares, and is one step on one node. What was said of pub/sub, expiry and failovers still applies.",
    ),
    (
        "etcd",
        "The end of a lease deletes all its keys in one transaction, which blocks other changes. A watch resumes \
         only until compaction. Compaction is off by default, and every move takes space until then, of 2 GiB by \
         default. A serializable Range may be stale. (In return, every move is on disk, and on a majority where \
         there are several members.)",
    ),
    (
        "NATS KV",
        "There are no leases: a gateway keeps its sessions by writing every key again before it expires. Before \
         2.11, watchers are not told that a key expired; since then they are if the bucket has a TTL for markers. \
         With the default history of 1, a watcher that was disconnected learns the latest owner of each key, but \
         not the moves in between. A direct get may be answered by a follower that is behind. A bucket on disk is \
         synced every two minutes by default.",
    ),
];

pub(super) fn tell(report: &mut Report) {
    report.part("Which gateway has it: what each of them does not guarantee", &["what", "not guaranteed"]);
    for (what, limits) in LIMITS {
        report.row(&[what.to_owned(), limits.to_owned()]);
    }
}
