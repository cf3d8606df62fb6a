//! What a command finds around itself: the variables that a worker passes on, and the ones that it
//! sets for every process of a job.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use crate::spawner::RunAs;

/// Variables of the worker that are passed on anyway, beside `LC_*`.
const PASSED_ON: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR"];

/// What a worker is told by its own variables, where its key is say, is never passed on, asked for or
/// not.
const OWN_PREFIX: &[u8] = b"WIDEMAP_";

/// Variables that the worker sets for each item: a job has no say in them.
const SET_FOR_ITEMS: [&[u8]; 3] = [b"WIDEMAP_ITEM", b"WIDEMAP_SEQ", b"WIDEMAP_SLOT"];

/// Variables that tell libraries how many threads to start.
const THREAD_COUNTS: [&str; 6] = [
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
];

/// The environment of a job's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    /// Whether nothing but these variables is there; else they are added to the worker's own.
    pub(crate) clear: bool,
    pub(crate) variables: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Environment {
    /// The worker's own environment, with what the job asks for.
    pub(crate) fn inherited(asked: &[(Vec<u8>, Option<Vec<u8>>)]) -> Self {
        let set = |(name, value): &(Vec<u8>, Option<Vec<u8>>)| Some((name.clone(), value.clone()?));
        let variables = asked.iter().filter_map(set).filter(may_be_asked).filter(valid).collect();
        Self { clear: false, variables }
    }

    /// What is passed on of `own`, the worker's variables, what the job asks for, and thread counts
    /// of `threads`, the slot's share of the cores. Who its processes run as, if that is another
    /// than the worker, is said by the same variables as after a login.
    pub(crate) fn scrubbed(
        asked: &[(Vec<u8>, Option<Vec<u8>>)],
        own: impl Iterator<Item = (OsString, OsString)>,
        run_as: Option<&RunAs>,
        threads: usize,
    ) -> Self {
        let mut own: Vec<_> = own
            .map(|(name, value)| (name.into_vec(), value.into_vec()))
            .filter(|(name, _)| !name.starts_with(OWN_PREFIX))
            .collect();
        let mut environment = Self { clear: true, variables: Vec::new() };
        for (name, value) in run_as.into_iter().flat_map(RunAs::variables) {
            own.retain(|(known, _)| known != name.as_bytes());
            own.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
            environment.set(name.as_bytes(), value.as_bytes());
        }
        for (name, value) in &own {
            let passed_on = PASSED_ON.iter().any(|passed| passed.as_bytes() == name);
            if passed_on || name.starts_with(b"LC_") {
                environment.set(name, value);
            }
        }
        for name in THREAD_COUNTS {
            environment.set(name.as_bytes(), threads.to_string().as_bytes());
        }
        for (name, value) in asked {
            let worker_has = || own.iter().find(|(own, _)| own == name).map(|(_, value)| value);
            if let Some(value) = value.as_ref().or_else(worker_has) {
                environment.set(name, value);
            }
        }
        environment.variables.retain(|variable| may_be_asked(variable) && valid(variable));
        environment
    }

    /// Where commands are looked for.
    pub(crate) fn path(&self) -> OsString {
        let set = self.variables.iter().find(|(name, _)| name == b"PATH");
        match set {
            Some((_, value)) => OsStr::from_bytes(value).to_owned(),
            None if self.clear => OsString::new(),
            None => std::env::var_os("PATH").unwrap_or_default(),
        }
    }

    fn set(&mut self, name: &[u8], value: &[u8]) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_vec(), value.to_vec()));
    }
}

fn may_be_asked((name, _): &(Vec<u8>, Vec<u8>)) -> bool {
    !SET_FOR_ITEMS.contains(&name.as_slice())
}

/// What the system could not pass on would fail every item.
fn valid((name, value): &(Vec<u8>, Vec<u8>)) -> bool {
    !name.is_empty() && !name.contains(&b'=') && !name.contains(&0) && !value.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> impl Iterator<Item = (OsString, OsString)> {
        [("PATH", "/bin"), ("SECRET", "x"), ("LC_ALL", "C"), ("ASKED", "mine"), ("HOME", "/root")]
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
    }

    fn value<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
        let found = environment.variables.iter().find(|(known, _)| known == name.as_bytes());
        found.map(|(_, value)| std::str::from_utf8(value).unwrap())
    }

    #[test]
    fn only_the_listed_and_the_asked_for_are_passed_on() {
        let asked = [
            (b"ASKED".to_vec(), None),
            (b"SET".to_vec(), Some(b"1".to_vec())),
            (b"OMP_NUM_THREADS".to_vec(), Some(b"8".to_vec())),
            (b"NOWHERE".to_vec(), None),
        ];
        let environment = Environment::scrubbed(&asked, own(), None, 2);
        assert!(environment.clear);
        assert_eq!(value(&environment, "SECRET"), None);
        assert_eq!(value(&environment, "NOWHERE"), None);
        assert_eq!(value(&environment, "LC_ALL"), Some("C"));
        assert_eq!(value(&environment, "ASKED"), Some("mine"));
        assert_eq!(value(&environment, "SET"), Some("1"));
        assert_eq!(value(&environment, "OMP_NUM_THREADS"), Some("8"));
        assert_eq!(value(&environment, "RAYON_NUM_THREADS"), Some("2"));
        assert_eq!(environment.path(), "/bin");
    }

    #[test]
    fn what_the_worker_is_told_is_not_passed_on_even_if_asked_for() {
        let own = [("WIDEMAP_KEY", "/etc/widemap/key"), ("WIDEMAP_LOG", "debug"), ("PATH", "/bin")];
        let own = own.into_iter().map(|(name, value)| (name.into(), value.into()));
        let asked = [
            (b"WIDEMAP_KEY".to_vec(), None),
            (b"WIDEMAP_LOG".to_vec(), Some(b"info".to_vec())),
            (b"WIDEMAP_ITEM".to_vec(), Some(b"forged".to_vec())),
        ];
        let environment = Environment::scrubbed(&asked, own, None, 1);
        assert_eq!(value(&environment, "WIDEMAP_KEY"), None);
        assert_eq!(value(&environment, "WIDEMAP_LOG"), Some("info"));
        assert_eq!(value(&environment, "WIDEMAP_ITEM"), None);
        assert_eq!(Environment::inherited(&asked).variables.len(), 1);
    }

    #[test]
    fn another_user_has_a_name_and_a_home_of_its_own() {
        let nobody = RunAs::find("nobody").unwrap();
        let asked = [(b"HOME".to_vec(), None)];
        let environment = Environment::scrubbed(&asked, own(), Some(&nobody), 1);
        assert_eq!(value(&environment, "USER"), Some("nobody"));
        assert_eq!(value(&environment, "LOGNAME"), Some("nobody"));
        assert_ne!(value(&environment, "HOME"), Some("/root"));
        assert_eq!(environment.path(), "/bin");
    }

    #[test]
    fn what_cannot_be_a_variable_is_left_out() {
        let asked = [(b"A=B".to_vec(), Some(b"1".to_vec())), (b"N".to_vec(), Some(b"\0".to_vec()))];
        assert_eq!(Environment::inherited(&asked).variables, []);
    }
}
