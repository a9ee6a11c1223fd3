//! An observer, which reads its stream and checks it.

use std::{
    cell::{OnceCell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use http::Request;
use prost::Message as _;
use sessiond::proto::SubscribeRequest;
use tokio::{sync::watch, time::timeout};

use super::{
    check::Check,
    connection::{Connection, check_trailers},
    failure::{Cause, Failure},
    frames::{Frames, PREFIX},
    pace::Window,
    progress::Counters,
    run_stats::DeliveryStats,
    stamps::Stamps,
    worker::Phase,
};

/// How long a stream may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Events that have not arrived this long after the last call count as lost.
const QUIET_TIMEOUT: Duration = Duration::from_secs(5);

/// The state that the observers of a thread share.
pub(super) struct Deliveries {
    pub(super) head: Request<()>,
    pub(super) auth_key_id: i64,
    pub(super) stamps: Arc<Stamps>,
    pub(super) counters: Arc<Counters>,
    pub(super) window: OnceCell<Window>,
    pub(super) stats: RefCell<DeliveryStats>,
}

pub(super) struct Observer {
    deliveries: Rc<Deliveries>,
    body: RecvStream,
    frames: Frames,
    check: Check,
}

impl Observer {
    /// Opens a stream of all changes from now on.
    pub(super) async fn subscribe(deliveries: Rc<Deliveries>, connection: Connection) -> Result<Self, Failure> {
        let opening = Self::open(deliveries, connection);
        timeout(OPEN_TIMEOUT, opening).await.unwrap_or_else(|_| {
            let message = "a stream took too long to open: check the server's --max-streams".to_owned();
            Err(Failure { cause: Cause::Unanswered, message })
        })
    }

    async fn open(deliveries: Rc<Deliveries>, mut connection: Connection) -> Result<Self, Failure> {
        let request = SubscribeRequest::default();
        let mut message = BytesMut::with_capacity(PREFIX + request.encoded_len());
        message.put_u8(0);
        message.put_u32(request.encoded_len() as u32);
        message.put(&request.encode_to_vec()[..]);
        let body = connection.open(deliveries.head.clone(), message.freeze()).await?.frames().await?;
        let check = Check::new(deliveries.auth_key_id, deliveries.stamps.counts());
        let mut observer = Self { deliveries, body, frames: Frames::default(), check };
        while !observer.check.subscribed {
            observer.receive().await?;
        }
        Ok(observer)
    }

    /// Reads the stream until the end of the run.
    pub(super) async fn run(mut self, mut phases: watch::Receiver<Phase>) {
        let result = self.follow(&mut phases).await;
        let stats = &mut *self.deliveries.stats.borrow_mut();
        let (ends, check) = (&mut stats.ends, &self.check);
        ends.events += check.events;
        ends.violations += check.violations;
        ends.resets += check.resets;
        match result {
            Ok(None) => {}
            Ok(Some(changes)) => {
                let wrong = check.differences(&self.deliveries.stamps.counts());
                ends.wrong_sessions += wrong;
                ends.complete += u64::from(wrong == 0 && check.events == changes);
            }
            Err(failure) => {
                ends.lost += 1;
                ends.first_failure.get_or_insert(failure);
            }
        }
    }

    /// Reads until all events have arrived. Returns how many there must have been, if that is known.
    async fn follow(&mut self, phases: &mut watch::Receiver<Phase>) -> Result<Option<u64>, Failure> {
        let changes = loop {
            tokio::select! {
                biased;
                received = self.receive() => received?,
                changed = phases.changed() => match (changed, *phases.borrow_and_update()) {
                    (Ok(()), Phase::Settle { changes }) => break changes,
                    (Ok(()), _) => {}
                    // The run was abandoned.
                    (Err(_), _) => return Ok(None),
                },
            }
        };
        // After a reset it is unknown how many events were skipped.
        while let Some(changes) = changes.filter(|_| self.check.resets == 0) {
            if self.check.events >= changes {
                return Ok(Some(changes));
            }
            match timeout(QUIET_TIMEOUT, self.receive()).await {
                Ok(received) => received?,
                Err(_) => return Ok(Some(changes)),
            }
        }
        Ok(None)
    }

    /// Receives the next frame. Cancel-safe.
    async fn receive(&mut self) -> Result<(), Failure> {
        let Some(data) = self.body.data().await else { return Err(self.ended().await) };
        let now = Instant::now();
        let data: Bytes = data?;
        self.body.flow_control().release_capacity(data.len())?;
        self.frames.push(data);

        let stats = &mut *self.deliveries.stats.borrow_mut();
        let window = self.deliveries.window.get();
        let before = self.check.events;
        while let Some(message) = self.frames.next()? {
            let after_reset = self.check.resets > 0;
            self.check.read(&message, |(session, count)| {
                if window.is_some_and(|window| now >= window.measured_from) {
                    let begin = self.deliveries.stamps.begin(session, count).filter(|_| !after_reset);
                    stats.deliver(begin.map(|begin| now.saturating_duration_since(begin)));
                }
            })?;
        }
        let events = self.check.events - before;
        self.deliveries.counters.deliver(events);
        if window.is_some_and(|window| (window.measured_from..window.end).contains(&now)) {
            stats.measured += events;
        }
        Ok(())
    }

    /// Returns why the stream ended, which it never does on its own.
    async fn ended(&mut self) -> Failure {
        let failure = match self.body.trailers().await {
            Ok(trailers) => check_trailers(trailers),
            Err(error) => Err(error.into()),
        };
        failure.err().unwrap_or_else(|| Failure::malformed("the server ended a stream with status OK"))
    }
}
