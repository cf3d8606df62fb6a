//! The binary `widemap-worker`: the stock functions, commands and pipes.

use std::process::ExitCode;

use widemap_worker::Registry;

fn main() -> ExitCode {
    widemap_worker::main(Registry::stock())
}
