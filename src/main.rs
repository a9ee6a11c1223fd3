//! The `sessiond` program.

mod cli;

use std::process::ExitCode;

/// Faster than the system's allocator for many small values, and returns memory to the system after a peak.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
