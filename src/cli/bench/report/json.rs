//! The report as JSON.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    super::{
        latency::Latency,
        mix::Kind,
        run_stats::{Failures, KindStats},
    },
    Report,
};

impl Report {
    /// Returns one JSON object on one line. Unknown values are null.
    pub(in super::super) fn json(&self) -> String {
        let plan = &self.plan;
        let calls: Map<String, Value> = Kind::ALL
            .into_iter()
            .filter(|&kind| plan.mix.weight(kind) > 0)
            .map(|kind| (kind.name().to_owned(), self.call(&self.calls.kinds[kind as usize])))
            .collect();
        let report = json!({
            "addr": plan.target.as_str(),
            // A string, like all 64-bit numbers that may use all their bits.
            "auth_key_id": plan.auth_key_id.to_string(),
            "connections": plan.connections,
            "in_flight": plan.in_flight,
            "batch": plan.batch,
            "sessions": plan.sessions,
            "rate": plan.rate,
            "measured_seconds": self.measured.as_secs_f64(),
            "interrupted": self.interrupted,
            "calls": calls,
            "unsent": self.unsent,
            "connections_lost": self.calls.connections_lost,
            "changes": self.changes,
            "events": (plan.observers > 0).then(|| self.events()),
            "loader": self.loader.as_ref().map(|loader| json!({
                "threads": loader.threads,
                "busy_share": loader.ran,
                "starved_share": loader.waited,
                "busiest_thread_share": loader.busiest,
                "cpu_us_per_call": self.cpu_micros_per_call(loader),
                "bottleneck": loader.is_bottleneck(),
            })),
        });
        format!("{report}\n")
    }

    fn call(&self, stats: &KindStats) -> Value {
        let rate = self.per_second(stats.answered);
        json!({
            "answered": stats.answered,
            "yes": stats.yes,
            "wrong": stats.wrong,
            "failed": failures(&stats.failures),
            "calls_per_second": rate,
            "sessions_per_second": rate * f64::from(self.plan.batch),
            "latency_us": latency(&stats.latency),
        })
    }

    fn events(&self) -> Value {
        let (deliveries, ends) = (&self.deliveries, &self.deliveries.ends);
        json!({
            "observers": self.plan.observers,
            "observers_lost": ends.lost,
            "observers_complete": self.changes.map(|_| ends.complete),
            "deliveries": deliveries.measured,
            "deliveries_per_second": self.per_second(deliveries.measured),
            "deliveries_with_warmup": ends.events,
            "deliveries_untimed": deliveries.untimed,
            "order_violations": ends.violations,
            "wrong_sessions": self.changes.map(|_| ends.wrong_sessions),
            "resets": ends.resets,
            "latency_us": latency(&deliveries.latency),
        })
    }
}

fn failures(failures: &Failures) -> Map<String, Value> {
    failures.0.iter().map(|(cause, count)| (cause.name(), json!(count))).collect()
}

fn latency(latency: &Latency) -> Value {
    if latency.count() == 0 {
        return Value::Null;
    }
    let micros = |duration: Duration| duration.as_nanos() as f64 / 1e3;
    json!({
        "count": latency.count(),
        "mean": micros(latency.mean()),
        "p50": micros(latency.quantile(0.5)),
        "p90": micros(latency.quantile(0.9)),
        "p99": micros(latency.quantile(0.99)),
        "p99_9": micros(latency.quantile(0.999)),
        "max": micros(latency.max()),
    })
}
