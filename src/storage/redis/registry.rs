//! The registry in Redis: how it is created, found and partitioned.
//!
//! A registry's *birth* is a random number, which all its partitions store. It never changes. Observers know the
//! registry by its *id*, another random number. When a replica notices that the log has lost changes, it gives the
//! registry a new id, so positions only grow under one id.

use std::{hash::Hasher, sync::Arc};

use futures_util::future::try_join_all;
use siphasher::sip::SipHasher13;
use tokio::sync::watch;

use super::{
    expiry::LastLook,
    fault::Fault,
    partition::{ASK, DURABLE, Partition},
    script::{Call, Script, Scripts},
    servers::Servers,
    url::{DEFAULT_BUCKETS, DEFAULT_CLUSTER_PARTITIONS, RedisUrl},
};
use crate::{
    random::random_u64,
    session::SessionKey,
    storage::{Layout, RegistryId, StorageOptions},
};

/// The version of the format of keys and values. Raised when an older sessiond could not read what a newer one writes.
const FORMAT: &str = "3";

/// How often a call is retried because the registry was replaced meanwhile, or because the tail has long passed the
/// point that Redis named.
pub(super) const TRIES: usize = 3;

/// The maximum number of bits in a lease's set of buckets in one partition.
const LEASE_BITS: u32 = 1 << 14;

/// The maximum number of keys deleted in one step.
const KEYS_A_STEP: usize = 512;

/// The registry as this replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) registry_id: RegistryId,
    pub(super) birth: String,
    /// The key of the hash that assigns sessions to buckets. It is secret, because clients choose the ids.
    hash_key: (u64, u64),
}

impl Identity {
    /// Returns whether both assign each session to the same bucket.
    pub(super) fn has_same_buckets(&self, other: &Self) -> bool {
        self.hash_key == other.hash_key
    }
}

/// A registry in Redis.
pub(super) struct Registry {
    pub(super) scripts: Scripts,
    pub(super) layout: Layout,
    pub(super) options: StorageOptions,
    pub(super) last_look: LastLook,
    servers: Arc<Servers>,
    partitions: Vec<Arc<Partition>>,
    identity: watch::Sender<Arc<Identity>>,
}

impl Registry {
    /// Opens the registry that `url` names. Creates it if it does not exist.
    pub(super) async fn open(url: &RedisUrl, options: StorageOptions, servers: Arc<Servers>) -> Result<Self, Fault> {
        let scripts = Scripts::new();
        let default_partitions = if servers.is_cluster() { DEFAULT_CLUSTER_PARTITIONS } else { 1 };
        let wanted = Layout {
            buckets: url.buckets.unwrap_or(DEFAULT_BUCKETS),
            partitions: url.partitions.unwrap_or(default_partitions),
        };
        let first = Partition::new(0, url, &servers);
        super::probe::check_permissions(&first, &scripts).await?;
        let head = Head::open(&first, &scripts, &Head::new(wanted)).await?;
        let is_other = |asked: Option<u32>, found: u32| asked.is_some_and(|asked| asked != found);
        if is_other(url.buckets, head.layout.buckets) || is_other(url.partitions, head.layout.partitions) {
            let Layout { buckets, partitions } = head.layout;
            return Err(Fault::Setup(format!(
                "registry {} was created with partitions={partitions}&buckets={buckets}: \
                 omit these parameters or use the same values",
                url.registry
            )));
        }
        let others = (1..head.layout.partitions).map(|number| Partition::new(number, url, &servers));
        let registry = Self {
            scripts,
            layout: head.layout,
            options,
            last_look: LastLook::default(),
            servers: Arc::clone(&servers),
            partitions: std::iter::once(first).chain(others).map(Arc::new).collect(),
            identity: watch::Sender::new(Arc::new(head.identity)),
        };
        registry.rejoin(None).await?;
        Ok(registry)
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.borrow())
    }

    /// Returns a receiver of changes of the identity.
    pub(super) fn identities(&self) -> watch::Receiver<Arc<Identity>> {
        self.identity.subscribe()
    }

    pub(super) fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    pub(super) fn partition(&self, number: u32) -> &Arc<Partition> {
        &self.partitions[number as usize]
    }

    /// Returns the partition that keeps the leases.
    pub(super) fn first(&self) -> &Arc<Partition> {
        self.partition(0)
    }

    pub(super) fn partitions(&self) -> &[Arc<Partition>] {
        &self.partitions
    }

    /// Returns the partition of a bucket. A partition's buckets are consecutive, so that one step can read a run of
    /// them.
    pub(super) fn partition_of(&self, bucket: u32) -> u32 {
        let Layout { buckets, partitions } = self.layout;
        (u64::from(bucket) * u64::from(partitions) / u64::from(buckets)) as u32
    }

    /// Returns the first bucket of a partition. One past the last partition, this is the number of buckets.
    pub(super) fn first_bucket(&self, partition: u32) -> u32 {
        let Layout { buckets, partitions } = self.layout;
        (u64::from(partition) * u64::from(buckets)).div_ceil(u64::from(partitions)) as u32
    }

    /// Returns the buckets of a partition.
    pub(super) fn buckets_of(&self, partition: u32) -> std::ops::Range<u32> {
        self.first_bucket(partition)..self.first_bucket(partition + 1)
    }

    pub(super) fn bucket_of(&self, identity: &Identity, session: &SessionKey) -> u32 {
        let mut hasher = SipHasher13::new_with_keys(identity.hash_key.0, identity.hash_key.1);
        hasher.write(&session_bytes(session));
        // The high bits of the product: needs no division, and works for any number of buckets.
        ((u128::from(hasher.finish()) * u128::from(self.layout.buckets)) >> 64) as u32
    }

    /// Returns the index of a bucket within its partition.
    pub(super) fn offset_of(&self, bucket: u32) -> u32 {
        bucket - self.first_bucket(self.partition_of(bucket))
    }

    /// Decodes the bits of a lease's set of buckets in a partition.
    pub(super) fn buckets_in(&self, partition: u32, bits: &[u8]) -> impl Iterator<Item = u32> + Send {
        let (all, a_bit) = (self.buckets_of(partition), self.buckets_a_bit());
        let set = (0..).zip(bits).flat_map(|(index, byte)| {
            // Redis numbers bits from the most significant one.
            (0..8).filter(move |bit| byte & (0x80 >> bit) != 0).map(move |bit| index * 8 + bit)
        });
        set.flat_map(move |bit: u32| {
            let first = all.start + bit * a_bit;
            first.min(all.end)..(first + a_bit).min(all.end)
        })
    }

    /// Returns how many buckets share one bit of a lease's set, so that a set takes at most 2 KiB.
    pub(super) fn buckets_a_bit(&self) -> u32 {
        let Layout { buckets, partitions } = self.layout;
        buckets.div_ceil(partitions).div_ceil(LEASE_BITS)
    }

    /// Returns the session limit that scripts apply to a partition. With several partitions it is -1, which means the
    /// partition's quota.
    pub(super) fn session_limit(&self) -> i64 {
        if self.layout.partitions == 1 { i64::try_from(self.options.max_sessions).unwrap_or(i64::MAX) } else { -1 }
    }

    /// Returns a random mark for a new log entry.
    pub(super) fn new_mark(&self) -> [u8; 8] {
        random_u64().to_be_bytes()
    }

    /// Starts a call of a script: with the partition's `meta` key, the keys `names`, and `more` keys that the caller
    /// adds.
    pub(super) fn call(&self, script: &Script, partition: &Partition, names: &[&str], more: usize) -> Call {
        let call = script.call(1 + names.len() + more).arg(partition.key("meta"));
        names.iter().fold(call, |call, name| call.arg(partition.key(name)))
    }

    /// Makes a call for the current registry. Retries it if the registry was replaced.
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

    /// Finds out which registry Redis has now, creates one if there is none, and makes every partition join it. Does
    /// nothing if another call has already replaced `known`. Any number of replicas may do this at the same time, and
    /// each may crash at any point.
    pub(super) async fn rejoin(&self, known: Option<&Identity>) -> Result<(), Fault> {
        for _ in 0..=TRIES + self.layout.partitions as usize {
            let current = self.identity();
            if known.is_some_and(|known| *known != *current) {
                return Ok(());
            }
            // Births are read before the registry, so none of them is newer than the registry.
            let births = self.each_partition(|partition| async move {
                partition.ask::<Option<String>>(redis::cmd("HGET").arg(partition.key("meta")).arg("birth")).await
            });
            let births = births.await?;
            // If the registry is gone, the new one gets the same layout.
            let head = Head::open(self.first(), &self.scripts, &Head::new(self.layout)).await?;
            if head.layout != self.layout {
                return Err(Fault::Setup(
                    "the registry was created anew with other partitions or buckets: restart sessiond".to_owned(),
                ));
            }
            let others = self.partitions.iter().zip(&births).skip(1);
            let others = others.map(|(partition, birth)| self.join(partition, &head, birth.as_deref()));
            let have_joined = try_join_all(others).await?;
            if have_joined.into_iter().all(|has_joined| has_joined) {
                if head.identity != *current {
                    let registry_id = head.identity.registry_id;
                    tracing::warn!(
                        %registry_id,
                        "Redis has another registry, or the registry has lost changes; observers are reset"
                    );
                    self.identity.send_replace(Arc::new(head.identity));
                }
                return Ok(());
            }
        }
        Err(Fault::Registry)
    }

    /// Calls [`rejoin`](Self::rejoin). Returns the fault of the step that found another registry. This fault is
    /// retryable if the registry turns out to be the same, so that sessions are in the same buckets as in `known`.
    pub(super) async fn rejoin_same(&self, known: &Identity) -> Result<Fault, Fault> {
        self.rejoin(Some(known)).await?;
        let is_same = self.identity().birth == known.birth;
        Ok(if is_same { Fault::unsent("a partition had to join the registry again") } else { Fault::Registry })
    }

    /// Gives the registry a new id, because its log has lost changes or a whole partition is lost. In the latter case,
    /// `lost` is the field of that partition.
    pub(super) async fn abandon(&self, identity: &Identity, lost: &str) -> Result<(), Fault> {
        let new = RegistryId(random_u64()).to_string();
        // Does not wait for Redis replicas, because reads and streams wait for this. If a failover loses the new id, the
        // log is compared again.
        let moved = self.first().run::<u32>(ASK, |_| {
            let call = self.call(&self.scripts.registry_move, self.first(), &[], 0);
            call.arg(&identity.birth).arg(identity.registry_id.to_string()).arg(&new).arg(lost)
        });
        match moved.await {
            Ok(_) | Err(Fault::Registry) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Makes a partition join the registry. `had` is the birth that the partition had before the registry was read.
    /// Returns false if the caller must start over, because the registry or the partition has changed meanwhile.
    async fn join(&self, partition: &Partition, head: &Head, had: Option<&str>) -> Result<bool, Fault> {
        let Identity { birth, .. } = &head.identity;
        let mark = format!("p{}", partition.number);
        let had_joined = head.fields.iter().any(|(name, _)| *name == mark);
        let ask = async |make: bool, disowned: &str| {
            let asked = partition.run::<(String, String)>(if make { DURABLE } else { ASK }, |_| {
                let call = self.scripts.partition_join.call(1).arg(partition.key("meta")).arg(birth);
                call.arg(i32::from(make)).arg(disowned).arg(&Head::partition_fields(birth, &self.new_mark())[..])
            });
            asked.await
        };
        let (found, disowned) = ask(false, "").await?;
        match found.as_str() {
            "joined" => {}
            "foreign" => {
                let Some(theirs) = had.filter(|had| had != birth) else { return Ok(false) };
                tracing::warn!(
                    partition = partition.number,
                    "deleting the keys that an earlier registry left in a partition"
                );
                let disowned = partition.run::<u32>(DURABLE, |_| {
                    self.scripts.partition_disown.call(1).arg(partition.key("meta")).arg(theirs).arg(random_u64())
                });
                disowned.await?;
                return Ok(false);
            }
            _ if had_joined => {
                tracing::error!(
                    partition = partition.number,
                    "Redis has lost a partition of the registry; observers are reset"
                );
                self.abandon(&head.identity, &mark).await?;
                return Ok(false);
            }
            _ => {
                let is_wiped = wipe(partition, &self.scripts, self.buckets_of(partition.number)).await?;
                if !is_wiped || ask(true, &disowned).await?.0 != "joined" {
                    return Ok(false);
                }
            }
        }
        if !had_joined {
            let marked = self.first().run::<u32>(DURABLE, |_| {
                self.call(&self.scripts.registry_mark, self.first(), &[], 0).arg(birth).arg(&mark)
            });
            match marked.await {
                Ok(_) => {}
                Err(Fault::Registry) => return Ok(false),
                Err(fault) => return Err(fault),
            }
        }
        Ok(true)
    }

    /// Runs a step for all partitions concurrently. Returns the results in order, or the first failure.
    pub(super) async fn each_partition<T, F>(&self, step: impl Fn(Arc<Partition>) -> F) -> Result<Vec<T>, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        try_join_all(self.partitions.iter().map(|partition| step(Arc::clone(partition)))).await
    }
}

/// Deletes the keys that an earlier registry left in a partition. Stops if the partition joins a registry meanwhile.
/// Returns whether everything was deleted.
async fn wipe(partition: &Partition, scripts: &Scripts, buckets: std::ops::Range<u32>) -> Result<bool, Fault> {
    let attached: Vec<Vec<u8>> = partition.ask(redis::cmd("HKEYS").arg(partition.key("attached"))).await?;
    let closed: Vec<Vec<u8>> = partition.ask(redis::cmd("HKEYS").arg(partition.key("closed"))).await?;
    let mut keys: Vec<String> = attached.iter().chain(&closed).map(|lease| partition.lease_key(lease)).collect();
    keys.extend(buckets.map(|bucket| partition.bucket_key(bucket)));
    let names = ["log", "attached", "closed", "slots", "held", "replicas"];
    let names = names.into_iter().chain(["leases", "deadlines", "ended", "claims", "ids", "quotas"]);
    keys.extend(names.map(|name| partition.key(name)));
    for keys in keys.chunks(KEYS_A_STEP) {
        let wiped = partition
            .run::<u32>(DURABLE, |_| scripts.partition_wipe.call(1 + keys.len()).arg(partition.key("meta")).arg(keys));
        if wiped.await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The registry's description in the first partition.
struct Head {
    identity: Identity,
    layout: Layout,
    fields: Vec<(String, String)>,
}

type Fields = Vec<(String, Vec<u8>)>;

impl Head {
    /// Returns a description of a new registry.
    fn new(layout: Layout) -> Self {
        let identity = Identity {
            registry_id: RegistryId(random_u64()),
            birth: format!("{:016x}", random_u64()),
            hash_key: (random_u64(), random_u64()),
        };
        Self { identity, layout, fields: Vec::new() }
    }

    /// Returns the initial fields of every partition.
    fn partition_fields(birth: &str, mark: &[u8; 8]) -> Fields {
        let mut fields: Fields = vec![("birth".to_owned(), birth.into()), ("mark".to_owned(), mark.to_vec())];
        for name in ["end", "count", "slots", "leases", "closing", "quota", "quota_number"] {
            fields.push((name.to_owned(), b"0".to_vec()));
        }
        fields
    }

    fn all_fields(&self) -> Fields {
        let Self { identity, layout, .. } = self;
        let mut fields = Self::partition_fields(&identity.birth, &random_u64().to_be_bytes());
        let hash_key = format!("{:016x}{:016x}", identity.hash_key.0, identity.hash_key.1);
        for (name, value) in [
            ("format", FORMAT.to_owned()),
            ("id", identity.registry_id.to_string()),
            ("hash_key", hash_key),
            ("buckets", layout.buckets.to_string()),
            ("partitions", layout.partitions.to_string()),
        ] {
            fields.push((name.to_owned(), value.into_bytes()));
        }
        for name in ["live", "lease_time", "linger_time", "looks", "revived", "grace"] {
            fields.push((name.to_owned(), b"0".to_vec()));
        }
        fields
    }

    /// Reads the description of the registry in Redis. If there is none, creates the registry `new`.
    async fn open(first: &Partition, scripts: &Scripts, new: &Self) -> Result<Self, Fault> {
        let ask = async |make: bool| {
            let asked = first.run::<Vec<(Vec<u8>, Vec<u8>)>>(if make { DURABLE } else { ASK }, |_| {
                let call = scripts.registry_open.call(1).arg(first.key("meta")).arg(i32::from(make));
                call.arg(&new.all_fields()[..])
            });
            asked.await
        };
        let mut fields = ask(false).await?;
        if fields.is_empty() {
            let last = u64::from(new.layout.buckets).div_ceil(u64::from(new.layout.partitions)) as u32;
            wipe(first, scripts, 0..last).await?;
            fields = ask(true).await?;
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let fields: Vec<(String, String)> = fields.into_iter().map(|(name, value)| (text(name), text(value))).collect();
        let format = fields.iter().find(|(name, _)| name == "format").map(|(_, value)| value.clone());
        Self::parse(fields).ok_or_else(|| {
            Fault::Setup(match format {
                Some(format) => format!(
                    "the registry in Redis has format {format}, and this version of sessiond reads format {FORMAT}: \
                     delete it, or use another one with registry="
                ),
                None => format!(
                    "the key {} in Redis is not a registry of sessiond: \
                     delete it, or use another registry with registry=",
                    first.key("meta")
                ),
            })
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
            birth: field("birth")?.to_owned(),
            hash_key: (hex(key.get(..16)?)?, hex(key.get(16..)?)?),
        };
        let layout =
            Layout { buckets: field("buckets")?.parse().ok()?, partitions: field("partitions")?.parse().ok()? };
        (layout.partitions > 0 && layout.buckets >= layout.partitions).then_some(Self { identity, layout, fields })
    }
}

/// Encodes a session's key as Redis stores it.
pub(super) fn session_bytes(session: &SessionKey) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&session.auth_key_id.0.to_be_bytes());
    bytes[8..].copy_from_slice(&session.session_id.0.to_be_bytes());
    bytes
}

/// Decodes a session's key. Returns `None` unless it has 16 bytes.
pub(super) fn session_of(bytes: &[u8]) -> Option<SessionKey> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    let (auth_key_id, session_id) = bytes.split_at(8);
    let number = |half: &[u8]| half.try_into().map(i64::from_be_bytes).ok();
    Some(SessionKey::new(number(auth_key_id)?, number(session_id)?))
}
