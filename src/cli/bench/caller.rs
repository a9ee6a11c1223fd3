//! A caller, which makes one call after another.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use fastrand::Rng;
use http::Request;

use super::{
    connection::Connection,
    failure::Failure,
    message,
    mix::{Kind, Mix},
    pace::Pace,
    progress::Counters,
    ring::{Asked, Ring},
    run_stats::CallStats,
    stamps::Stamps,
};

/// The state that the callers of a thread share.
pub(super) struct Calls {
    /// The request head for each kind of call.
    pub(super) heads: [Request<()>; Kind::ALL.len()],
    pub(super) auth_key_id: i64,
    pub(super) mix: Mix,
    pub(super) batch: u32,
    pub(super) pace: Pace,
    pub(super) stamps: Option<Arc<Stamps>>,
    pub(super) counters: Arc<Counters>,
    pub(super) stats: RefCell<CallStats>,
    /// The number of unanswered calls of each kind.
    pub(super) in_flight: [Cell<u64>; Kind::ALL.len()],
}

pub(super) struct Caller {
    pub(super) calls: Rc<Calls>,
    pub(super) connection: Connection,
    pub(super) ring: Ring,
    pub(super) rng: Rng,
    pub(super) asked: Vec<Asked>,
    /// Whether it is certain which sessions exist. False once a create or destroy has failed.
    pub(super) sure: bool,
}

impl Caller {
    /// Makes calls until the pace ends or the connection is lost. Returns whether it is lost.
    pub(super) async fn run(mut self) -> bool {
        let calls = Rc::clone(&self.calls);
        while let Some(begin) = calls.pace.next().await {
            let kind = calls.mix.pick(&mut self.rng);
            let in_flight = &calls.in_flight[kind as usize];
            in_flight.set(in_flight.get() + 1);
            let answer = self.call(kind, begin).await;
            in_flight.set(in_flight.get() - 1);
            calls.counters.call(answer.is_ok());
            let answer = answer.and_then(|answer| self.judge(kind, begin, &answer));
            if let Err(failure) = answer {
                // After a failed create or destroy it is unknown whether the sessions exist.
                self.sure &= kind == Kind::Has;
                let lost = failure.ends_connection();
                calls.stats.borrow_mut().fail(kind, failure);
                if lost {
                    return true;
                }
            }
        }
        false
    }

    async fn call(&mut self, kind: Kind, begin: Instant) -> Result<Bytes, Failure> {
        let calls = &*self.calls;
        self.ring.next(kind, calls.batch, &mut self.rng, &mut self.asked);
        if let (Some(stamps), Kind::Create | Kind::Destroy) = (&calls.stamps, kind) {
            for asked in self.asked.iter().filter(|asked| asked.expected) {
                stamps.change(asked.session, begin);
            }
        }
        let request = match &self.asked[..] {
            [asked] if calls.batch == 1 => message::unary(calls.auth_key_id, asked.session),
            asked => message::batch(calls.auth_key_id, asked),
        };
        self.connection.call(calls.heads[kind as usize].clone(), request).await
    }

    /// Compares an answer with the expected one, and counts it.
    fn judge(&self, kind: Kind, begin: Instant, answer: &[u8]) -> Result<(), Failure> {
        let took = begin.elapsed();
        let calls = &*self.calls;
        let unary;
        let answers = if calls.batch == 1 {
            unary = [u8::from(message::read_unary(answer)?)];
            &unary[..]
        } else {
            message::read_batch(answer)?
        };
        if answers.len() != self.asked.len() {
            return Err(Failure::malformed("a batch response does not have one value for each session"));
        }
        let (mut yes, mut wrong) = (0, 0);
        for (asked, answer) in self.asked.iter().zip(answers) {
            yes += u64::from(*answer != 0);
            wrong += u64::from(asked.expected != (*answer != 0));
        }
        let stats = &mut *calls.stats.borrow_mut();
        if kind != Kind::Has {
            stats.changes += yes;
        }
        let stats = &mut stats.kinds[kind as usize];
        stats.wrong += if self.sure { wrong } else { 0 };
        if begin >= calls.pace.window().measured_from {
            stats.answered += 1;
            stats.yes += yes;
            stats.latency.record(took);
        }
        Ok(())
    }
}
