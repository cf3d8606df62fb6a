//! The binary `widemap`.

use std::process::ExitCode;

fn main() -> ExitCode {
    widemap::main()
}
