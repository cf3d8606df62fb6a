//! A worker with a function of its own: each item is the path of a text file, each result is one
//! line of JSON that sums the file up.
//!
//! ```text
//! cargo run --release -p widemap-worker --example text_summary -- --listen 127.0.0.1:7433
//! find /usr/share/doc -name '*.txt' | widemap map --worker 127.0.0.1:7433 --builtin text-summary
//! ```

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use widemap_worker::{Context, FunctionError, Output, Registry};

/// The most frequent words that a summary names.
const TOP_WORDS: usize = 5;

/// Words shorter than this say little about a text.
const WORD_BYTES_MIN: usize = 5;

/// Lines between two looks at whether anybody still waits for the result.
const LINES_PER_LOOK: u64 = 4_096;

fn main() -> ExitCode {
    widemap_worker::main(Registry::stock().function("text-summary", text_summary))
}

/// Sums up the text file whose path is `item`.
fn text_summary(item: &[u8], output: &mut Output, context: &Context) -> Result<(), FunctionError> {
    let path = Path::new(OsStr::from_bytes(item));
    let file = File::open(path)
        .map_err(|error| FunctionError::new(format!("cannot open {}: {error}", path.display())))?;
    let summary = Summary::of(BufReader::new(file), context)?;
    serde_json::to_writer(output, &summary.to_json(path))?;
    Ok(())
}

#[derive(Debug, Default)]
struct Summary {
    bytes: u64,
    lines: u64,
    words: u64,
    longest_line: usize,
    counts: HashMap<String, u64>,
}

impl Summary {
    fn of(mut text: BufReader<File>, context: &Context) -> Result<Self, FunctionError> {
        let mut summary = Self::default();
        let mut line = Vec::new();
        while text.read_until(b'\n', &mut line)? > 0 {
            if summary.lines.is_multiple_of(LINES_PER_LOOK) && context.is_cancelled() {
                return Err(FunctionError::new("cancelled"));
            }
            summary.add(&line);
            line.clear();
        }
        Ok(summary)
    }

    fn add(&mut self, line: &[u8]) {
        self.bytes += line.len() as u64;
        self.lines += 1;
        self.longest_line = self.longest_line.max(line.trim_ascii_end().len());
        for word in String::from_utf8_lossy(line).split(|c: char| !c.is_alphanumeric()) {
            self.words += u64::from(!word.is_empty());
            if word.len() >= WORD_BYTES_MIN {
                *self.counts.entry(word.to_lowercase()).or_default() += 1;
            }
        }
    }

    fn to_json(&self, path: &Path) -> serde_json::Value {
        let mut top: Vec<_> = self.counts.iter().collect();
        // Equal counts in the order of the alphabet: the same file always gives the same line.
        top.sort_by_key(|&(word, count)| (std::cmp::Reverse(*count), word));
        let top: Vec<_> = top.into_iter().take(TOP_WORDS).map(|(word, _)| word).collect();
        serde_json::json!({
            "path": path.to_string_lossy(),
            "bytes": self.bytes,
            "lines": self.lines,
            "words": self.words,
            "longest_line": self.longest_line,
            "top_words": top,
        })
    }
}
