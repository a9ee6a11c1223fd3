//! Follows what the Sentinels of a master say about it.
//!
//! This does not use redis-rs' Sentinel client. It reads SENTINEL MASTERS, in which the Sentinel that leads a failover
//! names the old master for seconds after the others name the new one, and the old one still accepts changes: see
//! docs/design/redis.md.

use std::{collections::HashMap, convert::Infallible, error::Error, sync::Arc, time::Duration};

use futures_util::future::join_all;
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ProtocolVersion, PushInfo, RedisError, aio::MultiplexedConnection,
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{fault::Fault, term::Term};

/// How often a Sentinel is asked if it reports no event.
const INTERVAL: Duration = Duration::from_millis(500);

/// The pause before a Sentinel that failed is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// The host and port of a server.
pub(super) type Address = (String, u16);

/// What a Sentinel says about a server.
type Fields = HashMap<String, String>;

/// The Sentinels of one master.
pub(super) struct Sentinels {
    nodes: Vec<ConnectionInfo>,
    /// The master's name.
    name: String,
    timeout: Duration,
    reports: Mutex<Reports>,
    /// The master. `None` if it is not known yet or about to be replaced.
    master: watch::Sender<Option<Address>>,
}

/// What each Sentinel said last.
struct Reports {
    all: Vec<Report>,
    /// The epoch of the newest report ever.
    newest: u64,
}

#[derive(Clone, Debug)]
enum Report {
    /// The Sentinel has not been asked yet.
    Pending,
    Failed(Fault),
    Names(Named),
}

/// The master that a Sentinel names.
#[derive(Clone, Debug)]
struct Named {
    /// The number of the failover in which this server became the master.
    epoch: u64,
    address: Address,
    /// Whether this Sentinel has chosen its successor, and is about to promote that one.
    is_leaving: bool,
}

impl Sentinels {
    pub(super) fn new(nodes: Vec<ConnectionInfo>, name: String, timeout: Duration) -> Self {
        let resp3 = |node: ConnectionInfo| {
            // Only with RESP3 can one connection both ask and receive events.
            let settings = node.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            node.set_redis_settings(settings)
        };
        let reports = Reports { all: vec![Report::Pending; nodes.len()], newest: 0 };
        Self {
            nodes: nodes.into_iter().map(resp3).collect(),
            name,
            timeout,
            reports: Mutex::new(reports),
            master: watch::Sender::default(),
        }
    }

    /// Returns the address of the master, and the term that ends when it is replaced. Waits for a while if a failover is
    /// under way.
    pub(super) async fn master(&self) -> Result<(Address, Term), Fault> {
        let mut master = self.master.subscribe();
        let found = timeout(self.timeout / 2, async {
            loop {
                if let Some(address) = master.borrow_and_update().clone() {
                    return address;
                }
                // Cannot fail, because `self` has the sender.
                let _ = master.changed().await;
            }
        });
        match found.await {
            Ok(address) => Ok((address, Term::of(master))),
            Err(_) => Err(self.reports.lock().fault()),
        }
    }

    /// Follows the Sentinels until the future is dropped.
    pub(super) async fn follow(self: Arc<Self>) {
        join_all((0..self.nodes.len()).map(|index| self.follow_one(index))).await;
    }

    async fn follow_one(&self, index: usize) {
        loop {
            let Err(fault) = self.listen_to(index).await;
            tracing::debug!(
                sentinel = %self.nodes[index].addr(),
                error = &fault as &dyn Error,
                "cannot ask a Sentinel for the master"
            );
            self.note(index, Report::Failed(fault));
            sleep(PAUSE).await;
        }
    }

    /// Asks a Sentinel for the master at each of its events, and every now and then, until it fails.
    async fn listen_to(&self, index: usize) -> Result<Infallible, Fault> {
        let events = Arc::new(Notify::new());
        let noting = Arc::clone(&events);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout / 2))
            .set_response_timeout(Some(self.timeout / 2))
            .set_push_sender(move |_: PushInfo| {
                noting.notify_one();
                Ok::<_, Infallible>(())
            });
        let client = Client::open(self.nodes[index].clone()).map_err(while_asking)?;
        let mut connection =
            client.get_multiplexed_async_connection_with_config(&config).await.map_err(while_asking)?;
        if let Err(error) = connection.psubscribe("*").await {
            tracing::debug!(error = &error as &dyn Error, "cannot subscribe to the events of a Sentinel");
        }
        loop {
            let named = self.ask(&mut connection).await?;
            self.note(index, Report::Names(named));
            let _ = timeout(INTERVAL, events.notified()).await;
        }
    }

    async fn ask(&self, connection: &mut MultiplexedConnection) -> Result<Named, Fault> {
        let mut both = redis::pipe();
        // The epoch is read first, so it is never newer than the address.
        both.cmd("SENTINEL").arg("MASTER").arg(&self.name);
        both.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name);
        let answer: Result<(Fields, Option<Address>), RedisError> = both.query_async(connection).await;
        let unknown = || Fault::Setup(format!("a Sentinel knows no master named {}", self.name));
        let (fields, address) = match answer {
            Err(error) if error.to_string().contains("No such master") => return Err(unknown()),
            answer => answer.map_err(while_asking)?,
        };
        let address = address.ok_or_else(unknown)?;
        let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
        // The Sentinel that leads a failover names the new master as soon as that one was promoted, but describes the old
        // one to the end.
        let describes_it = field("ip") == address.0 && field("port") == address.1.to_string();
        let is_failing_over = describes_it && has_flag(&fields, "failover_in_progress");
        Ok(Named {
            epoch: field("config-epoch").parse().map_err(|_| Fault::malformed("a Sentinel did not name an epoch"))?,
            is_leaving: is_failing_over && self.has_successor(connection).await,
            address,
        })
    }

    /// Returns whether a Sentinel that has begun a failover has chosen the successor. Until then it may give up, or wait
    /// for seconds. Returns true if it does not say.
    async fn has_successor(&self, connection: &mut MultiplexedConnection) -> bool {
        let mut ask = redis::cmd("SENTINEL");
        let answer: Result<Vec<Fields>, RedisError> = ask.arg("REPLICAS").arg(&self.name).query_async(connection).await;
        answer.map_or(true, |replicas| replicas.iter().any(|replica| has_flag(replica, "promoted")))
    }

    fn note(&self, index: usize, report: Report) {
        let mut reports = self.reports.lock();
        reports.all[index] = report;
        let Some(master) = reports.master() else { return };
        self.master.send_if_modified(|current| {
            if *current == master {
                return false;
            }
            match &master {
                Some((host, port)) => tracing::info!(name = self.name, host, port, "Sentinel names the master"),
                None => tracing::warn!(name = self.name, "Sentinel replaces the master; calls wait for the new one"),
            }
            *current = master;
            true
        });
    }
}

impl Reports {
    /// Returns the master, or no address if it is about to be replaced. Returns `None` if there is nothing new.
    fn master(&mut self) -> Option<Option<Address>> {
        if self.all.iter().any(|report| matches!(report, Report::Pending)) {
            return None;
        }
        let named = self.all.iter().filter_map(|report| match report {
            Report::Names(named) => Some(named),
            _ => None,
        });
        let newest = named.clone().max_by_key(|named| named.epoch)?;
        // A few Sentinels that were cut off name an old master. If most do, they were set up anew.
        if newest.epoch < self.newest && 2 * named.clone().count() <= self.all.len() {
            return None;
        }
        self.newest = newest.epoch;
        let is_leaving = named
            .clone()
            .any(|named| named.is_leaving && named.epoch == newest.epoch && named.address == newest.address);
        Some((!is_leaving).then(|| newest.address.clone()))
    }

    /// Returns why there is no master.
    fn fault(&self) -> Fault {
        let mut failed = None;
        for report in &self.all {
            match report {
                Report::Names(_) => return Fault::unsent("Sentinel is replacing the master"),
                Report::Failed(fault) => failed = failed.or(Some(fault)),
                Report::Pending => {}
            }
        }
        failed.cloned().unwrap_or_else(|| Fault::unsent("no Sentinel has answered yet"))
    }
}

fn has_flag(fields: &Fields, flag: &str) -> bool {
    fields.get("flags").is_some_and(|flags| flags.split(',').any(|has| has == flag))
}

/// Returns the fault after an error of a Sentinel.
fn while_asking(error: RedisError) -> Fault {
    let text = error.to_string();
    match Fault::while_connecting(error) {
        Fault::Setup(_) | Fault::Refused(_) => Fault::Setup(format!(
            "a Sentinel rejects the login or lacks a right ({text}): set sentinel_username and sentinel_password"
        )),
        fault => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(epoch: u64, host: &str) -> Report {
        Report::Names(Named { epoch, address: (host.to_owned(), 1), is_leaving: false })
    }

    fn leaving(epoch: u64, host: &str) -> Report {
        Report::Names(Named { epoch, address: (host.to_owned(), 1), is_leaving: true })
    }

    fn failed() -> Report {
        Report::Failed(Fault::unsent("on purpose"))
    }

    /// Returns the host that Sentinels with these reports name, `""` if it is about to be replaced, and `None` if they
    /// say nothing new.
    fn master(newest: u64, all: [Report; 3]) -> Option<String> {
        let master = Reports { all: all.into(), newest }.master()?;
        Some(master.map_or(String::new(), |(host, _)| host))
    }

    #[test]
    fn newest_report_names_the_master() {
        assert_eq!(master(0, [names(0, "a"), names(0, "a"), Report::Pending]), None, "it may be newer");
        assert_eq!(master(0, [names(0, "a"), failed(), failed()]).as_deref(), Some("a"));
        assert_eq!(master(0, [names(3, "a"), names(4, "b"), names(3, "a")]).as_deref(), Some("b"));
        assert_eq!(master(4, [failed(), failed(), failed()]), None);
    }

    #[test]
    fn demoted_master_is_not_believed_in_again() {
        assert_eq!(master(4, [names(3, "a"), failed(), failed()]), None, "a Sentinel that was cut off");
        assert_eq!(master(4, [names(0, "a"), names(0, "a"), failed()]).as_deref(), Some("a"), "set up anew");
    }

    #[test]
    fn master_that_is_being_replaced_is_left_early() {
        assert_eq!(master(3, [names(3, "a"), leaving(3, "a"), names(3, "a")]).as_deref(), Some(""));
        assert_eq!(master(3, [leaving(3, "a"), names(4, "b"), names(3, "a")]).as_deref(), Some("b"), "an old failover");
    }
}
