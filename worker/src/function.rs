//! Functions that a worker runs: how a user writes one and registers it under a name.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::slots::SlotControl;
use crate::stock;
use crate::typed::{Input, Returned, stateful, typed};

/// What a worker can map over items: any `Fn(&[u8], &mut Output, &Context)` that may be shared
/// between threads.
pub trait Function: Send + Sync {
    /// Computes the result of one item and appends it to `output`. What ends one result and begins
    /// the next (a newline, say) is added by the worker.
    ///
    /// # Errors
    /// What is returned fails the item, and is shown to the user of the job.
    fn call(
        &self,
        item: &[u8],
        output: &mut Output,
        context: &Context,
    ) -> Result<(), FunctionError>;
}

impl<F> Function for F
where
    F: Fn(&[u8], &mut Output, &Context) -> Result<(), FunctionError> + Send + Sync,
{
    fn call(
        &self,
        item: &[u8],
        output: &mut Output,
        context: &Context,
    ) -> Result<(), FunctionError> {
        self(item, output, context)
    }
}

/// The functions of a worker, by name.
///
/// They run in the worker's own process, and so with all that its user may do, also where `--run-as`
/// has commands run as another one: they are the worker's own code, unlike what a job brings along.
///
/// ```
/// use widemap_worker::{Context, Output, Registry};
///
/// let registry = Registry::stock().function("shout", |item: &[u8], output: &mut Output, _: &Context| {
///     output.extend_from_slice(&item.to_ascii_uppercase());
///     Ok(())
/// });
/// assert!(registry.names().any(|name| name == "shout"));
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    functions: BTreeMap<String, Arc<dyn Function>>,
}

impl Registry {
    /// A registry without functions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The functions of the stock worker: `identity`, `square` (integers of any length) and `sleep`
    /// (milliseconds; prints the item).
    #[must_use]
    pub fn stock() -> Self {
        Self::new()
            .function("identity", stock::identity)
            .function("square", stock::square)
            .function("sleep", stock::sleep)
    }

    /// Registers a function; a former one of that name is replaced.
    #[must_use]
    pub fn function<F>(mut self, name: &str, function: F) -> Self
    where
        F: Fn(&[u8], &mut Output, &Context) -> Result<(), FunctionError> + Send + Sync + 'static,
    {
        self.functions.insert(name.to_owned(), Arc::new(function));
        self
    }

    /// Registers a function of types: what an item is read as, and what is written of its result.
    ///
    /// ```
    /// use widemap_worker::{Json, Registry};
    ///
    /// let registry = Registry::new()
    ///     .map("square", |n: i64| n * n)
    ///     .map("shout", |text: String| text.to_uppercase())
    ///     .map("largest", |Json(numbers): Json<Vec<f64>>| numbers.into_iter().reduce(f64::max).ok_or(Empty));
    ///
    /// #[derive(Debug, thiserror::Error)]
    /// #[error("the list is empty")]
    /// struct Empty;
    /// ```
    #[must_use]
    pub fn map<I, R, F>(self, name: &str, function: F) -> Self
    where
        I: Input + 'static,
        R: Returned + 'static,
        F: Fn(I) -> R + Send + Sync + 'static,
    {
        self.insert(name, typed(function))
    }

    /// Registers a function of types with a state that each slot has of its own. `make` is called for the first
    /// item of a slot, and again after an item that panicked; a state lives as long as the worker. An error of
    /// `make` fails the item.
    ///
    /// ```
    /// use std::io;
    /// use widemap_worker::{FunctionError, Registry};
    ///
    /// struct Model(Vec<f64>);
    ///
    /// fn load() -> io::Result<Model> {
    ///     Ok(Model(vec![0.5, 2.0]))
    /// }
    ///
    /// let registry = Registry::new().map_with("score", load, |model: &mut Model, x: f64| {
    ///     model.0.iter().rev().fold(0.0, |score, weight| score * x + weight)
    /// });
    /// ```
    #[must_use]
    pub fn map_with<S, E, I, R, M, F>(self, name: &str, make: M, function: F) -> Self
    where
        S: Send + 'static,
        E: Into<FunctionError> + 'static,
        I: Input + 'static,
        R: Returned + 'static,
        M: Fn() -> Result<S, E> + Send + Sync + 'static,
        F: Fn(&mut S, I) -> R + Send + Sync + 'static,
    {
        self.insert(name, stateful(make, function))
    }

    fn insert(mut self, name: &str, function: impl Function + 'static) -> Self {
        self.functions.insert(name.to_owned(), Arc::new(function));
        self
    }

    /// The names of the functions, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.functions.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<dyn Function>> {
        self.functions.get(name).cloned()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.functions.keys()).finish()
    }
}

/// Where a function writes the result of an item. Only appending is possible.
#[derive(Debug, Default)]
pub struct Output {
    pub(crate) bytes: Vec<u8>,
}

impl Output {
    /// Appends bytes.
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends one byte.
    #[inline]
    pub fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// What a function may know of the item that it is called with.
#[derive(Debug)]
pub struct Context {
    pub(crate) sequence: u64,
    pub(crate) deadline: Option<Instant>,
    pub(crate) control: Arc<SlotControl>,
}

impl Context {
    /// The item's number in the job's input, from 1.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The number of the slot that the function runs in, from 1.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.control.index + 1
    }

    /// When the item's time is over, if the job limits it. What is returned later is not used.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether nobody waits for the result any more. A function that runs for long should look now
    /// and then, and return.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.control.is_cancelled()
    }

    /// Waits for `duration`, but not past a cancel or the deadline: whether the whole of it passed.
    #[must_use]
    pub fn wait(&self, duration: Duration) -> bool {
        let now = Instant::now();
        // What is too long to be added is longer than anybody waits.
        let wanted = now.checked_add(duration);
        let until = match (wanted, self.deadline) {
            (Some(wanted), Some(deadline)) => Some(wanted.min(deadline)),
            (wanted, deadline) => wanted.or(deadline),
        };
        loop {
            if self.is_cancelled() {
                return false;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return wanted.is_some() && until == wanted;
            }
            self.control.wait(until);
        }
    }
}

/// Why an item failed, for the user of the job. Any error becomes one with `?`.
#[derive(Debug)]
pub struct FunctionError {
    pub(crate) message: String,
    pub(crate) retryable: bool,
}

impl FunctionError {
    /// A failure with this message. The item may run again (`--retries`).
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: true }
    }

    /// Another run of the item could not end otherwise: there will be none.
    #[must_use]
    pub fn permanent(mut self) -> Self {
        self.retryable = false;
        self
    }
}

impl<E: Error> From<E> for FunctionError {
    /// The error and its sources, in one line.
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new(message)
    }
}
