//! The Rust client's agent in the suite of faults: runs the commands of PROTOCOL.md, and reports what the client says.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, Write},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use serde_json::{Map, Value, json};
use sessiond::{
    client::{
        Client, ClientError, CloseReason, Gateway, GatewayOptions, Mirror, MirrorChanges, MirrorOptions, MirrorUpdate,
        Place, ResetReason, Watch, WatchOptions, WatchUpdate,
    },
    session::{AuthKeyId, DestroyReason, LeaseId, SessionChange, SessionEvent, SessionId, SessionKey},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

/// How many commands may wait while earlier ones begin.
const COMMANDS: usize = 64;

/// A command, or a part of one.
type Fields = Map<String, Value>;

/// What a command answers: its fields, or its error.
type Answer = Result<Value, Value>;

/// A connection by its name in the protocol.
struct Named {
    session: SessionKey,
    is_open: bool,
    /// Closes the connection when it is dropped.
    _close: oneshot::Sender<()>,
}

/// A connection that is to be opened.
struct Opening {
    name: String,
    session: SessionKey,
    /// Ends when the driver closes the connection.
    closed: oneshot::Receiver<()>,
}

#[derive(Default)]
struct Agent {
    client: OnceLock<Client>,
    gateway: OnceLock<Gateway>,
    mirror: OnceLock<Mirror>,
    connections: Mutex<HashMap<String, Named>>,
    paused: HashMap<&'static str, watch::Sender<bool>>,
}

fn main() {
    let (commands, received) = mpsc::channel(COMMANDS);
    // The runtime's threads never wait for the driver.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            let _ = commands.blocking_send(serde_json::from_str::<Fields>(&line).expect("a line is a JSON object"));
        }
        // At once, as if the process had died.
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("the runtime starts").block_on(run(received));
}

async fn run(mut commands: mpsc::Receiver<Fields>) {
    let paused = ["watch", "changes"].map(|what| (what, watch::Sender::new(false)));
    let agent = Arc::new(Agent { paused: HashMap::from(paused), ..Agent::default() });
    while let Some(command) = commands.recv().await {
        let id = command["id"].clone();
        if let Some(answer) = agent.now(&command) {
            write_answer(&id, answer);
        } else {
            // Before the next command, which may close the connection.
            let named = agent.name_connections(&command);
            let agent = Arc::clone(&agent);
            tokio::spawn(async move { write_answer(&id, agent.later(&command, named).await) });
        }
    }
}

fn write(line: &Value) {
    let mut out = std::io::stdout().lock();
    // The driver is gone if this fails, and so is stdin.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn write_answer(id: &Value, answer: Answer) {
    write(&match answer {
        Ok(ok) => json!({"id": id, "ok": ok}),
        Err(error) => json!({"id": id, "error": error}),
    });
}

impl Agent {
    /// Runs a command that does not wait. Returns `None` if the command is of another kind.
    fn now(self: &Arc<Self>, command: &Fields) -> Option<Answer> {
        let done = match text(command, "do") {
            "client" => self.make_client(command),
            "close" => {
                drop(self.connections.lock().unwrap().remove(text(command, "connection")));
                Ok(())
            }
            "close_many" => {
                let mut connections = self.connections.lock().unwrap();
                names(command).for_each(|session_id| drop(connections.remove(&session_id.to_string())));
                Ok(())
            }
            "mirror" => {
                self.make_mirror(command);
                Ok(())
            }
            "watch" => {
                self.make_watch(command);
                Ok(())
            }
            what @ ("pause" | "resume") => {
                self.paused[text(command, "what")].send_replace(what == "pause");
                Ok(())
            }
            "dump" => return Some(Ok(self.dump())),
            _ => return None,
        };
        Some(done.map(|()| json!({})).map_err(|error| error_fields(&error)))
    }

    /// Enters the connections that a command opens.
    fn name_connections(&self, command: &Fields) -> Vec<Opening> {
        let connections = match text(command, "do") {
            "connect" => vec![(text(command, "connection").to_owned(), session(&command["session"]))],
            "connect_many" => {
                let auth_key_id = signed(&command["auth_key_id"]);
                let name = |session_id: i64| (session_id.to_string(), SessionKey::new(auth_key_id, session_id));
                names(command).map(name).collect()
            }
            _ => Vec::new(),
        };
        let mut named = self.connections.lock().unwrap();
        let open = |(name, session): (String, SessionKey)| {
            let (close, closed) = oneshot::channel();
            named.insert(name.clone(), Named { session, is_open: false, _close: close });
            Opening { name, session, closed }
        };
        connections.into_iter().map(open).collect()
    }

    /// Runs a command that waits, and opens connections if it is such a command.
    async fn later(self: Arc<Self>, command: &Fields, mut opening: Vec<Opening>) -> Answer {
        let done = match text(command, "do") {
            "gateway" => self.make_gateway(command).await,
            "connect" => return self.connect(opening.remove(0)).await.map(|()| json!({})),
            "connect_many" => return Ok(self.connect_many(opening).await),
            "stop" => self.gateway.get().unwrap().stop().await,
            "synced" => self.mirror.get().unwrap().synced().await,
            "wait_until" => {
                let place = command["place"].as_object().unwrap();
                let place =
                    Place { partition: number(&place["partition"]) as u32, position: number(&place["position"]) };
                self.mirror.get().unwrap().wait_until(&[place]).await
            }
            other => panic!("unknown command {other}"),
        };
        done.map(|()| json!({})).map_err(|error| error_fields(&error))
    }

    fn make_client(&self, command: &Fields) -> Result<(), ClientError> {
        let mut builder = Client::builder(text(command, "addr"))?;
        if let Some(timeout) = millis(command, "timeout_ms") {
            builder = builder.timeout(timeout);
        }
        if let Some(path) = command.get("token_file").and_then(Value::as_str) {
            builder = builder.token_file(path)?;
        }
        drop(self.client.set(builder.connect_lazy()?));
        Ok(())
    }

    async fn make_gateway(&self, command: &Fields) -> Result<(), ClientError> {
        let mut options = GatewayOptions::new(text(command, "owner"));
        if let Some(ttl) = millis(command, "ttl_ms") {
            options = options.ttl(ttl);
        }
        if let Some(linger) = millis(command, "linger_ms") {
            options = options.linger(linger);
        }
        drop(self.gateway.set(self.client.get().unwrap().gateway(options).await?));
        Ok(())
    }

    async fn connect(self: Arc<Self>, opening: Opening) -> Result<(), Value> {
        let Opening { name, session, mut closed } = opening;
        let gateway = self.gateway.get().unwrap();
        let connection = tokio::select! {
            connection = gateway.connect(session) => connection,
            _ = &mut closed => return Err(json!({"reason": "CANCELLED", "message": "the driver closed it"})),
        };
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                self.connections.lock().unwrap().remove(&name);
                return Err(error_fields(&error));
            }
        };
        if let Some(named) = self.connections.lock().unwrap().get_mut(&name) {
            named.is_open = true;
        }
        let agent = Arc::clone(&self);
        tokio::spawn(async move {
            let reason = tokio::select! {
                reason = connection.closed() => reason,
                _ = closed => return,
            };
            if agent.connections.lock().unwrap().remove(&name).is_some() {
                drop(connection);
                write(&closed_event(&name, reason));
            }
        });
        Ok(())
    }

    async fn connect_many(self: Arc<Self>, opening: Vec<Opening>) -> Value {
        let mut connecting = JoinSet::new();
        for one in opening {
            connecting.spawn(Arc::clone(&self).connect(one));
        }
        let (mut connected, mut failed) = (0, BTreeMap::<String, u64>::new());
        while let Some(done) = connecting.join_next().await {
            match done.unwrap() {
                Ok(()) => connected += 1,
                Err(error) => *failed.entry(error["reason"].as_str().unwrap().to_owned()).or_default() += 1,
            }
        }
        json!({"connected": connected, "failed": failed})
    }

    fn make_mirror(&self, command: &Fields) {
        let mut options = MirrorOptions::default();
        if let Some(ids) = ids(command, "session_ids") {
            options = options.session_ids(ids.map(SessionId));
        }
        if let Some(ids) = ids(command, "auth_key_ids") {
            options = options.auth_key_ids(ids.map(AuthKeyId));
        }
        if let Some(ids) = ids(command, "lease_ids") {
            options = options.lease_ids(ids.filter_map(|id| LeaseId::from_number(id as u64)));
        }
        let mirror = self.client.get().unwrap().mirror(options);
        if command.get("changes").and_then(Value::as_bool).unwrap_or_default() {
            tokio::spawn(report_changes(mirror.changes(), self.paused["changes"].subscribe()));
        }
        drop(self.mirror.set(mirror));
    }

    fn make_watch(&self, command: &Fields) {
        let mut options = match text(command, "start") {
            "snapshot" => WatchOptions::snapshot(),
            "now" | "" => WatchOptions::default(),
            cursor => WatchOptions::after(cursor),
        };
        if let Some(ids) = ids(command, "session_ids") {
            options = options.session_ids(ids.map(SessionId));
        }
        if let Some(ids) = ids(command, "auth_key_ids") {
            options = options.auth_key_ids(ids.map(AuthKeyId));
        }
        if let Some(ids) = ids(command, "lease_ids") {
            options = options.lease_ids(ids.filter_map(|id| LeaseId::from_number(id as u64)));
        }
        if command.get("placements").and_then(Value::as_bool).unwrap_or_default() {
            options = options.placements();
        }
        if let Some(heartbeat) = millis(command, "heartbeat_ms") {
            options = options.heartbeat(heartbeat);
        }
        let watch = self.client.get().unwrap().watch(options);
        tokio::spawn(report_updates(watch, self.paused["watch"].subscribe()));
    }

    fn dump(&self) -> Value {
        let gateway = self.gateway.get().map(|gateway| {
            let connections = self.connections.lock().unwrap();
            let open = connections.iter().filter(|(_, named)| named.is_open);
            let open: Fields = open.map(|(name, named)| (name.clone(), key(named.session).into())).collect();
            json!({"lease": gateway.lease_id().to_string(), "connections": open})
        });
        let mirror = self.mirror.get().map(|mirror| {
            let held = mirror.iter().map(|found| {
                let [auth_key_id, session_id] = key(found.session);
                let owner = mirror.holder_of(found.session).and_then(|holder| holder.owner);
                json!([auth_key_id, session_id, lease_text(found.lease), owner.as_deref()])
            });
            let sessions: Vec<_> = held.collect();
            let staleness = mirror.staleness().as_millis() as u64;
            json!({"sessions": sessions, "synced": mirror.is_synced(), "staleness_ms": staleness})
        });
        json!({"gateway": gateway, "mirror": mirror})
    }
}

async fn report_changes(mut changes: MirrorChanges, mut paused: watch::Receiver<bool>) {
    loop {
        let _ = paused.wait_for(|is_paused| !is_paused).await;
        match changes.next().await {
            Some(MirrorUpdate::Changed(changes)) => {
                let changes: Vec<_> = changes
                    .iter()
                    .map(|change| {
                        let [auth_key_id, session_id] = key(change.session);
                        json!([auth_key_id, session_id, change.exists.then(|| lease_text(change.lease))])
                    })
                    .collect();
                write(&json!({"event": "changes", "changes": changes}));
            }
            Some(_) => write(&json!({"event": "resync"})),
            None => return,
        }
    }
}

async fn report_updates(mut watch: Watch, mut paused: watch::Receiver<bool>) {
    loop {
        let _ = paused.wait_for(|is_paused| !is_paused).await;
        let mut fields = match watch.next().await {
            Ok(update) => update_fields(update),
            Err(error) => json!({"kind": "failed", "reason": error_fields(&error)["reason"]}),
        };
        fields["event"] = "update".into();
        fields["cursor"] = watch.cursor().unwrap_or_default().into();
        write(&fields);
    }
}

fn update_fields(update: WatchUpdate) -> Value {
    match update {
        WatchUpdate::Subscribed { .. } => json!({"kind": "subscribed"}),
        WatchUpdate::Snapshot(sessions) => {
            let sessions: Vec<_> = sessions
                .into_iter()
                .map(|found| {
                    let [auth_key_id, session_id] = key(found.session);
                    [auth_key_id, session_id, lease_text(found.lease)]
                })
                .collect();
            json!({"kind": "snapshot", "sessions": sessions})
        }
        WatchUpdate::Synced { session_count } => json!({"kind": "synced", "count": session_count}),
        WatchUpdate::Events(events) => {
            json!({"kind": "events", "events": events.iter().map(event_fields).collect::<Vec<_>>()})
        }
        WatchUpdate::Heartbeat => json!({"kind": "heartbeat"}),
        WatchUpdate::Reset(reason) => {
            let reason = match reason {
                ResetReason::CursorExpired => "CURSOR_EXPIRED",
                ResetReason::CursorForeign => "CURSOR_FOREIGN",
                ResetReason::Lagged => "LAGGED",
                ResetReason::StorageRestarted => "STORAGE_RESTARTED",
                ResetReason::SnapshotInterrupted => "SNAPSHOT_INTERRUPTED",
                _ => "",
            };
            json!({"kind": "reset", "reason": reason})
        }
        WatchUpdate::Disconnected { error, .. } => {
            json!({"kind": "disconnected", "reason": error.reason().unwrap_or_default()})
        }
        other => panic!("{other:?}"),
    }
}

fn event_fields(event: &SessionEvent) -> Value {
    let (r#type, previous, reason) = match event.change {
        SessionChange::Created => ("created", None, String::new()),
        SessionChange::Moved { previous } => ("moved", previous, String::new()),
        SessionChange::Destroyed(reason) => ("destroyed", None, text_of(reason)),
    };
    let [auth_key_id, session_id] = key(event.session);
    json!([r#type, auth_key_id, session_id, lease_text(event.lease), lease_text(previous), reason])
}

fn closed_event(name: &str, reason: CloseReason) -> Value {
    let mut event = json!({"event": "closed", "connection": name});
    match reason {
        CloseReason::Moved { to } => {
            event["reason"] = "moved".into();
            event["lease"] = to.to_string().into();
        }
        CloseReason::Destroyed { reason } => {
            event["reason"] = "destroyed".into();
            event["destroy_reason"] = reason.map(text_of).into();
        }
        CloseReason::Stopped => event["reason"] = "stopped".into(),
        other => panic!("{other:?}"),
    }
    event
}

fn error_fields(error: &ClientError) -> Value {
    let mut fields = json!({"message": error.to_string()});
    fields["reason"] = match error {
        ClientError::SessionElsewhere { lease } => {
            fields["lease"] = lease.to_string().into();
            "SESSION_ELSEWHERE".into()
        }
        ClientError::Timeout { .. } => "TIMEOUT".into(),
        _ => error.reason().unwrap_or_else(|| "OTHER".to_owned()).into(),
    };
    fields
}

fn text_of(reason: DestroyReason) -> String {
    reason.name().to_ascii_uppercase()
}

fn lease_text(lease: Option<LeaseId>) -> String {
    lease.map_or(0, LeaseId::number).to_string()
}

fn key(session: SessionKey) -> [String; 2] {
    [session.auth_key_id.to_string(), session.session_id.to_string()]
}

fn session(value: &Value) -> SessionKey {
    SessionKey::new(signed(&value[0]), signed(&value[1]))
}

fn text<'a>(command: &'a Fields, name: &str) -> &'a str {
    command.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn millis(command: &Fields, name: &str) -> Option<Duration> {
    command.get(name).and_then(Value::as_u64).map(Duration::from_millis)
}

/// Reads a signed number, or its text.
fn signed(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

/// Reads a number, or its text.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

fn names(command: &Fields) -> impl Iterator<Item = i64> + use<> {
    let first = signed(&command["first"]);
    first..first + signed(&command["count"])
}

fn ids<'a>(command: &'a Fields, name: &str) -> Option<impl Iterator<Item = i64> + 'a> {
    Some(command.get(name)?.as_array()?.iter().map(signed))
}
