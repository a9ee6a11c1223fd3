//! Prints the measurements as tables, on the terminal and into a file.

use std::{fmt::Write as _, fs, path::Path, process::Command, thread};

use super::process::Taken;

#[derive(Default)]
pub(crate) struct Report {
    parts: Vec<Part>,
}

struct Part {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Starts a table.
    pub(crate) fn part(&mut self, title: &str, columns: &[&str]) {
        println!("\n{title}\n  {}", columns.join(" | "));
        let columns = columns.iter().map(ToString::to_string).collect();
        self.parts.push(Part { title: title.to_owned(), columns, rows: Vec::new(), notes: Vec::new() });
    }

    pub(crate) fn row(&mut self, row: &[String]) {
        println!("  {}", row.join(" | "));
        self.parts.last_mut().unwrap().rows.push(row.to_vec());
    }

    /// Adds a row of measured figures, or the reason why the run is rejected.
    pub(crate) fn measured(&mut self, what: &str, taken: &Taken, figures: &[String]) {
        match taken.rejection() {
            None => self.row(&[&[what.to_owned()], figures].concat()),
            Some(rejection) => self.row(&[what.to_owned(), rejection]),
        }
    }

    /// Adds a note below the table.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        println!("  {note}");
        self.parts.last_mut().unwrap().notes.push(note);
    }

    pub(crate) fn write(&self, path: &str) {
        let mut text = String::from(HEAD);
        let _ = writeln!(text, "\n## Machine and versions\n");
        let _ = writeln!(text, "- {} cores, {}", thread::available_parallelism().unwrap(), processor());
        for (program, argument) in
            [("uname", "-sr"), ("redis-server", "--version"), ("nats-server", "--version"), ("etcd", "--version")]
        {
            if let Ok(output) = Command::new(program).arg(argument).output() {
                let version = String::from_utf8_lossy(&output.stdout);
                let _ = writeln!(text, "- {}", version.lines().next().unwrap_or_default());
            }
        }
        for part in &self.parts {
            let _ = writeln!(text, "\n## {}\n", part.title);
            let _ = writeln!(text, "| {} |\n|{}", part.columns.join(" | "), "---|".repeat(part.columns.len()));
            for row in &part.rows {
                let missing = " |".repeat(part.columns.len() - row.len());
                let _ = writeln!(text, "| {} |{missing}", row.join(" | "));
            }
            for note in &part.notes {
                let _ = writeln!(text, "\n{note}");
            }
        }
        fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        println!("\nwritten to {path}");
    }
}

fn processor() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    model.trim_start_matches(['\t', ' ', ':']).to_owned()
}

const HEAD: &str = "# Benchmarks

`cargo bench --bench compare` writes this file. It starts every server on the loopback interface of one machine, one
after the other, and drives each in the same way. `cargo bench --bench fleet` measures many replicas over a Redis
Cluster: see [fleet.md](fleet.md).

- **What counts** is the processor time of the *server* process (user and system), divided by the work it did. The load
  generator runs on the same cores, so throughput in wall time says as much about it as about the server.
- **Look at the ratios.** The servers take turns several times, and the tables show the best run of each, because other
  load on a shared machine comes and goes.
- **Rejected runs** are marked. In a rejected run the load generator took more processor time than the server, and the
  server was not always busy.
- **Optimisation.** sessiond, stock tonic, bare h2 and bare TCP are compiled with the Cargo profile `bench`, which
  optimises as the container image's profile `dist` does: fat LTO, one codegen unit. `cargo run --release` compiles
  without LTO and is not measured here. Redis, NATS and etcd are the installed programs; those that are missing are left
  out.

What the peers guarantee, and what they do not:

- Redis' pub/sub and NATS' core subjects deliver at most once, to subscribers that are connected at that moment, and
  disconnect slow ones. They have no snapshot, no cursor and no resume. In Redis, setting a key and publishing the
  change are two steps.
- etcd has all of these, by revision. It is also durable and replicated, which the memory storage is not.
- The stock tonic server and the bare h2 server do nothing. They answer each call with the same bytes, and show what
  gRPC and HTTP/2 cost in Rust. The other tonic servers look each session up in a memory storage, on a current-thread
  runtime per core. They have no limits, no metrics and no access control.
";
