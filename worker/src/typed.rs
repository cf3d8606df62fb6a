//! Functions of types: what an item is read as, and how a result is written.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use widemap_common::limits::SLOTS_MAX;

use crate::function::{Context, Function, FunctionError, Output};

/// What an item can be read as: the argument of a function that is registered with [`map`](crate::Registry::map).
///
/// - `Vec<u8>`: the bytes of the item, without what ends it.
/// - `String`: its text, which is UTF-8.
/// - Integers and floating-point numbers, as Rust writes them; blanks around them are ignored.
/// - `bool`: `true` or `false`. `char`: one character.
/// - [`Json<T>`]: one value of JSON.
pub trait Input: Sized {
    /// Reads an item.
    ///
    /// # Errors
    /// If the item is no such thing. It will not be another time either: it is not run again.
    fn read(item: &[u8]) -> Result<Self, FunctionError>;
}

/// What a result can be: what a function that is registered with [`map`](crate::Registry::map) returns.
///
/// What an [`Input`] can be read from is what it is written as; beside that there are `&'static str`, and
/// `()`, which prints nothing. A `Result` of any of these fails the item with its error.
pub trait Returned {
    /// Appends it to the output.
    ///
    /// # Errors
    /// Why the item failed.
    fn write(self, output: &mut Output) -> Result<(), FunctionError>;
}

/// A value that is read from JSON, or written as such, in one line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Json<T>(pub T);

fn unreadable(item: &[u8], why: impl std::fmt::Display) -> FunctionError {
    /// What is shown of an item.
    const SHOWN_BYTES: usize = 100;
    let cut = &item[..item.len().min(SHOWN_BYTES)];
    let (shown, dots) =
        (String::from_utf8_lossy(cut), if cut.len() < item.len() { "…" } else { "" });
    FunctionError::new(format!("`{shown}{dots}` cannot be read: {why}")).permanent()
}

impl Input for Vec<u8> {
    fn read(item: &[u8]) -> Result<Self, FunctionError> {
        Ok(item.to_vec())
    }
}

impl Input for String {
    fn read(item: &[u8]) -> Result<Self, FunctionError> {
        Ok(std::str::from_utf8(item).map_err(|error| unreadable(item, error))?.to_owned())
    }
}

impl<T: DeserializeOwned> Input for Json<T> {
    fn read(item: &[u8]) -> Result<Self, FunctionError> {
        serde_json::from_slice(item).map(Self).map_err(|error| unreadable(item, error))
    }
}

impl Returned for () {
    fn write(self, _: &mut Output) -> Result<(), FunctionError> {
        Ok(())
    }
}

impl Returned for Vec<u8> {
    fn write(self, output: &mut Output) -> Result<(), FunctionError> {
        output.extend_from_slice(&self);
        Ok(())
    }
}

impl Returned for String {
    fn write(self, output: &mut Output) -> Result<(), FunctionError> {
        output.extend_from_slice(self.as_bytes());
        Ok(())
    }
}

impl Returned for &'static str {
    fn write(self, output: &mut Output) -> Result<(), FunctionError> {
        output.extend_from_slice(self.as_bytes());
        Ok(())
    }
}

impl<T: Serialize> Returned for Json<T> {
    fn write(self, output: &mut Output) -> Result<(), FunctionError> {
        Ok(serde_json::to_writer(output, &self.0)?)
    }
}

impl<T: Returned, E: Into<FunctionError>> Returned for Result<T, E> {
    fn write(self, output: &mut Output) -> Result<(), FunctionError> {
        self.map_err(Into::into)?.write(output)
    }
}

/// Types whose text is what their standard conversions read and write.
macro_rules! plain {
    ($($plain:ty),*) => {$(
        impl Input for $plain {
            fn read(item: &[u8]) -> Result<Self, FunctionError> {
                let text = std::str::from_utf8(item).map_err(|error| unreadable(item, error))?;
                text.trim().parse().map_err(|error| unreadable(item, error))
            }
        }

        impl Returned for $plain {
            fn write(self, output: &mut Output) -> Result<(), FunctionError> {
                write!(output, "{self}")?;
                Ok(())
            }
        }
    )*};
}

plain!(i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize, f32, f64, bool);

impl Input for char {
    fn read(item: &[u8]) -> Result<Self, FunctionError> {
        let text = std::str::from_utf8(item).map_err(|error| unreadable(item, error))?;
        text.parse().map_err(|error| unreadable(item, error))
    }
}

impl Returned for char {
    fn write(self, output: &mut Output) -> Result<(), FunctionError> {
        Ok(output.write_char(self)?)
    }
}

/// A function of types.
pub(crate) fn typed<I: Input, R: Returned>(
    function: impl Fn(I) -> R + Send + Sync,
) -> impl Function {
    move |item: &[u8], output: &mut Output, _: &Context| function(I::read(item)?).write(output)
}

/// A function of types and of a state that each slot has of its own: made for the slot's first item, and anew
/// after an item that panicked.
pub(crate) fn stateful<S: Send, E: Into<FunctionError>, I: Input, R: Returned>(
    make: impl Fn() -> Result<S, E> + Send + Sync,
    function: impl Fn(&mut S, I) -> R + Send + Sync,
) -> impl Function {
    // The lock of a slot is its own: nobody ever waits for it.
    let states: Vec<_> = (0..SLOTS_MAX).map(|_| Mutex::new(None::<Box<S>>)).collect();
    move |item: &[u8], output: &mut Output, context: &Context| {
        let place = &states[context.slot() as usize - 1];
        let lock = || place.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().take();
        let mut state = match kept {
            Some(state) => state,
            None => Box::new(make().map_err(Into::into)?),
        };
        let item = I::read(item);
        let result = item.map(|item| function(&mut state, item));
        // What a panic has left of it is dropped on the way out.
        *lock() = Some(state);
        result?.write(output)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::slots::SlotControl;

    fn call(function: &impl Function, slot: u32, item: &str) -> Result<String, String> {
        let control = Arc::new(SlotControl::new(slot).expect("a socket pair can be made"));
        let context = Context { sequence: 1, deadline: None, control };
        let mut output = Output::default();
        match function.call(item.as_bytes(), &mut output, &context) {
            Ok(()) => Ok(String::from_utf8(output.bytes).unwrap()),
            Err(error) => Err(error.message),
        }
    }

    #[test]
    fn items_are_read_and_results_written_as_what_they_are() {
        let ok = |text: &str| Ok::<_, String>(text.to_owned());
        assert_eq!(call(&typed(|n: i64| n * n), 0, " -12 "), ok("144"));
        assert_eq!(call(&typed(|x: f64| x / 4.0), 0, "1e0"), ok("0.25"));
        assert_eq!(call(&typed(|yes: bool| !yes), 0, "true"), ok("false"));
        assert_eq!(call(&typed(|c: char| c.is_uppercase()), 0, "Ä"), ok("true"));
        assert_eq!(call(&typed(|text: String| text.to_uppercase()), 0, "grün"), ok("GRÜN"));
        assert_eq!(call(&typed(|bytes: Vec<u8>| bytes.len()), 0, "abc"), ok("3"));
        assert_eq!(call(&typed(|_: String| ()), 0, "abc"), ok(""));
        let sum = typed(|Json(numbers): Json<Vec<i32>>| Json(vec![numbers.iter().sum::<i32>()]));
        assert_eq!(call(&sum, 0, "[1, 2, 3]"), ok("[6]"));
    }

    #[test]
    fn what_cannot_be_read_or_fails_says_why() {
        let half = |n: u32| match n % 2 {
            0 => Ok(n / 2),
            _ => Err(FunctionError::new(format!("{n} is odd"))),
        };
        assert_eq!(call(&typed(half), 0, "8"), Ok("4".to_owned()));
        assert_eq!(call(&typed(half), 0, "7"), Err("7 is odd".to_owned()));
        let told = call(&typed(half), 0, "-7").unwrap_err();
        assert_eq!(told, "`-7` cannot be read: invalid digit found in string");
        let parse = |text: String| text.parse::<u8>();
        assert!(call(&typed(parse), 0, "999").unwrap_err().contains("too large"));
        let told = call(&typed(|Json(n): Json<u8>| n), 0, "{").unwrap_err();
        assert!(told.starts_with("`{` cannot be read: invalid type"), "{told}");
        let long = call(&typed(|n: u8| n), 0, &"9".repeat(1000)).unwrap_err();
        assert!(long.len() < 200 && long.contains('…'), "{long}");
    }

    #[test]
    fn each_slot_has_a_state_and_a_panic_takes_it_along() {
        let made = AtomicU32::new(0);
        let make = || {
            made.fetch_add(1, Ordering::Relaxed);
            Ok::<_, FunctionError>(0_u32)
        };
        let count = stateful(make, |count: &mut u32, add: u32| {
            assert!(add < 100, "too much");
            *count += add;
            *count
        });
        let called = |slot, item| call(&count, slot, item).unwrap();
        assert_eq!([called(0, "1"), called(0, "2"), called(3, "5")], ["1", "3", "5"]);
        assert_eq!(made.load(Ordering::Relaxed), 2);
        assert!(call(&count, 0, "x").is_err());
        assert_eq!(called(0, "1"), "4");
        assert!(catch_unwind(AssertUnwindSafe(|| called(0, "100"))).is_err());
        assert_eq!([called(0, "1"), called(3, "1")], ["1", "6"]);
        assert_eq!(made.load(Ordering::Relaxed), 3);
        let never = stateful(|| Err::<(), _>(FunctionError::new("no model")), |(), n: u8| n);
        assert_eq!(call(&never, 0, "1"), Err("no model".to_owned()));
    }
}
