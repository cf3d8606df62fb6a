//! A worker with functions of its own, of types: a number, a value of JSON, and one that needs something that
//! takes long to make.
//!
//! ```text
//! cargo run --release -p widemap-worker --example functions -- --listen 127.0.0.1:7433
//! seq 5 | widemap map --worker 127.0.0.1:7433 --builtin collatz
//! echo '{"width": 3, "height": 4}' | widemap map --worker 127.0.0.1:7433 --builtin area
//! widemap map --worker 127.0.0.1:7433 --builtin spell ::: table tabel
//! ```

use std::collections::HashSet;
use std::io;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use widemap_worker::{FunctionError, Json, Registry};

fn main() -> ExitCode {
    widemap_worker::main(registry())
}

/// The functions.
pub fn registry() -> Registry {
    Registry::stock().map("collatz", collatz).map("area", area).map_with("spell", dictionary, spell)
}

/// The steps that a number takes to 1.
fn collatz(start: u64) -> Result<u32, FunctionError> {
    if start == 0 {
        return Err(FunctionError::new("0 never comes to 1").permanent());
    }
    let next = |&n: &u64| match n {
        1 => None,
        n if n % 2 == 0 => Some(n / 2),
        n => n.checked_mul(3)?.checked_add(1),
    };
    Ok(std::iter::successors(Some(start), next).skip(1).fold(0, |steps, _| steps + 1))
}

/// What `area` takes.
#[derive(Deserialize)]
struct Rectangle {
    width: f64,
    height: f64,
}

/// What it returns.
#[derive(Serialize)]
struct Measured {
    area: f64,
    is_square: bool,
}

fn area(Json(rectangle): Json<Rectangle>) -> Json<Measured> {
    let Rectangle { width, height } = rectangle;
    Json(Measured { area: width * height, is_square: (width - height).abs() < f64::EPSILON })
}

/// Made once for each slot, at its first word.
fn dictionary() -> io::Result<HashSet<String>> {
    Ok(["chair", "lamp", "table"].map(str::to_owned).into())
}

/// The word, with a question mark if it is not known.
fn spell(known: &mut HashSet<String>, word: String) -> String {
    if known.contains(&word) { word } else { word + "?" }
}
