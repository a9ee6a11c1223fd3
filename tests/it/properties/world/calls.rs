//! The writers' calls in a history, and the checks of their answers.

use std::{collections::BTreeSet, time::Duration};

use sessiond::{
    session::{LeaseId, SessionChange, SessionEvent, SessionKey},
    storage::{CreateOptions, Lookup, StorageError},
    subject::SessionSubject,
};
use tokio::time::Instant;

use super::{
    super::{
        answers::{self, Answer},
        checker::{Broken, Promise},
        history::{all_sessions, one_of},
        takeover,
    },
    World,
};

impl World {
    pub(super) fn lease(&self, number: Option<usize>) -> Option<LeaseId> {
        one_of(&self.leases, number?)
    }

    pub(crate) async fn grant(&mut self, ttl: Duration) -> LeaseId {
        let lease = self.write(async |subject| subject.grant_lease(ttl, "history").await).await.unwrap();
        self.leases.push(lease);
        lease
    }

    /// Returns the result of a call under a lease, or None if the lease refused it.
    pub(super) fn accept<R>(&mut self, result: Result<R, StorageError>) -> Option<R> {
        match result {
            Ok(result) => Some(result),
            Err(StorageError::UnknownLease(lease)) => {
                self.gone.insert(lease);
                None
            }
            Err(StorageError::LeaseLingers(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Makes a writer's call, which must not wait for any observer.
    pub(super) async fn write<R>(&mut self, call: impl AsyncFnOnce(&SessionSubject) -> R) -> R {
        let began = Instant::now();
        self.writes += 1;
        let result = call(&self.replicas[self.writes % self.replicas.len()].subject).await;
        if self.is_paused && began.elapsed() > Duration::ZERO {
            self.broken.push(Broken::new(Promise::Bounded, format!("a writer waited for {:?}", began.elapsed())));
        }
        result
    }

    pub(crate) async fn create(&mut self, sessions: &[SessionKey], lease: Option<LeaseId>) {
        self.create_with(sessions, lease.into()).await;
    }

    pub(crate) async fn create_with(&mut self, sessions: &[SessionKey], options: CreateOptions) {
        let before = self.model.leases().await;
        let result = self.write(async |subject| subject.create_with(sessions, options).await).await;
        let news = self.model.catch_up().await;
        let Some(answers) = self.accept(result) else { return };
        let after = self.model.leases().await;
        self.broken.extend(takeover::judge(sessions, options, &answers.sessions, &news, (&before, &after)));
        let created = answers.sessions.iter().map(|creation| creation.created);
        self.check_changed(sessions, created, &news, |change| matches!(change, SessionChange::Created));
        self.check_answers(&answers::of_create(sessions, &answers), &after.live);
    }

    pub(crate) async fn destroy(&mut self, sessions: &[SessionKey], lease: Option<LeaseId>) {
        let result = self.write(async |subject| subject.destroy_with(sessions, lease).await).await;
        let news = self.model.catch_up().await;
        let answers = result.unwrap();
        let destroyed = answers.sessions.iter().copied();
        self.check_changed(sessions, destroyed, &news, |change| matches!(change, SessionChange::Destroyed(_)));
        let live = self.model.leases().await.live;
        self.check_answers(&answers::of_destroy(sessions, lease, &answers), &live);
    }

    /// Checks that the changes reported by a call were logged.
    fn check_changed(
        &self,
        sessions: &[SessionKey],
        changed: impl Iterator<Item = bool>,
        news: &[SessionEvent],
        is_news: impl Fn(&SessionChange) -> bool,
    ) {
        if self.is_paused {
            let reported = sessions.iter().zip(changed).filter(|(_, changed)| *changed).map(|(session, _)| *session);
            let logged = news.iter().filter(|event| is_news(&event.change)).map(|event| event.session);
            assert_eq!(reported.collect::<BTreeSet<_>>(), logged.collect(), "{news:?}");
        }
    }

    fn check_answers(&mut self, answers: &[Answer], live: &BTreeSet<LeaseId>) {
        let broken = answers.iter().filter_map(|answer| answer.judge(&self.model, live, self.is_paused));
        self.broken.extend(broken);
    }

    /// Checks lookups against the log. A lookup must not report a lease that has ended.
    pub(super) async fn check_lookups(&mut self) {
        let all = all_sessions();
        let found = loop {
            let found = self.replicas[self.writes % self.replicas.len()].subject.lookup(&all).await.unwrap();
            // A lease may have expired meanwhile.
            if self.model.catch_up().await.is_empty() {
                break found;
            }
        };
        let live = self.model.leases().await.live;
        for (session, Lookup { exists, lease, .. }) in all.iter().zip(found) {
            let (reported, held) = (exists.then_some(lease), self.model.held().get(session).copied());
            let is_right = match (reported, held.flatten()) {
                (Some(None), Some(held)) => !live.contains(&held),
                (reported, _) => reported == held,
            };
            let is_gone = lease.is_some_and(|lease| self.gone.contains(&lease) || self.model.has_ended(lease));
            if !is_right || is_gone {
                let how =
                    format!("{session:?} is looked up as {reported:?}, but logged as {held:?}; live leases: {live:?}");
                self.broken.push(Broken::new(Promise::Placed, how));
            }
        }
    }
}
