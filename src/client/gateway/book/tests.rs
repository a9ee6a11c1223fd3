//! Tests the book without a registry.

use super::*;

fn lease(number: u64) -> LeaseId {
    LeaseId::from_number(number).unwrap()
}

const OURS: u64 = 1;
const SESSION: SessionKey = SessionKey::new(0, 42);

struct Client {
    signal: Arc<Signal>,
    answer: oneshot::Receiver<Result<(), ClientError>>,
}

impl Client {
    fn connect(book: &mut Book) -> Self {
        let (reply, answer) = oneshot::channel();
        let signal = Arc::<Signal>::default();
        book.open(SESSION, Arc::clone(&signal), Instant::now(), reply);
        Self { signal, answer }
    }

    /// Connects, and records the answers of a registry that does not have this session.
    fn registered(book: &mut Book) -> Self {
        let mut client = Self::connect(book);
        let claim = look_up(book, None, true).unwrap();
        book.claimed(&claim, book.lease(), Some(book.lease()));
        assert!(matches!(client.answer.try_recv(), Ok(Ok(()))));
        assert!(book.plan().is_empty());
        client
    }

    fn reason(&self) -> Option<CloseReason> {
        self.signal.reason()
    }
}

/// Takes a plan that looks up the session, and records the answer.
fn look_up(book: &mut Book, found: Option<LeaseId>, is_held: bool) -> Option<Claim> {
    let plan = book.plan();
    assert_eq!((plan.lookups.len(), plan.claims.len(), plan.destroys.len()), (1, 0, 0), "{plan:?}");
    book.found(&plan.lookups[0], plan.lease, found, is_held)
}

#[test]
fn a_session_is_destroyed_after_its_last_connection() {
    let mut book = Book::new(lease(OURS));
    let first = Client::registered(&mut book);
    let second = Client::connect(&mut book);
    assert!(look_up(&mut book, Some(lease(OURS)), true).is_none());
    book.close(SESSION, &first.signal);
    assert!(book.plan().is_empty());
    book.close(SESSION, &second.signal);
    assert_eq!(book.plan().destroys, [(SESSION, lease(OURS))]);
    // The call fails, and is made again.
    book.failed(SESSION, &ClientError::StreamEnded);
    assert_eq!(book.plan().destroys, [(SESSION, lease(OURS))]);
    book.destroyed(SESSION, lease(OURS));
    assert!(book.entries.is_empty() && book.queue.is_empty());
}

#[test]
fn a_claim_never_changes_and_fails_if_a_newer_connection_has_the_session() {
    let mut book = Book::new(lease(OURS));
    let mut client = Client::connect(&mut book);
    let claim = look_up(&mut book, Some(lease(7)), true).unwrap();
    assert_eq!(claim.only_from, Some(lease(7)));
    book.failed(SESSION, &ClientError::StreamEnded);
    let plan = book.plan();
    assert_eq!((plan.lookups.len(), plan.claims[0].only_from), (0, Some(lease(7))));
    book.claimed(&plan.claims[0], plan.lease, Some(lease(8)));
    let answer = client.answer.try_recv().unwrap();
    assert!(matches!(answer, Err(ClientError::SessionElsewhere { lease: holder }) if holder == lease(8)), "{answer:?}");
    book.close(SESSION, &client.signal);
    assert!(book.entries.is_empty());
}

#[test]
fn a_client_that_comes_back_closes_the_connection_that_it_has_left() {
    let mut book = Book::new(lease(OURS));
    let old = Client::registered(&mut book);
    let new = Client::connect(&mut book);
    assert!(look_up(&mut book, Some(lease(7)), true).is_some());
    assert_eq!((old.reason(), new.reason()), (Some(CloseReason::Moved { to: lease(7) }), None));
}

#[test]
fn hints_only_cause_lookups() {
    let mut book = Book::new(lease(OURS));
    let client = Client::registered(&mut book);
    book.left(SESSION, lease(OURS), Left::Moved(lease(7)));
    assert!(look_up(&mut book, Some(lease(OURS)), true).is_none());
    assert_eq!(client.reason(), None, "the hint was old");
    book.left(SESSION, lease(9), Left::Moved(lease(7)));
    assert!(book.plan().is_empty(), "the hint is about another lease");
    book.left(SESSION, lease(OURS), Left::Destroyed(DestroyReason::Requested));
    assert!(look_up(&mut book, None, true).is_none());
    assert_eq!(client.reason(), Some(CloseReason::Destroyed { reason: Some(DestroyReason::Requested) }));
    assert!(book.entries.is_empty());
}

#[test]
fn sessions_that_ended_with_the_lease_are_registered_again_under_the_next() {
    let mut book = Book::new(lease(OURS));
    let client = Client::registered(&mut book);
    book.left(SESSION, lease(OURS), Left::Missing);
    assert!(look_up(&mut book, None, false).is_none());
    book.renew(lease(2));
    let plan = book.plan();
    assert_eq!((plan.lease, plan.claims[0].only_from), (lease(2), None));
    // The connection closes while the call is in flight.
    book.close(SESSION, &client.signal);
    book.claimed(&plan.claims[0], lease(2), Some(lease(2)));
    assert_eq!(client.reason(), None);
    assert_eq!(book.plan().destroys, [(SESSION, lease(2))]);
}

#[test]
fn sessions_without_a_connection_that_appear_are_destroyed() {
    let mut book = Book::new(lease(OURS));
    book.appeared(SESSION, lease(9));
    assert!(book.plan().is_empty(), "the lease is another one");
    book.appeared(SESSION, lease(OURS));
    assert_eq!(book.plan().destroys, [(SESSION, lease(OURS))]);
    // It appears again while it is being destroyed.
    book.appeared(SESSION, lease(OURS));
    book.destroyed(SESSION, lease(OURS));
    assert_eq!(book.plan().destroys, [(SESSION, lease(OURS))]);
    book.destroyed(SESSION, lease(OURS));
    assert!(book.entries.is_empty());
}

#[test]
fn clients_that_come_and_go_while_the_registry_is_away_take_no_memory() {
    let mut book = Book::new(lease(OURS));
    for _ in 0..1000 {
        let client = Client::connect(&mut book);
        book.close(SESSION, &client.signal);
    }
    assert_eq!((book.queue.len(), book.entries.len()), (1, 1));
    assert!(book.plan().is_empty() && book.queue.is_empty() && book.entries.is_empty());
}

#[test]
fn a_stop_closes_everything_and_destroys_only_what_was_closed_before() {
    let mut book = Book::new(lease(OURS));
    let mut client = Client::registered(&mut book);
    let mut opening = Client::connect(&mut book);
    book.stop();
    assert_eq!(client.reason(), Some(CloseReason::Stopped));
    assert!(matches!(opening.answer.try_recv(), Ok(Err(ClientError::GatewayStopped))));
    book.close(SESSION, &client.signal);
    book.appeared(SESSION, lease(OURS));
    assert!(book.plan().is_empty());
    client = Client::connect(&mut book);
    assert!(matches!(client.answer.try_recv(), Ok(Err(ClientError::GatewayStopped))));
}
