//! A module of WebAssembly (`--wasm FILE.wasm`): looked at and hashed here; it travels as files of a job do.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use widemap_common::limits::WASM_MODULE_BYTES_MAX;
use widemap_common::spec::Wasm;

use crate::data::{Artifact, digest_of};
use crate::error::MapError;

/// What every module begins with: `\0asm`, and the version of the format in two bytes and its layer in two.
const MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// The module that was named.
///
/// # Errors
/// What cannot be read, is no module, or too long.
pub(super) fn function(path: &Path) -> Result<(Wasm, Artifact), MapError> {
    let failed = |why: String| {
        let problem = format!("{}: {why}", path.display());
        MapError::Flag { flag: "--wasm", problem }
    };
    let unreadable = |error: std::io::Error| failed(error.to_string());
    let mut head = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    file.take(MODULE.len() as u64).read_to_end(&mut head).map_err(unreadable)?;
    if let Some(why) = unfit(&head) {
        return Err(failed(why.to_owned()));
    }
    if bytes > WASM_MODULE_BYTES_MAX {
        let why = format!("longer than a module is taken for ({WASM_MODULE_BYTES_MAX} bytes)");
        return Err(failed(why));
    }
    let (module, bytes) = digest_of(path).map_err(unreadable)?;
    // Read again later, whatever the present directory is then.
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    let wasm = Wasm { path: path.as_os_str().as_bytes().to_vec(), module, bytes };
    Ok((wasm, Artifact { digest: module, bytes, path: absolute }))
}

/// Why what begins so cannot be run.
fn unfit(head: &[u8]) -> Option<&'static str> {
    if head == MODULE {
        return None;
    }
    Some(match head.get(..4) {
        // A component has layer 1.
        Some(b"\0asm") if head.get(6) == Some(&1) => {
            "a component of WebAssembly, where a module is wanted: a command of WASI preview 1 (compile for \
             wasm32-wasip1)"
        }
        Some(b"\0asm") => "a module of WebAssembly of another version",
        _ if head.starts_with(b"(") => {
            "the text of a module, where its binary form is wanted (wat2wasm makes it)"
        }
        _ => "no module of WebAssembly",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_refused_by_what_it_is() {
        assert_eq!(unfit(MODULE), None);
        let told = |head: &[u8]| unfit(head).unwrap_or_default();
        assert!(told(b"\0asm\x0d\0\x01\0").contains("wasm32-wasip1"));
        assert!(told(b"\0asm\x02\0\0\0").contains("another version"));
        assert!(told(b"(module)").contains("wat2wasm"));
        for other in [b"".as_slice(), b"\x7fELF", b"#!/bin/sh"] {
            assert_eq!(told(other), "no module of WebAssembly");
        }
    }

    #[test]
    fn a_module_is_known_by_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("empty.wasm");
        std::fs::write(&path, MODULE).unwrap();
        let (wasm, artifact) = function(&path).unwrap();
        assert_eq!((wasm.bytes, wasm.module), (8, artifact.digest));
        let missing = function(&directory.path().join("none.wasm")).unwrap_err().to_string();
        assert!(missing.contains("No such file"), "{missing}");
    }
}
