//! A function of a Python file (`--python FILE.py:FUNCTION`): the file is read here, and travels as a text.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt};
use std::path::Path;

use bytes::Bytes;
use widemap_common::limits::PYTHON_SOURCE_BYTES_MAX;
use widemap_common::spec::{Function, Python};

use super::options::PythonArgs;
use crate::error::MapError;

/// The function that was named. Items of `frames` are bytes.
///
/// # Errors
/// What is no file, no function's name, or too long.
pub(super) fn function(
    args: &PythonArgs,
    named: &std::ffi::OsStr,
    frames: bool,
) -> Result<Function, MapError> {
    let (path, function) = split(named.as_bytes()).ok_or_else(|| {
        let shown = named.to_string_lossy();
        let file = shown.trim_end_matches(':');
        failed(format!("`{shown}` names no function: say which one of the file, {file}:FUNCTION"))
    })?;
    let names = [Some(function), args.initializer.as_deref()];
    if let Some(name) = names.into_iter().flatten().find(|name| !is_name(name)) {
        return Err(failed(format!("`{name}` is no name of a Python function")));
    }
    let source = read(Path::new(std::ffi::OsStr::from_bytes(path)))?;
    Ok(Function::Python(Box::new(Python {
        path: path.to_vec(),
        source,
        function: function.to_owned(),
        initializer: args.initializer.clone(),
        recycle: args.recycle,
        is_text: args.text || frames,
        interpreter: args
            .python_bin
            .clone()
            .map_or_else(|| b"python3".to_vec(), OsStringExt::into_vec),
    })))
}

/// A path and a name.
fn split(named: &[u8]) -> Option<(&[u8], &str)> {
    let at = memchr::memrchr(b':', named)?;
    let function = std::str::from_utf8(&named[at + 1..]).ok()?;
    (at > 0 && !function.is_empty()).then_some((&named[..at], function))
}

fn is_name(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && !word.starts_with(|c: char| c.is_ascii_digit())
            && word.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    text.split('.').all(is_word)
}

fn read(path: &Path) -> Result<Bytes, MapError> {
    let unreadable = |error| failed(format!("{}: {error}", path.display()));
    let mut source = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let longest = PYTHON_SOURCE_BYTES_MAX as u64;
    file.take(longest + 1).read_to_end(&mut source).map_err(unreadable)?;
    if source.len() as u64 > longest {
        return Err(failed(format!(
            "{} is longer than a program is taken for ({longest} bytes): bring what is not the function \
             itself along with --file",
            path.display()
        )));
    }
    Ok(source.into())
}

fn failed(problem: String) -> MapError {
    MapError::Flag { flag: "--python", problem }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::PathBuf;

    use super::*;

    fn args() -> PythonArgs {
        PythonArgs { python: None, text: false, initializer: None, recycle: None, python_bin: None }
    }

    #[test]
    fn a_file_and_a_function_are_told_apart_at_the_last_colon() {
        assert_eq!(split(b"a.py:f"), Some((b"a.py".as_slice(), "f")));
        assert_eq!(split(b"a:b/c.py:K.f"), Some((b"a:b/c.py".as_slice(), "K.f")));
        for bad in [b"a.py".as_slice(), b"a.py:", b":f", b""] {
            assert_eq!(split(bad), None);
        }
    }

    #[test]
    fn what_cannot_be_a_function_is_refused_with_what_to_type() {
        let directory = tempfile::tempdir().unwrap();
        let file: PathBuf = directory.path().join("f.py");
        std::fs::write(&file, "def f(x): return x\n").unwrap();
        let told = |args: &PythonArgs, named: String| {
            function(args, OsStr::new(&named), false).unwrap_err().to_string()
        };
        let shown = file.display();
        let only_file = told(&args(), shown.to_string());
        assert!(only_file.contains("say which one of the file"), "{only_file}");
        assert!(told(&args(), format!("{shown}:f()")).contains("`f()` is no name"));
        let bad = PythonArgs { initializer: Some("1st".into()), ..args() };
        assert!(told(&bad, format!("{shown}:f")).contains("`1st` is no name"));
        assert!(told(&args(), format!("{shown}x:f")).contains("No such file"));
        let long = directory.path().join("long.py");
        std::fs::write(&long, vec![b'#'; PYTHON_SOURCE_BYTES_MAX + 1]).unwrap();
        assert!(told(&args(), format!("{}:f", long.display())).contains("--file"));
        let Function::Python(python) =
            function(&args(), OsStr::new(&format!("{shown}:f")), false).unwrap()
        else {
            panic!("a Python function");
        };
        assert_eq!(
            (python.function.as_str(), python.interpreter.as_slice()),
            ("f", b"python3".as_slice())
        );
    }
}
