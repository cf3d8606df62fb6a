//! The digest of a function: what a failures file and a receipt are compared by, so that a repair
//! never puts the results of one function among those of another.

use widemap_common::artifact::FileKind;
use widemap_common::framing::Framing;
use widemap_common::spec::{Function, JobSpec};

/// The blake3 hash of a job's function, of its files and of how its items are framed, in hexadecimal.
#[must_use]
pub fn function_digest(spec: &JobSpec) -> String {
    let JobSpec { function, framing, files, .. } = spec;
    let mut hash = blake3::Hasher::new();
    // Each field is preceded by its length, so that no two functions look alike.
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(b"widemap function 1");
    field(function.runtime().name().as_bytes());
    match function {
        Function::Exec { argv } => argv.iter().for_each(|argument| field(argument.text())),
        Function::Filter { argv } | Function::Pipe { argv } => {
            argv.iter().for_each(|argument| field(argument));
        }
        Function::Python(python) => {
            // Where the file lies is nothing of what it does.
            field(&python.source);
            field(python.function.as_bytes());
            field(python.initializer.as_deref().unwrap_or_default().as_bytes());
            field(&[u8::from(python.is_text)]);
        }
        Function::Wasm(wasm) => field(&wasm.module.0),
        Function::Builtin { name } => field(name.as_bytes()),
    }
    match framing {
        Framing::Separator(separator) => field(&[*separator]),
        Framing::LengthPrefixed => field(b"length"),
        Framing::Columns => field(b"columns"),
    }
    for file in files.iter() {
        field(b"file");
        field(&file.path);
        match &file.kind {
            FileKind::Directory => field(b"directory"),
            FileKind::Regular { digest, executable, .. } => {
                field(&digest.0);
                field(&[u8::from(*executable)]);
            }
        }
    }
    hash.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use widemap_common::artifact::{Digest, JobFile, JobFiles};
    use widemap_common::framing::LINES;
    use widemap_common::spec::Directory;

    use super::*;

    #[test]
    fn functions_that_differ_have_digests_that_differ() {
        let pipe = |argv: &[&str]| JobSpec {
            function: Function::Pipe {
                argv: argv.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
            },
            framing: LINES,
            directory: Directory::Private,
            environment: Vec::new(),
            files: JobFiles::default(),
            timeout: None,
            max_output: 1,
            limits: widemap_common::spec::Limits::default(),
            slots_per_item: std::num::NonZeroU32::MIN,
            per_item: false,
            ok_exit: Vec::new(),
        };
        let with_file = |content: u8| {
            let digest = Digest([content; 32]);
            let kind = FileKind::Regular { digest, bytes: 1, executable: false };
            let files = JobFiles::new(vec![JobFile { path: b"tool".to_vec(), kind }]).unwrap();
            JobSpec { files, ..pipe(&["tr", "a", "b"]) }
        };
        let framing = Framing::Separator(0);
        let others = [
            pipe(&["tr", "ab"]),
            JobSpec { framing, ..pipe(&["tr", "a", "b"]) },
            with_file(1),
            with_file(2),
        ];
        let mut digests: Vec<_> = others.iter().map(function_digest).collect();
        digests.push(function_digest(&pipe(&["tr", "a", "b"])));
        assert_eq!(digests.last(), Some(&function_digest(&pipe(&["tr", "a", "b"]))));
        assert!(digests.iter().all(|digest| digest.len() == 64));
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), 5);
    }
}
