//! The `sessiond` program.

mod cli;

use std::process::ExitCode;

/// Returns memory to the system after a peak, and is faster than the system's for many small values.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
