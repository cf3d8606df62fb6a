//! The configuration file: which one counts, and whether it can be read.

use std::path::Path;

use widemap_cluster::config::{Config, ConfigError};

use super::finding::{Check, Finding};

/// What is configured, which is nothing where the file cannot be used.
pub(super) fn check(found: Result<Config, ConfigError>) -> (Config, Finding) {
    match found {
        Ok(config) if config.hidden.is_some() => {
            let hidden = config.hidden.as_deref().unwrap_or(Path::new("?")).display();
            let what = format!("{hidden} may be one, and this user cannot look there");
            let action = "let this user in (ls -ld on each directory of it), or write another in \
                          ~/.config/widemap/widemap.toml";
            let finding = Finding::warning(Check::Configuration, what, action);
            (config, finding)
        }
        Ok(config) => {
            let finding = Finding::ok(Check::Configuration, shown(config.path.as_deref()));
            (config, finding)
        }
        Err(error) => {
            let what = format!("{error}; it is left out of account here");
            let action = match &error {
                ConfigError::Read { path, .. } => {
                    format!("make it readable to this user, or remove it: ls -l {}", path.display())
                }
                ConfigError::Malformed { path, line, .. } => {
                    format!("correct line {line} of {}", path.display())
                }
            };
            (Config::default(), Finding::problem(Check::Configuration, what, action))
        }
    }
}

fn shown(path: Option<&Path>) -> String {
    match path {
        Some(path) => path.display().to_string(),
        None => {
            let places = Config::usual_places();
            let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
            format!("none, which is well ({})", places.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn the_line_of_a_mistake_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("widemap.toml");
        std::fs::write(&path, "mdns = true\nworker = 'ann'\n").unwrap();
        let (config, finding) = check(Config::read(&path));
        assert_eq!((config, finding.status), (Config::default(), Status::Problem));
        assert!(finding.what.contains("line 2: unknown key `worker` (did you mean"), "{finding:?}");
        assert!(finding.action.unwrap().starts_with("correct line 2 of /"));

        std::fs::write(&path, "mdns = true\n").unwrap();
        let (config, finding) = check(Config::read(&path));
        assert_eq!((config.mdns, finding.status), (Some(true), Status::Ok));
        assert_eq!(finding.what, path.display().to_string());
        assert_eq!(check(Ok(Config::default())).1.status, Status::Ok);
        let hidden = Config { hidden: Some("/etc/x".into()), ..Config::default() };
        assert_eq!(check(Ok(hidden)).1.status, Status::Warning);
    }
}
