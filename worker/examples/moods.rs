//! A worker with a function that goes wrong in every way, to see what becomes of it: what it does is the first word
//! of its item.
//!
//! ```text
//! cargo run --release -p widemap-worker --example moods -- --listen 127.0.0.1:7433
//! widemap map --worker 127.0.0.1:7433 --builtin moods --timeout 1 ::: well fail die hang nothing
//! ```

use std::process::ExitCode;
use std::time::Duration;

use widemap_worker::{Context, FunctionError, Output, Registry};

/// Longer than anybody waits.
const LONG: Duration = Duration::from_secs(1_000);

fn main() -> ExitCode {
    widemap_worker::main(Registry::stock().function("moods", moods))
}

fn moods(item: &[u8], output: &mut Output, context: &Context) -> Result<(), FunctionError> {
    let word = item.split(|&byte| byte == b' ').next().unwrap_or_default();
    match word {
        b"fail" => {
            output.extend_from_slice(b"partial");
            return Err(FunctionError::new("it fails"));
        }
        b"die" => panic!("it dies"),
        b"hang" => {
            let _ = context.wait(LONG);
        }
        b"babble" => output.extend_from_slice(&[b'y'; 4 << 20]),
        b"nothing" => {}
        b"vast" => {
            for _ in 0..255 {
                output.extend_from_slice(&[b'a'; 4 << 20]);
            }
            output.extend_from_slice(&[b'a'; (4 << 20) - 1]);
        }
        b"poison" => std::process::abort(),
        _ => output.extend_from_slice(item),
    }
    Ok(())
}
