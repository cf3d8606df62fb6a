//! The digest of a function: what a failures file and a receipt are compared by, so that a repair
//! never puts the results of one function among those of another.

use widemap_common::framing::Framing;
use widemap_common::spec::Function;

/// The blake3 hash of the function and of how its items are framed, in hexadecimal.
#[must_use]
pub fn function_digest(function: &Function, framing: Framing) -> String {
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
        Function::Pipe { argv } => argv.iter().for_each(|argument| field(argument)),
        Function::Builtin { name } => field(name.as_bytes()),
    }
    match framing {
        Framing::Separator(separator) => field(&[separator]),
        Framing::LengthPrefixed => field(b"length"),
    }
    hash.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use widemap_common::framing::LINES;

    use super::*;

    #[test]
    fn functions_that_differ_have_digests_that_differ() {
        let pipe = |argv: &[&str]| Function::Pipe {
            argv: argv.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        };
        let digest = function_digest(&pipe(&["tr", "a", "b"]), LINES);
        assert_eq!(digest, function_digest(&pipe(&["tr", "a", "b"]), LINES));
        assert_ne!(digest, function_digest(&pipe(&["tr", "ab"]), LINES));
        assert_ne!(digest, function_digest(&pipe(&["tr", "a", "b"]), Framing::Separator(0)));
        assert_eq!(digest.len(), 64);
    }
}
