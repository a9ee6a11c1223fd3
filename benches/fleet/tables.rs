//! Prints the figures as tables in Markdown.

use super::{
    fleet::{Sample, Shape},
    load::{Calls, Load},
    log_pace::pause,
    model::{BUSY, Model, Planned, REDIS, REPLICA},
    process::server::Ran,
};

pub(crate) fn print(samples: &[Sample], memory: &[(Shape, u64, u64)], bytes: Option<Vec<(Load, f64, f64)>>) {
    idle(samples);
    changes(samples);
    followers(samples);
    observers(samples);
    reads(samples);
    table("Resident memory of a replica, MB", &["replicas", "partitions", "fresh", "after the loads"]);
    for (shape, fresh, after) in memory {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        println!("| {} | {} | {:.1} | {:.1} |", shape.replicas, shape.partitions, mb(*fresh), mb(*after));
    }
    table("What an observer receives", &["load", "bytes per event", "events per message"]);
    for (load, bytes, events) in bytes.into_iter().flatten() {
        println!("| {} | {bytes:.1} | {events:.1} |", name(&load));
    }
    let model = Model::fit(samples);
    model_table(&model);
    larger_fleets(&model);
}

fn table(title: &str, columns: &[&str]) {
    println!("\n### {title}\n\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
}

fn name(load: &Load) -> String {
    let place = if load.only_first { "one replica" } else { "all replicas" };
    match load.calls {
        Calls::None => "none".to_owned(),
        Calls::Has => format!("{} HasSession a second, {place}", load.rate),
        Calls::Most => "as many changes as are answered".to_owned(),
        Calls::Changes => format!("{} changes a second, {place}", load.rate),
        Calls::Batches => format!("{} batches of 1,000 a second, one replica", load.rate),
    }
}

/// The idle sample of the same shape.
fn idle_of(samples: &[Sample], shape: Shape) -> &Sample {
    samples.iter().find(|sample| sample.shape == shape && sample.load == Load::IDLE).unwrap()
}

/// The mean processor time of some processes or threads.
fn mean(all: &[Ran]) -> f64 {
    all.iter().map(|ran| ran.seconds).sum::<f64>() / all.len() as f64
}

fn idle(samples: &[Sample]) {
    table(
        "A fleet without calls, per second",
        &[
            "replicas",
            "partitions",
            "each replica, ms",
            "its wake-ups",
            "all masters, ms",
            "bytes from Redis to each replica",
        ],
    );
    for sample in samples.iter().filter(|sample| sample.load == Load::IDLE) {
        let Shape { replicas, partitions } = sample.shape;
        println!(
            "| {replicas} | {partitions} | {:.2} | {:.0} | {:.2} | {:.0} |",
            mean(&sample.replicas) * 1e3,
            sample.replicas[0].wakeups,
            sample.redis.seconds * 1e3,
            sample.bytes / replicas as f64
        );
    }
}

fn changes(samples: &[Sample]) {
    table(
        "Unary changes, spread over all replicas: us of processor time per change, beyond that of an idle fleet",
        &[
            "replicas",
            "partitions",
            "changes a second",
            "all replicas together",
            "all masters together",
            "their wake-ups",
            "entries of the log",
            "reads by each replica",
            "bytes from Redis to each replica",
        ],
    );
    for sample in samples {
        let is_unary = matches!(sample.load.calls, Calls::Changes | Calls::Most);
        if !is_unary || sample.load.only_first || sample.load.observers > 0 {
            continue;
        }
        let (Shape { replicas, partitions }, idle) = (sample.shape, idle_of(samples, sample.shape));
        println!(
            "| {replicas} | {partitions} | {:.0}{} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.0} |",
            sample.changes,
            if sample.load.calls == Calls::Most { ", the most" } else { "" },
            (sample.sessiond() - idle.sessiond()) * 1e6 / sample.changes,
            (sample.redis.seconds - idle.redis.seconds) * 1e6 / sample.changes,
            sample.redis.wakeups / sample.changes,
            sample.entries / sample.changes,
            sample.reads / sample.changes / replicas as f64,
            (sample.bytes - idle.bytes) / sample.changes / replicas as f64,
        );
    }
}

fn followers(samples: &[Sample]) {
    table(
        "All calls to one replica: us of processor time per change, beyond that of an idle fleet",
        &[
            "replicas",
            "partitions",
            "calls",
            "the replica with the calls",
            "of it the main thread",
            "each replica that only follows",
            "all masters",
            "reads by each replica",
        ],
    );
    for sample in samples {
        if !sample.load.only_first || sample.load.observers > 0 {
            continue;
        }
        let (Shape { replicas, partitions }, idle) = (sample.shape, idle_of(samples, sample.shape));
        let each = |more: f64| more * 1e6 / sample.changes;
        let follower = match &sample.replicas[1..] {
            [] => "–".to_owned(),
            followers => format!("{:.2}", each(mean(followers) - mean(&idle.replicas))),
        };
        println!(
            "| {replicas} | {partitions} | {} | {:.2} | {:.2} | {follower} | {:.2} | {:.3} |",
            if sample.load.calls == Calls::Batches { "batches" } else { "unary" },
            each(sample.replicas[0].seconds - mean(&idle.replicas)),
            each(sample.mains[0].seconds - mean(&idle.mains)),
            each(sample.redis.seconds - idle.redis.seconds),
            sample.reads / sample.changes / replicas as f64,
        );
    }
}

fn observers(samples: &[Sample]) {
    table(
        "60 observers of everything at each replica, 20 batches of 1,000 a second",
        &["replicas", "processor time of all replicas per delivery, ns", "events per read"],
    );
    for sample in samples.iter().filter(|sample| sample.load.observers > 0 && sample.load.calls == Calls::Batches) {
        let without = Load { observers: 0, ..sample.load };
        let without = samples.iter().find(|other| other.shape == sample.shape && other.load == without).unwrap();
        let replicas = sample.shape.replicas as f64;
        let deliveries = f64::from(sample.load.observers) * sample.changes * replicas;
        println!(
            "| {replicas} | {:.0} | {:.1} |",
            (sample.sessiond() - without.sessiond() * sample.changes / without.changes) * 1e9 / deliveries,
            sample.changes * replicas / sample.reads,
        );
    }
}

fn reads(samples: &[Sample]) {
    table(
        "2,000 HasSession a second: us of processor time per call, beyond that of an idle fleet",
        &["replicas", "all replicas", "all masters"],
    );
    for sample in samples.iter().filter(|sample| sample.load.calls == Calls::Has) {
        let idle = idle_of(samples, sample.shape);
        let each = |more: f64| more * 1e6 / sample.lookups;
        let (all, redis) = (sample.sessiond() - idle.sessiond(), sample.redis.seconds - idle.redis.seconds);
        println!("| {} | {:.1} | {:.1} |", sample.shape.replicas, each(all), each(redis));
    }
}

fn model_table(model: &Model) {
    let main_share = format!(
        "{:.0}% of a call is on the main thread, whichever worker has its connection.",
        model.main_share * 100.0
    );
    for (title, names, costs, error, note) in [
        ("The model of a replica", &REPLICA[..], &model.replica[..], model.replica_error, main_share),
        ("The model of all masters together", &REDIS[..], &model.redis[..], model.redis_error, String::new()),
    ] {
        table(title, &["what", "us of processor time"]);
        for (name, cost) in names.iter().zip(costs) {
            println!("| {name} | {:.2} |", cost * 1e6);
        }
        println!("\nMedian error: {:.0}%. {note}", error * 100.0);
    }
}

fn larger_fleets(model: &Model) {
    table(
        &format!("On paper: changes per second, if nothing is more than {:.0}% busy", BUSY * 100.0),
        &[
            "replicas",
            "masters",
            "observers",
            "between reads, ms",
            "limit of a replica's cores",
            "of its main thread",
            "of a master",
            "of the main thread, following takes",
            "of the master, serving followers takes",
        ],
    );
    for replicas in [3, 10, 30, 100] {
        for masters in [3, 6] {
            for observers in [0, 1000] {
                for pause in [0.0, pause(replicas as u32).as_secs_f64()] {
                    let fleet = Planned { replicas, masters, partitions: 2 * masters, observers, pause };
                    let [cores, thread, master] = model.limits(&fleet);
                    let (follow, serve) = model.following(&fleet, cores.min(thread).min(master));
                    println!(
                        "| {replicas} | {masters} | {observers} | {:.1} | {cores:.0} | {thread:.0} | {master:.0} | {:.0}% | {:.0}% |",
                        pause * 1e3,
                        follow * 100.0,
                        serve * 100.0
                    );
                }
            }
        }
    }
}
