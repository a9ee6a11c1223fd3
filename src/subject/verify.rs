//! Seeing that the log which an observer follows is of the same history as what it was told before.
//!
//! A snapshot's buckets, and a cursor from another replica, may reflect places of the storage's log that this process has yet to read. Should the
//! storage lose its newest changes meanwhile and go on differently, this process, which has not read them, does not notice. So before an observer is
//! told of what comes at such a place, the storage is asked for the mark there.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    Inner,
    cursor::{Points, Positions},
    log::Chunk,
    waits::StorageOperation,
};
use crate::storage::{LogPoint, StorageError};

/// How long to wait before a storage that cannot be asked is asked again.
const RETRY: Duration = Duration::from_millis(500);

type Asked = Pin<Box<dyn Future<Output = Result<bool, StorageError>> + Send>>;

/// Places ahead of an observer, each of another partition, whose history is yet to be seen.
pub(super) struct Verification {
    places: SmallVec<[(u32, LogPoint); 1]>,
    asked: Option<Asked>,
}

impl Verification {
    /// Of those places that are ahead of `at`; none when there is none. The others are of `at`'s history, or it gives the first that is not.
    pub(super) fn of(
        places: impl IntoIterator<Item = (u32, LogPoint)>,
        at: &Points,
    ) -> Result<Option<Box<Self>>, LogPoint> {
        let mut ahead: SmallVec<[(u32, LogPoint); 1]> = SmallVec::new();
        for (partition, point) in places {
            let at = at[partition as usize];
            if point.position > at.position {
                match ahead.iter_mut().find(|(known, _)| *known == partition) {
                    Some((_, known)) if known.position < point.position => *known = point,
                    Some(_) => {}
                    None => ahead.push((partition, point)),
                }
            } else if point.position == at.position && point.mark != at.mark {
                return Err(point);
            }
        }
        Ok((!ahead.is_empty()).then(|| Box::new(Self { places: ahead, asked: None })))
    }

    /// Whether nothing is left to be seen.
    pub(super) fn is_done(&self) -> bool {
        self.places.is_empty()
    }

    /// Sees whether the places that a chunk comes to are of the storage's history; `at` are the points of the observer before the chunk.
    pub(super) fn poll(
        &mut self,
        inner: &Arc<Inner>,
        chunk: &Chunk,
        at: &Points,
        context: &mut Context<'_>,
    ) -> Poll<bool> {
        let end = chunk.points[chunk.partition as usize];
        let reached =
            |(partition, point): &(u32, LogPoint)| *partition == chunk.partition && point.position <= end.position;
        let Some(index) = self.places.iter().position(reached) else { return Poll::Ready(true) };
        let (partition, point) = self.places[index];
        let is_same = if point.position == end.position {
            point.mark == end.mark
        } else {
            loop {
                let asked =
                    self.asked.take().unwrap_or_else(|| ask(inner, partition, [point, end], at, Duration::ZERO));
                match ready!(self.asked.insert(asked).as_mut().poll(context)) {
                    Ok(is_same) => break is_same,
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::debug!(error, "an observer waits for the storage");
                        self.asked = Some(ask(inner, partition, [point, end], at, RETRY));
                    }
                }
            }
        };
        self.asked = None;
        self.places.remove(index);
        Poll::Ready(is_same)
    }
}

/// Asks, after a pause, whether the storage's log holds some points of a partition, one after the other.
fn ask(inner: &Arc<Inner>, partition: u32, points: [LogPoint; 2], at: &Points, pause: Duration) -> Asked {
    let inner = Arc::clone(inner);
    let mut positions: Positions = at.iter().map(|point| point.position).collect();
    Box::pin(async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        for point in points {
            positions[partition as usize] = point.position;
            let marks = inner.waits.of(StorageOperation::Marks, inner.storage.marks(&positions)).await?;
            if marks.get(partition as usize) != Some(&Some(point.mark)) {
                return Ok(false);
            }
        }
        Ok(true)
    })
}
