//! Which registry is in Redis: how it is made, found again, moved to another id, and divided.
//!
//! A registry's id says that its log goes on. It moves to a new one when the log has lost changes: then no old cursor is
//! taken for a place in what is left. Its era says that its sessions are its own: a new one begins when the first partition
//! was found empty, and what other partitions hold of an older era is deleted.

use std::{hash::Hasher, sync::Arc};

use futures_util::future::try_join_all;
use redis::RedisError;
use siphasher::sip::SipHasher13;
use tokio::sync::watch;

use super::{
    fault::Fault,
    link::Link,
    script::{Call, Script, Scripts},
    url::{DEFAULT_BUCKETS, DEFAULT_CLUSTER_PARTITIONS, RedisUrl},
};
use crate::{
    session::SessionKey,
    storage::{Layout, RegistryId, StorageOptions},
};

/// How keys and values are laid out. Raised when an older sessiond could not read what a newer one writes.
const FORMAT: &str = "1";

/// How often a call is made again because the registry was replaced meanwhile.
const TRIES: usize = 3;

/// The most bits of the set of buckets that a lease has in a partition.
const LEASE_BITS: u32 = 1 << 14;

/// How many keys are deleted, or leases looked at, in one step.
const KEYS_A_STEP: usize = 512;

/// The registry as this replica knows it.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) registry_id: RegistryId,
    /// The same as scripts get it.
    pub(super) id: String,
    era: String,
    /// The key of the hash that puts sessions into buckets, by chance and secret: ids are chosen by clients.
    hash_key: (u64, u64),
}

/// A registry in Redis.
pub(super) struct Registry {
    pub(super) link: Link,
    pub(super) scripts: Scripts,
    pub(super) layout: Layout,
    pub(super) options: StorageOptions,
    /// What the keys of each partition begin with. The part in braces alone decides on which node of a cluster they are.
    prefixes: Vec<String>,
    identity: watch::Sender<Arc<Identity>>,
}

impl Registry {
    /// Finds the registry that `url` names, or makes it.
    pub(super) async fn open(url: &RedisUrl, options: StorageOptions) -> Result<Self, Fault> {
        let link = Link::connect(url).await?;
        let scripts = Scripts::new();
        let default_partitions = if url.is_cluster() { DEFAULT_CLUSTER_PARTITIONS } else { 1 };
        let wanted = Layout {
            buckets: url.buckets.unwrap_or(DEFAULT_BUCKETS),
            partitions: url.partitions.unwrap_or(default_partitions),
        };
        let new = Identity {
            registry_id: RegistryId(fastrand::u64(..)),
            id: String::new(),
            era: format!("{:016x}", fastrand::u64(..)),
            hash_key: (fastrand::u64(..), fastrand::u64(..)),
        };
        let prefix = |partition| format!("{{{}:{partition}}}:", url.registry);
        let meta = prefix(0) + "meta";
        let head = Head::open(&link, &scripts, &meta, &new, wanted).await?;
        let is_other = |asked: Option<u32>, found: u32| asked.is_some_and(|asked| asked != found);
        if is_other(url.buckets, head.layout.buckets) || is_other(url.partitions, head.layout.partitions) {
            let Layout { buckets, partitions } = head.layout;
            return Err(Fault::Layout(format!(
                "registry {} was made with partitions={partitions}&buckets={buckets}: leave these parameters out or give the same",
                url.registry
            )));
        }
        let registry = Self {
            link,
            scripts,
            layout: head.layout,
            options,
            prefixes: (0..head.layout.partitions).map(prefix).collect(),
            identity: watch::Sender::new(Arc::new(head.identity)),
        };
        registry.rejoin(None).await?;
        Ok(registry)
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.borrow())
    }

    /// Is told when the registry gets another id.
    pub(super) fn identities(&self) -> watch::Receiver<Arc<Identity>> {
        self.identity.subscribe()
    }

    /// A key of a partition.
    pub(super) fn key(&self, partition: u32, name: &str) -> String {
        format!("{}{name}", self.prefixes[partition as usize])
    }

    /// The key of a bucket's hash.
    pub(super) fn bucket_key(&self, bucket: u32) -> String {
        format!("{}b{bucket}", self.prefixes[self.partition_of(bucket) as usize])
    }

    /// Buckets of a partition are neighbours, so that a run of them is read in one step.
    pub(super) fn partition_of(&self, bucket: u32) -> u32 {
        bucket / self.buckets_a_partition()
    }

    pub(super) fn buckets_a_partition(&self) -> u32 {
        self.layout.buckets / self.layout.partitions
    }

    pub(super) fn bucket_of(&self, identity: &Identity, session: &SessionKey) -> u32 {
        let mut hasher = SipHasher13::new_with_keys(identity.hash_key.0, identity.hash_key.1);
        hasher.write(&session_bytes(session));
        // The high bits of the product: no division, and any number of buckets.
        ((u128::from(hasher.finish()) * u128::from(self.layout.buckets)) >> 64) as u32
    }

    /// Where in a lease's set of buckets a bucket is. Neighbours share a bit where there are many: a set has 2 KiB at most.
    pub(super) fn lease_bit(&self, bucket: u32) -> u32 {
        bucket % self.buckets_a_partition() / self.buckets_a_bit()
    }

    pub(super) fn buckets_a_bit(&self) -> u32 {
        self.buckets_a_partition().div_ceil(LEASE_BITS)
    }

    /// How many sessions a script is told to hold a partition to: -1 for its quota, where it is one of many.
    pub(super) fn session_limit(&self) -> i64 {
        if self.layout.partitions == 1 { i64::try_from(self.options.max_sessions).unwrap_or(i64::MAX) } else { -1 }
    }

    /// A call of a script on a partition: with its meta as the first of so many keys.
    pub(super) fn call<'a>(&self, script: &'a Script, partition: u32, keys: usize) -> Call<'a> {
        script.call(keys).arg(self.key(partition, "meta"))
    }

    /// Makes a call for the registry as it is known, and again when it turns out to have been replaced.
    pub(super) async fn with_identity<T, F>(&self, call: impl Fn(Arc<Identity>) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let mut tries = 0;
        loop {
            let identity = self.identity();
            match call(Arc::clone(&identity)).await {
                Err(Fault::Registry) if tries < TRIES => {
                    tries += 1;
                    self.rejoin(Some(&identity)).await?;
                }
                answer => return answer,
            }
        }
    }

    /// Finds out which registry is there now, makes it if there is none, and lets every partition join it. Any number of
    /// replicas may do so at once, and each may be cut off anywhere.
    pub(super) async fn rejoin(&self, known: Option<&Identity>) -> Result<(), Fault> {
        let mut tries = 0;
        loop {
            let current = self.identity();
            if known.is_some_and(|known| known.id != current.id) {
                return Ok(());
            }
            // Should none be there any more, the new one has the same buckets as before.
            let new = Identity {
                registry_id: RegistryId(fastrand::u64(..)),
                era: format!("{:016x}", fastrand::u64(..)),
                ..(*current).clone()
            };
            let head = Head::open(&self.link, &self.scripts, &self.key(0, "meta"), &new, self.layout).await?;
            if head.layout != self.layout {
                return Err(Fault::Layout(
                    "the registry was made anew with other partitions or buckets: start again".into(),
                ));
            }
            let mut is_lost = false;
            for partition in 1..self.layout.partitions {
                match self.join(partition, &head).await {
                    Ok(true) => {}
                    Ok(false) => is_lost = true,
                    // Somebody else was faster.
                    Err(Fault::Registry) => is_lost = true,
                    Err(fault) => return Err(fault),
                }
            }
            if !is_lost {
                if head.identity.id != current.id {
                    tracing::warn!(registry_id = head.identity.id, "the registry in Redis is another one");
                    self.identity.send_replace(Arc::new(head.identity));
                }
                return Ok(());
            }
            tries += 1;
            if tries > TRIES + self.layout.partitions as usize {
                return Err(Fault::Registry);
            }
        }
    }

    /// Moves the registry to a new id, because its log has lost changes, or a whole partition.
    pub(super) async fn abandon(&self, identity: &Identity, lost: &str) -> Result<(), Fault> {
        let new = format!("{:016x}", fastrand::u64(..));
        let call = self.call(&self.scripts.registry_move, 0, 1).arg(&identity.id).arg(new).arg(lost);
        let _: u32 = self.link.run(call).await?;
        Ok(())
    }

    /// Lets a partition join the registry. Tells whether it has; otherwise the registry has got another id.
    async fn join(&self, partition: u32, head: &Head) -> Result<bool, Fault> {
        let Identity { id, era, .. } = &head.identity;
        let mark = format!("p{partition}");
        let had_joined = head.fields.iter().any(|(name, _)| *name == mark);
        let call = self.call(&self.scripts.partition_join, partition, 1);
        let call = call.arg(id).arg(era).arg(self.buckets_a_partition()).arg(i32::from(had_joined));
        let found: String = self.link.run(call).await?;
        match found.as_str() {
            "same" => {}
            "fresh" => tracing::debug!(partition, "a partition has joined"),
            "moved" => self.follow(partition, head).await?,
            "foreign" => {
                self.wipe(partition, head).await?;
                return Ok(false);
            }
            _ => {
                tracing::error!(partition, "a partition of the registry is gone; observers start again");
                self.abandon(&head.identity, &mark).await?;
                return Ok(false);
            }
        }
        if !had_joined {
            let call = self.call(&self.scripts.registry_mark, 0, 1).arg(id).arg(mark);
            let _: u32 = self.link.run(call).await?;
        }
        Ok(true)
    }

    /// Lets a partition follow the registry to its new id.
    async fn follow(&self, partition: u32, head: &Head) -> Result<(), Fault> {
        let old: Option<String> =
            self.link.command(redis::cmd("HGET").arg(self.key(partition, "meta")).arg("id")).await?;
        self.end_orphans(partition, &head.identity).await?;
        let call = self.call(&self.scripts.partition_follow, partition, 1);
        let call = call.arg(old.unwrap_or_default()).arg(&head.identity.id).arg(&head.identity.era);
        let _: u32 = self.link.run(call).await?;
        Ok(())
    }

    /// Ends in every partition the leases that the first does not know, as when it came back with an old dump.
    pub(super) async fn end_all_orphans(&self, identity: &Identity) -> Result<(), Fault> {
        for partition in 1..self.layout.partitions {
            self.end_orphans(partition, identity).await?;
        }
        Ok(())
    }

    async fn end_orphans(&self, partition: u32, identity: &Identity) -> Result<(), Fault> {
        for leases in self.attached(partition).await?.chunks(KEYS_A_STEP) {
            let mut call = self.call(&self.scripts.lease_orphans, 0, 4);
            for name in ["leases", "ended", "claims"] {
                call = call.arg(self.key(0, name));
            }
            let call = call.arg(&identity.id).arg(partition).arg(leases);
            let _: u32 = self.link.run(call).await?;
        }
        Ok(())
    }

    /// The leases that are attached to a partition, or closed there.
    async fn attached(&self, partition: u32) -> Result<Vec<Vec<u8>>, Fault> {
        let mut leases: Vec<Vec<u8>> =
            self.link.command(redis::cmd("HKEYS").arg(self.key(partition, "attached"))).await?;
        let closed: Vec<Vec<u8>> = self.link.command(redis::cmd("HKEYS").arg(self.key(partition, "closed"))).await?;
        leases.extend(closed);
        Ok(leases)
    }

    /// Deletes what a partition has of another era.
    async fn wipe(&self, partition: u32, head: &Head) -> Result<(), Fault> {
        let meta = self.key(partition, "meta");
        let (era, buckets): (Option<String>, Option<u32>) =
            self.link.command(redis::cmd("HMGET").arg(&meta).arg("era").arg("buckets")).await?;
        let Some(era) = era.filter(|era| *era != head.identity.era) else { return Ok(()) };
        tracing::warn!(partition, "a partition has sessions of a registry that is gone; they are deleted");
        let mut keys: Vec<String> =
            self.attached(partition).await?.iter().map(|lease| self.lease_key(partition, lease)).collect();
        let first = partition * buckets.unwrap_or(0);
        keys.extend((first..first + buckets.unwrap_or(0)).map(|bucket| self.key(partition, &format!("b{bucket}"))));
        keys.extend(["log", "attached", "closed"].map(|name| self.key(partition, name)));
        // The meta goes last: until then whoever comes along begins again.
        keys.push(meta);
        for keys in keys.chunks(KEYS_A_STEP) {
            let call = self.call(&self.scripts.partition_wipe, partition, 1 + keys.len()).arg(keys).arg(&era);
            let is_ours: u32 = self.link.run(call).await?;
            if is_ours == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The key of the buckets that sessions under a lease are in.
    pub(super) fn lease_key(&self, partition: u32, lease: &[u8]) -> String {
        use std::fmt::Write;
        let mut name = String::from("l");
        lease.iter().for_each(|byte| {
            let _ = write!(name, "{byte:02x}");
        });
        self.key(partition, &name)
    }

    /// Does something for every partition at once, and gives the results in order.
    pub(super) async fn each_partition<T, F>(&self, step: impl Fn(u32) -> F) -> Result<Vec<T>, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        try_join_all((0..self.layout.partitions).map(step)).await
    }
}

/// What the first partition says of the registry.
struct Head {
    identity: Identity,
    layout: Layout,
    fields: Vec<(String, String)>,
}

impl Head {
    /// Reads it; what is there already stays.
    async fn open(link: &Link, scripts: &Scripts, meta: &str, new: &Identity, layout: Layout) -> Result<Self, Fault> {
        let hash_key = format!("{:016x}{:016x}", new.hash_key.0, new.hash_key.1);
        let Layout { buckets, partitions } = layout;
        let call = scripts.registry_open.call(1).arg(meta);
        let call = call.arg(&[
            ("format", FORMAT),
            ("id", &*new.registry_id.to_string()),
            ("era", &*new.era),
            ("hash_key", &*hash_key),
        ]);
        let call = call.arg(&[("all_buckets", buckets), ("partitions", partitions), ("buckets", buckets / partitions)]);
        let call = call.arg(&[("end", 0), ("count", 0), ("slots", 0), ("ends", 0)]);
        let fields: Vec<(String, String)> = link.run(call).await?;
        Self::parse(fields).ok_or_else(|| {
            let what = "the registry's format is not one that this version of sessiond knows";
            Fault::Broken(RedisError::from((redis::ErrorKind::Parse, what)))
        })
    }

    fn parse(fields: Vec<(String, String)>) -> Option<Self> {
        let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        if field("format")? != FORMAT {
            return None;
        }
        let key = field("hash_key")?;
        let identity = Identity {
            registry_id: RegistryId(hex(field("id")?)?),
            id: field("id")?.to_owned(),
            era: field("era")?.to_owned(),
            hash_key: (hex(key.get(..16)?)?, hex(key.get(16..)?)?),
        };
        let layout =
            Layout { buckets: field("all_buckets")?.parse().ok()?, partitions: field("partitions")?.parse().ok()? };
        if layout.partitions == 0 || !layout.buckets.is_multiple_of(layout.partitions) {
            return None;
        }
        Some(Self { identity, layout, fields })
    }
}

/// A session as Redis holds it.
pub(super) fn session_bytes(session: &SessionKey) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&session.auth_key_id.0.to_be_bytes());
    bytes[8..].copy_from_slice(&session.session_id.0.to_be_bytes());
    bytes
}

/// The session of such bytes, if they are 16.
pub(super) fn session_of(bytes: &[u8]) -> Option<SessionKey> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    let (auth_key_id, session_id) = bytes.split_at(8);
    let number = |half: &[u8]| half.try_into().map(i64::from_be_bytes).ok();
    Some(SessionKey::new(number(auth_key_id)?, number(session_id)?))
}
