//! What each system does not guarantee, and leaves to its users.
//!
//! The statements about the other systems come from their documentation, or follow from it:
//!
//! - Redis: [delivery at most once](https://redis.io/docs/latest/develop/pubsub/), [when `expired` events
//!   are published](https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/), [asynchronous
//!   replication](https://redis.io/docs/latest/operate/oss_and_stack/management/replication/), and
//!   [what `WAIT` does not guarantee](https://redis.io/docs/latest/commands/wait/). A hash field can have
//!   [its own expiry](https://redis.io/docs/latest/commands/hexpire/) from 7.4 on.
//! - etcd: [compaction and stale reads](https://etcd.io/docs/v3.4/learning/api/),
//!   [compaction by default](https://etcd.io/docs/v3.4/op-guide/configuration/),
//!   [the storage quota](https://etcd.io/docs/v3.4/dev-guide/limit/), `Revoke` in
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
        "One server. Its sessions are lost with the process. Observers then get a reset, and gateways create their \
         sessions again.",
    ),
    ("sessiond, file:", "One server. While it is down, no call is answered. Its disk holds the only copy."),
    (
        "sessiond, redis:",
        "A failover of Redis may lose answered changes, because Redis replicates asynchronously. Observers then get \
         a reset.",
    ),
    (
        "Redis HSET and PUBLISH",
        "A delayed gateway overwrites the newer owner. The change and its notification are two commands: one may \
         happen without the other, and two moves of a session may be published in the wrong order. A disconnected \
         subscriber loses notifications and cannot resume. Sessions do not end with their gateway: each key needs \
         its own expiry (hash fields can have one since 7.4), and each must be renewed. An expiry is published when \
         Redis deletes the key, which may be much later, over the same pub/sub. A failover may lose answered \
         changes without notifying anyone.",
    ),
    (
        "Redis script",
        "The comparison and the change are one step on one node. For pub/sub, expiry and failovers see above.",
    ),
    (
        "etcd",
        "The end of a lease deletes all its keys in one transaction, which blocks other changes. A watch can \
         resume only from revisions that are not compacted. Compaction is off by default, and until it runs every \
         move takes space, of which there are 2 GiB by default. A serializable Range may be stale. (In return, every \
         move is on disk, and in a cluster on a majority of the members.)",
    ),
    (
        "NATS KV",
        "There are no leases: a gateway must rewrite each of its keys before it expires. Watchers are notified of \
         expired keys only since 2.11, and only if the bucket has a TTL for markers. With the default history of 1, \
         a watcher that was disconnected receives the latest owner of each key, but not the moves in between. A \
         direct get may be answered by a follower that is behind. A bucket on disk is synced every two minutes by \
         default.",
    ),
];

pub(super) fn print(report: &mut Report) {
    report.part("Owners: what each system does not guarantee", &["what", "not guaranteed"]);
    for (what, limits) in LIMITS {
        report.row(&[what.to_owned(), limits.to_owned()]);
    }
}
