//! ListLeases over the wire.

use std::{collections::BTreeMap, time::Duration};

use sessiond::{
    client::{Client, LeaseQuery, MAX_BATCH},
    proto::{LeaseStatus, ListLeasesRequest, RevokeLeaseRequest},
    session::LeaseId,
};

use crate::{
    fake::{duration, soon},
    leases::revoke,
    placements::put,
    server::{Leases, Running},
    takeover::grant,
};

const TTL: Duration = Duration::from_secs(600);

/// Returns all leases that match the request, and the number of pages.
async fn list(client: &Leases, mut request: ListLeasesRequest) -> (Vec<LeaseStatus>, usize) {
    let (mut all, mut pages) = (Vec::new(), 0);
    loop {
        let page = soon(client.clone().list_leases(request.clone())).await.unwrap().into_inner();
        pages += 1;
        all.extend(page.leases);
        if page.next_page_token.is_empty() {
            return (all, pages);
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn list_leases_reports_every_lease_and_filters_by_owner_and_id() {
    let server = Running::start().await;
    let (leases, writer) = (server.leases(), server.sessions());
    assert_eq!(list(&leases, ListLeasesRequest::default()).await, (Vec::new(), 1));
    let mut sessions = BTreeMap::new();
    for n in 0..5 {
        let lease = grant(&leases, &format!("10.0.0.{}:443", n % 2), TTL).await;
        put(&writer, n * 100..n * 100 + n, lease.lease_id).await;
        sessions.insert(lease.lease_id, (lease, n as u64));
    }
    let ids: Vec<u64> = sessions.keys().copied().collect();
    let linger = Some(duration(TTL / 2));
    soon(leases.clone().revoke_lease(RevokeLeaseRequest { lease_id: ids[0], linger })).await.unwrap();
    let (all, _) = list(&leases, ListLeasesRequest::default()).await;
    assert_eq!(all.iter().map(|status| status.lease.as_ref().unwrap().lease_id).collect::<Vec<_>>(), ids);
    for status in &all {
        let (lease, count) = &sessions[&status.lease.as_ref().unwrap().lease_id];
        assert_eq!((status.lease.as_ref(), status.session_count), (Some(lease), *count));
        assert_eq!((status.ttl, status.lingers), (Some(duration(TTL)), lease.lease_id == ids[0]));
        let most = if status.lingers { 300 } else { 600 };
        let left = status.expires_in.unwrap().seconds;
        assert!((most - 60..=most).contains(&left), "{status:?}");
    }
    // Read the list again in pages of two.
    let (paged, pages) = list(&leases, ListLeasesRequest { page_size: 2, ..Default::default() }).await;
    assert_eq!(paged.len(), 5);
    assert!(pages >= 3, "{pages} pages of two");
    let of_owner = ListLeasesRequest { owner: "10.0.0.1:443".to_owned(), ..Default::default() };
    assert_eq!(list(&leases, of_owner).await.0.len(), 2);
    let by_ids = ListLeasesRequest { lease_ids: vec![ids[3], 0, ids[1], 7], page_size: u32::MAX, ..Default::default() };
    let (named, _) = list(&leases, by_ids).await;
    let named: Vec<_> = named.into_iter().map(|status| status.lease.unwrap().lease_id).collect();
    assert_eq!(named, [ids[1], ids[3]]);
    revoke(&leases, ids[0]).await.unwrap();
    assert_eq!(list(&leases, ListLeasesRequest::default()).await.0.len(), 4);
}

#[tokio::test]
async fn the_client_lists_any_number_of_leases_in_order() {
    let server = Running::start().await;
    let client = Client::connect_lazy(&server.url()).unwrap();
    let mut granted = Vec::new();
    for _ in 0..5 {
        granted.push(client.grant_lease(TTL, "gateway").await.unwrap().id);
    }
    granted.sort_unstable();
    let below = 1..=MAX_BATCH as u64 - 2;
    let above = u64::MAX - MAX_BATCH as u64..=u64::MAX;
    let mut lease_ids: Vec<_> = above.chain(below).filter_map(LeaseId::from_number).collect();
    lease_ids.extend(granted.iter().rev().chain(&granted));
    let mut query = LeaseQuery { lease_ids, page_size: 2, ..LeaseQuery::default() };
    let (mut listed, mut pages) = (Vec::new(), 0);
    loop {
        let page = soon(client.list_leases(query.clone())).await.unwrap();
        listed.extend(page.leases.into_iter().map(|status| status.lease.id));
        pages += 1;
        if page.next.is_empty() {
            break;
        }
        query.page_token = page.next;
    }
    assert_eq!(listed, granted);
    assert!(pages >= 3, "{pages} pages for three parts");
    query.page_token = "nonsense".to_owned();
    let error = soon(client.list_leases(query)).await.unwrap_err();
    assert_eq!(error.reason().as_deref(), Some("MALFORMED_PAGE_TOKEN"));
}
