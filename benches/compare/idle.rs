//! The memory of idle observers.

use super::{
    observer::{Observer, from_now, subscribe_all},
    peers,
    report::Report,
};

pub(crate) async fn run(report: &mut Report) {
    report.part("Idle observers", &["observers", "server memory per observer, KB"]);
    for (what, observers, connections) in [("one per connection", 2000, 2000), ("1,000 per connection", 10_000, 10)] {
        let server = peers::sessiond(&[]);
        drop(Observer::connect(server.address, &from_now()).await);
        let before = server.resident();
        let mut held = Vec::new();
        for _ in 0..connections {
            held.push(subscribe_all(server.address, &vec![from_now(); observers / connections]).await);
        }
        let kilobytes = (server.resident() - before) as f64 / 1024.0 / observers as f64;
        report.row(&[what.to_owned(), format!("{kilobytes:.1}")]);
    }
}
