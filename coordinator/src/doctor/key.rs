//! The key, or what stands for it: which file counts, who can read it, and what it makes of this host.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use widemap_cluster::key::{self, KeyError, KeyFile};
use widemap_cluster::{ClusterId, Identity, Role, Wanted};

use super::finding::{Check, Finding};

/// What the key has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checked {
    /// What to tell.
    pub(super) finding: Finding,
    /// The cluster that this host belongs to.
    pub(super) cluster: Option<ClusterId>,
}

/// Looks at the key that is `wanted`, or the usual one; `None` says that none is to be used.
pub(super) fn check(wanted: Option<&Wanted>) -> Checked {
    let alone = |finding| Checked { finding, cluster: None };
    let Some(wanted) = wanted else {
        return alone(Finding::warning(
            Check::Key,
            "--insecure: no key is used, and whoever is on the network can read and change \
             everything",
            "make a key (widemap key new) and copy it to every host",
        ));
    };
    let has_files =
        [&wanted.certificate, &wanted.private_key, &wanted.authority].iter().any(|f| f.is_some());
    if has_files {
        return alone(certificates(wanted));
    }
    let found = wanted.key.clone().map_or_else(key::usual_file, |path| Ok(Some(path)));
    match found {
        Ok(Some(path)) => of_file(&path, key::read(&path)),
        Err(error) => {
            let (what, action) = trouble(&error);
            alone(Finding::problem(Check::Key, what, action))
        }
        Ok(None) => {
            let places = key::usual_places();
            let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
            alone(Finding::warning(
                Check::Key,
                format!(
                    "none ({}): a worker on this host listens on loopback only, and those of other \
                     hosts cannot be used",
                    places.join(", ")
                ),
                "for more than this host: `widemap key new`, and copy that file to every host",
            ))
        }
    }
}

fn of_file(path: &Path, read: Result<KeyFile, KeyError>) -> Checked {
    let shown = path.display();
    match read {
        Ok(KeyFile::Keys(ring)) => {
            let own = ring.own().cluster();
            let others = ring.all()[1..].iter().map(|key| key.cluster().to_string());
            let others: String = others.map(|id| format!(", trusted beside it: {id}")).collect();
            let what = format!("{shown} ({}): cluster {own}{others}", access(path));
            Checked { finding: Finding::ok(Check::Key, what), cluster: Some(own) }
        }
        Ok(KeyFile::Bundle(bundle)) => {
            let clusters: Vec<_> = bundle.clusters().iter().map(ToString::to_string).collect();
            let what = format!(
                "{shown} ({}) is a worker bundle of cluster {}: this host can be a worker, and run \
                 no maps on others",
                access(path),
                clusters.join(" and ")
            );
            let action = "to run maps from here, copy the key file itself to this host";
            let finding = Finding::warning(Check::Key, what, action);
            Checked { finding, cluster: bundle.clusters().first().copied() }
        }
        Err(error) => {
            let (what, action) = trouble(&error);
            Checked { finding: Finding::problem(Check::Key, what, action), cluster: None }
        }
    }
}

/// What is wrong with a key file, and what to do.
fn trouble(error: &KeyError) -> (String, String) {
    match error {
        KeyError::Loose { path, mode } => (
            format!("the key file {} can be read by others (mode {mode:04o})", path.display()),
            format!(
                "chmod 600 {}; if they may have read it, make another key (widemap key new)",
                path.display()
            ),
        ),
        KeyError::Foreign { path, owner } => (
            format!("the key file {} belongs to another user (uid {owner})", path.display()),
            format!("sudo chown \"$USER\" {0}, or copy it", path.display()),
        ),
        KeyError::Hidden { path, error } => (
            format!("{} may hold a key, and this user cannot look there: {error}", path.display()),
            "copy the key to this user (a copy of mode 600, in ~/.config/widemap/key), or name one with \
             --key FILE"
                .to_owned(),
        ),
        KeyError::Read { path, .. } => (
            error.to_string(),
            format!("ls -l {}; or name another file with --key", path.display()),
        ),
        KeyError::NotAPath => {
            (error.to_string(), "name the file: --key FILE, or WIDEMAP_KEY=FILE".to_owned())
        }
        _ => (
            error.to_string(),
            "copy the file again from a host where `widemap key show` reads it".to_owned(),
        ),
    }
}

fn certificates(wanted: &Wanted) -> Finding {
    match Identity::find(wanted, Role::Coordinator) {
        Ok(identity) => {
            let source = identity.map_or_else(String::new, |found| found.source().to_string());
            Finding::ok(Check::Key, format!("{source}, made elsewhere, is valid now"))
        }
        Err(error) => Finding::problem(
            Check::Key,
            error.to_string(),
            "correct --tls-cert, --tls-key and --tls-ca (or tls-* in widemap.toml); `openssl x509 \
             -in FILE -noout -dates -subject` shows a certificate",
        ),
    }
}

/// Who can do what with a file.
fn access(path: &Path) -> String {
    let Ok(metadata) = path.metadata() else { return "not to be seen any more".to_owned() };
    let owner = match metadata.uid() {
        0 => "root".to_owned(),
        uid if uid == rustix::process::geteuid().as_raw() => "this user".to_owned(),
        uid => format!("uid {uid}"),
    };
    format!("mode {:04o}, of {owner}", metadata.mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use widemap_cluster::bundle;
    use widemap_cluster::key::{ClusterKey, KeyRing};

    use super::super::finding::Status;
    use super::*;

    fn checked(text: &str, mode: u32) -> Checked {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        key::write_new(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        check(Some(&Wanted { key: Some(path), ..Wanted::default() }))
    }

    #[test]
    fn a_key_names_its_cluster_and_the_one_trusted_beside_it() {
        let (one, two) = (ClusterKey::generate().unwrap(), ClusterKey::generate().unwrap());
        let found = checked(&one.to_text(), 0o600);
        assert_eq!((found.cluster, found.finding.status), (Some(one.cluster()), Status::Ok));
        assert!(found.finding.what.contains("(mode 0600, of "), "{found:?}");
        let found = checked(&format!("{}\n{}\n", *one.to_text(), *two.to_text()), 0o400);
        let both = format!("cluster {}, trusted beside it: {}", one.cluster(), two.cluster());
        assert!(found.finding.what.ends_with(&both), "{found:?}");
    }

    #[test]
    fn a_key_that_others_can_read_is_a_problem_with_the_cure() {
        let key = ClusterKey::generate().unwrap();
        let Finding { status, what, action, .. } = checked(&key.to_text(), 0o644).finding;
        assert_eq!(status, Status::Problem);
        assert!(what.ends_with("can be read by others (mode 0644)"), "{what}");
        assert!(action.unwrap().starts_with("chmod 600 /"));
    }

    #[test]
    fn a_bundle_makes_a_worker_and_no_coordinator() {
        let key = ClusterKey::generate().unwrap();
        let found = checked(&bundle::make(&KeyRing::of(key.clone())).unwrap(), 0o600);
        assert_eq!((found.cluster, found.finding.status), (Some(key.cluster()), Status::Warning));
        assert!(found.finding.what.contains("run no maps"), "{found:?}");
    }

    #[test]
    fn damage_no_key_and_none_wanted_are_told_apart() {
        let damaged = checked("nonsense", 0o600).finding;
        assert_eq!(damaged.status, Status::Problem);
        assert!(damaged.what.contains("line 1: not a cluster key"), "{damaged:?}");
        let half = Wanted { certificate: Some("/c".into()), ..Wanted::default() };
        assert_eq!(check(Some(&half)).finding.status, Status::Problem);
        assert_eq!(check(None).finding.status, Status::Warning);
    }
}
