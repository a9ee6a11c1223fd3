//! Probes Redis for what operators need to know: whether it accepts changes, whether it may evict keys, and whether the
//! user has the necessary permissions. Each probe also counts the replicas of sessiond.

use std::{error::Error, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::{
    fault::Fault,
    partition::{ASK, Partition},
    registry::Registry,
    script::Scripts,
};
use crate::{
    random::random_u64,
    storage::{RefusalCause, Writability, WriteRefusal},
};

/// The interval between attempts to write.
const WRITE_INTERVAL: Duration = Duration::from_secs(3);

/// How long a replica counts after its last probe. A probe may take some seconds if Redis is slow.
const COUNTS_FOR: Duration = Duration::from_secs(10);

/// The interval between reads of Redis' settings.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(5);

/// The results of the latest probes.
pub(super) struct Findings {
    writability: Mutex<Writability>,
    evicts_keys: Mutex<Option<bool>>,
}

impl Default for Findings {
    fn default() -> Self {
        Self { writability: Mutex::new(Writability::Writable), evicts_keys: Mutex::default() }
    }
}

impl Findings {
    pub(super) fn writability(&self) -> Writability {
        self.writability.lock().clone()
    }

    /// Returns whether Redis may evict the registry's keys when its memory is full. `None` if this is not known yet.
    pub(super) fn evicts_keys(&self) -> Option<bool> {
        *self.evicts_keys.lock()
    }

    /// Probes Redis until the future is dropped.
    pub(super) async fn run(self: Arc<Self>, registry: Arc<Registry>) {
        let replica = format!("{:016x}", random_u64());
        let mut looked: Option<Instant> = None;
        loop {
            let written = match try_write(&registry, &replica).await {
                Ok(()) => try_permissions(&registry).await,
                refused => refused,
            };
            *self.writability.lock() = match written {
                Ok(()) => Writability::Writable,
                Err(Fault::Refused(refusal)) => Writability::Refused(refusal),
                Err(fault) => Writability::Refused(WriteRefusal::new(RefusalCause::Unreachable, &fault.to_string())),
            };
            if looked.is_none_or(|looked| looked.elapsed() >= SETTINGS_INTERVAL) {
                match policy(&registry).await {
                    Ok(policy) => {
                        self.note_policy(&policy);
                        looked = Some(Instant::now());
                    }
                    Err(fault) => {
                        tracing::debug!(error = &fault as &dyn Error, "cannot read the eviction policy of Redis");
                    }
                }
            }
            sleep(WRITE_INTERVAL).await;
        }
    }

    fn note_policy(&self, policy: &str) {
        let evicts = policy != "noeviction";
        let was = self.evicts_keys.lock().replace(evicts);
        if evicts && was != Some(true) {
            tracing::warn!(
                policy,
                "Redis may evict the registry's keys, and with them sessions, when its memory is full: \
                 set maxmemory-policy to noeviction"
            );
        } else if !evicts && was == Some(true) {
            tracing::info!(policy, "Redis no longer evicts keys when its memory is full");
        }
    }
}

/// Makes a write in every partition, which Redis refuses whenever it refuses growth. Also tells each partition that this
/// replica is there, and how many there are.
async fn try_write(registry: &Registry, replica: &str) -> Result<(), Fault> {
    let written = registry.with_identity(|identity| async move {
        let birth = &identity.birth;
        let written = registry.each_partition(|partition| async move {
            let replicas = partition.run::<Option<u32>>(ASK, |_| {
                let call = registry.call(&registry.scripts.probe_write, &partition, &["replicas"], 0);
                call.arg(birth).arg(replica).arg(COUNTS_FOR.as_millis() as u64)
            });
            if let Some(replicas) = replicas.await? {
                partition.pace.note_replicas(replicas);
            }
            Ok(())
        });
        written.await
    });
    written.await.map(drop)
}

/// Checks that in every partition the user may still run all commands of the scripts.
async fn try_permissions(registry: &Registry) -> Result<(), Fault> {
    let missing =
        registry.each_partition(|partition| async move { missing_permissions(&partition, &registry.scripts).await });
    let mut missing = missing.await?.concat();
    missing.sort();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let detail = format!("the Redis user may not run {}", missing.join(", "));
    Err(Fault::Refused(WriteRefusal::new(RefusalCause::NotPermitted, &detail)))
}

/// Returns the commands of scripts that the user may not run in a partition.
async fn missing_permissions(partition: &Partition, scripts: &Scripts) -> Result<Vec<String>, Fault> {
    let key = partition.key("probe");
    partition.run(ASK, |_| scripts.probe_permissions.call(1).arg(&key)).await
}

/// Returns the eviction policy of the first server that may evict keys, or `noeviction` if there is no such server.
async fn policy(registry: &Registry) -> Result<String, Fault> {
    let policies = registry.each_partition(|partition| async move {
        let info: String = partition.ask(redis::cmd("INFO").arg("memory")).await?;
        let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
        Ok(policy.unwrap_or("noeviction").to_owned())
    });
    let policies = policies.await?;
    Ok(policies.into_iter().find(|policy| policy != "noeviction").unwrap_or_else(|| "noeviction".to_owned()))
}

/// Checks at startup that the user may run every command that sessiond uses.
pub(super) async fn check_permissions(partition: &Partition, scripts: &Scripts) -> Result<(), Fault> {
    let key = partition.key("probe");
    let mut missing = match missing_permissions(partition, scripts).await {
        Ok(missing) => missing,
        Err(Fault::Refused(WriteRefusal { cause: RefusalCause::NotPermitted, detail })) => {
            return Err(Fault::Setup(format!(
                "the Redis user may not run EVAL and EVALSHA ({detail}): see the ACL in the README"
            )));
        }
        Err(fault) => return Err(fault),
    };
    // Commands that are sent outside scripts. EVAL is among them: as long as Redis has all scripts cached, sessiond
    // does not send it, so the missing permission would go unnoticed.
    let mut eval = redis::cmd("EVAL");
    let mut xread = redis::cmd("XREAD");
    let mut wait = redis::cmd("WAIT");
    let mut info = redis::cmd("INFO");
    for (name, command) in [
        ("EVAL", eval.arg("return 1").arg(1).arg(&key)),
        ("XREAD", xread.arg("COUNT").arg(1).arg("STREAMS").arg(&key).arg("0")),
        ("WAIT", wait.arg(0).arg(1)),
        ("INFO", info.arg("memory")),
    ] {
        if let Err(Fault::Refused(WriteRefusal { cause: RefusalCause::NotPermitted, .. })) =
            partition.ask::<redis::Value>(command).await
        {
            missing.push(name.to_owned());
        }
    }
    missing.sort();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Fault::Setup(format!(
        "the Redis user may not run {}: grant it +{} (see the ACL in the README)",
        missing.join(", "),
        missing.join(" +").to_lowercase()
    )))
}
