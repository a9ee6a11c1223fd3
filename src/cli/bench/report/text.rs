//! The report as text.

use std::{fmt::Write as _, time::Duration};

use super::{
    super::{
        latency::Latency,
        mix::Kind,
        run_stats::{Failures, KindStats},
    },
    Loader, Report,
};

impl Report {
    pub(in super::super) fn text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out);
        out
    }

    // Writing to a `String` cannot fail, here and below.
    fn write_text(&self, out: &mut String) {
        let plan = &self.plan;
        let _ = writeln!(
            out,
            "{}: {} connections with {} calls in flight each, {}, {} sessions; measured for {}{}\n",
            plan.target.as_str(),
            plan.connections,
            plan.in_flight,
            plan.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("open loop of {rate} calls/s")),
            grouped(plan.sessions.into()),
            duration(self.measured),
            if self.interrupted { " (interrupted)" } else { "" },
        );
        self.write_calls(out);
        self.write_failures(out);
        if plan.observers > 0 {
            self.write_events(out);
        }
        match &self.loader {
            Some(loader) => self.write_loader(loader, out),
            None => drop(writeln!(out, "\nThe run ended too soon to measure the loader itself.")),
        }
    }

    fn write_calls(&self, out: &mut String) {
        let batches = self.plan.batch > 1;
        let _ = write!(out, "{:<8}{:>13}{:>10}{:>11}", "call", "answered", "failed", "calls/s");
        if batches {
            let _ = write!(out, "{:>12}", "sessions/s");
        }
        let _ = writeln!(out, "{LATENCIES}");
        let mut all = KindStats::default();
        for kind in Kind::ALL.into_iter().filter(|&kind| self.plan.mix.weight(kind) > 0) {
            let stats = &self.calls.kinds[kind as usize];
            self.write_call(kind.name(), stats, out);
            all.answered += stats.answered;
            all.latency.merge(&stats.latency);
            stats.failures.0.iter().for_each(|&(cause, count)| all.failures.add(cause, count));
        }
        self.write_call("all", &all, out);
    }

    fn write_call(&self, name: &str, stats: &KindStats, out: &mut String) {
        let failed = grouped(stats.failures.total());
        let rate = self.per_second(stats.answered);
        let _ = write!(out, "{name:<8}{:>13}{failed:>10}{:>11}", grouped(stats.answered), grouped(rate as u64));
        if self.plan.batch > 1 {
            let _ = write!(out, "{:>12}", grouped((rate * f64::from(self.plan.batch)) as u64));
        }
        let _ = writeln!(out, "{}", latencies(&stats.latency));
    }

    fn write_failures(&self, out: &mut String) {
        let mut all = Failures::default();
        for kind in &self.calls.kinds {
            kind.failures.0.iter().for_each(|&(cause, count)| all.add(cause, count));
        }
        if !all.0.is_empty() {
            let causes = all.0.iter().map(|(cause, count)| format!("{} {}", grouped(*count), cause.name()));
            let _ = writeln!(out, "\nfailed: {}", causes.collect::<Vec<_>>().join(", "));
        }
        if let Some(first) = &self.calls.first_failure {
            let _ = writeln!(out, "one of the failures: {}", line(&first.to_string()));
        }
        if self.unsent > 0 {
            let _ = writeln!(
                out,
                "\n{} calls were due but not sent, because the maximum number was in flight: the rate was not reached.",
                grouped(self.unsent)
            );
        }
    }

    fn write_events(&self, out: &mut String) {
        let (deliveries, ends) = (&self.deliveries, &self.deliveries.ends);
        let _ = writeln!(out, "\n{:<10}{:>13}{:>14}{LATENCIES}", "observers", "deliveries", "deliveries/s");
        let rate = grouped(self.per_second(deliveries.measured) as u64);
        let latency = latencies(&deliveries.latency);
        let _ = writeln!(out, "{:<10}{:>13}{rate:>14}{latency}", self.plan.observers, grouped(deliveries.measured));
        let _ = match self.changes {
            Some(_) => {
                write!(out, "{} of {} observers received all changes in order", ends.complete, self.plan.observers)
            }
            None => write!(out, "unknown how many changes observers should have received, because calls failed"),
        };
        let (violations, resets, lost) = (ends.violations, ends.resets, ends.lost);
        let _ = writeln!(out, "; {violations} order violations, {resets} resets, {lost} streams lost");
        if deliveries.untimed > 0 {
            let _ = writeln!(
                out,
                "{} deliveries are not in these latencies: they came after a reset, or after their session had \
                 changed again.",
                grouped(deliveries.untimed)
            );
        }
    }

    fn write_loader(&self, loader: &Loader, out: &mut String) {
        let threads = if loader.threads == 1 { "thread" } else { "threads" };
        let (count, ran) = (loader.threads, loader.ran * 100.0);
        let _ = write!(out, "\nloader: {count} {threads}, busy for {ran:.0}% of the time");
        if loader.waited > 0.01 {
            let _ = write!(out, " and waiting for a core for {:.0}%", loader.waited * 100.0);
        }
        if self.calls.answered() > 0 {
            let _ = write!(out, "; {:.1} us of CPU time per call", self.cpu_micros_per_call(loader));
        }
        out.push('\n');
        if loader.is_bottleneck() {
            let _ = writeln!(
                out,
                "THE LOADER WAS THE BOTTLENECK: one of its threads had no time to spare ({:.0}%). This run does not \
                 show what the server can do: use more --threads or a separate machine.",
                loader.busiest * 100.0
            );
        } else if loader.waited > STARVED {
            let _ = writeln!(out, "The loader often waited for a core, and the latencies include that wait.");
        }
    }

    /// Returns the CPU time of the whole loader, including its observers, per call.
    pub(super) fn cpu_micros_per_call(&self, loader: &Loader) -> f64 {
        loader.cpu.as_secs_f64() * 1e6 / self.calls.answered().max(1) as f64
    }
}

/// A loader that waited for a core for more than this share of the time saw many answers late.
const STARVED: f64 = 0.1;

const LATENCIES: &str = "      p50      p90      p99    p99.9      max";

fn latencies(latency: &Latency) -> String {
    let mut columns = String::new();
    for share in [0.5, 0.9, 0.99, 0.999, 1.0] {
        let text = if latency.count() == 0 { "-".to_owned() } else { duration(latency.quantile(share)) };
        let _ = write!(columns, "{text:>9}");
    }
    columns
}

/// Formats a duration with three or four digits.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        0.0..0.001 => format!("{:.0}us", seconds * 1e6),
        0.001..0.01 => format!("{:.2}ms", seconds * 1e3),
        0.01..0.1 => format!("{:.1}ms", seconds * 1e3),
        0.1..1.0 => format!("{:.0}ms", seconds * 1e3),
        1.0..100.0 => format!("{seconds:.1}s"),
        _ => format!("{seconds:.0}s"),
    }
}

/// Formats a number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Formats a number with about three digits.
pub(in super::super) fn amount(number: f64) -> String {
    match number {
        ..1e4 => format!("{number:.0}"),
        1e4..1e6 => format!("{:.1}k", number / 1e3),
        _ => format!("{:.2}M", number / 1e6),
    }
}

/// Replaces control characters in text from a server, which must neither break the line nor send control sequences to
/// the terminal.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_numbers_are_short() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(amount(999.4), "999");
        assert_eq!(amount(12_345.0), "12.3k");
        assert_eq!(amount(12_345_678.0), "12.35M");
        for (micros, text) in
            [(412, "412us"), (1_234, "1.23ms"), (56_780, "56.8ms"), (123_400, "123ms"), (2_000_000, "2.0s")]
        {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
    }
}
