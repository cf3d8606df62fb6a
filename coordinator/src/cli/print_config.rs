//! `--print-config`: what holds of all that flags, variables and the configuration file can say, and where it
//! was said.

use widemap_cluster::config::Config;
use widemap_common::limits::{MAX_OUTPUT_BYTES, WAIT_WORKERS_S};

use super::options::{MapArgs, Wait};
use super::place::variable;
use crate::say;

/// One key.
struct Key {
    name: &'static str,
    /// Whether it says where a map runs: then the highest level that says anything of that counts alone.
    is_place: bool,
    flag: (&'static str, Option<String>),
    variable: &'static str,
    file: Option<String>,
    default: String,
}

/// Where something was said, the highest first.
const LEVELS: usize = 3;

/// Prints it, a line each.
pub(super) fn print(args: &MapArgs, config: &Config) {
    let keys = keys(args, config);
    let said = |key: &Key| -> [Option<(String, String)>; LEVELS] {
        let file = config.path.as_ref().map(|path| path.display().to_string());
        [
            key.flag.1.clone().map(|value| (value, key.flag.0.to_owned())),
            variable(key.variable).map(|value| (quoted(&value), key.variable.to_owned())),
            key.file.clone().zip(file),
        ]
    };
    let places: Vec<_> = keys.iter().filter(|key| key.is_place).map(&said).collect();
    let level = (0..LEVELS).find(|&level| places.iter().any(|said| said[level].is_some()));
    match &config.path {
        Some(path) => say::result(&format!("# {}", path.display())),
        None => {
            let places = Config::usual_places();
            let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
            say::result(&format!("# no configuration file: {}", places.join(", ")));
        }
    }
    for key in &keys {
        let said = said(key);
        let counts = |index: usize| !key.is_place || Some(index) == level;
        let held = said.iter().enumerate().find(|(index, said)| said.is_some() && counts(*index));
        let line = match held {
            Some((_, Some((value, from)))) => format!("{} = {value}  # {from}", key.name),
            _ => format!("# {}: {}", key.name, key.default),
        };
        say::result(&line);
        for (value, from) in said
            .iter()
            .enumerate()
            .filter(|(index, _)| !counts(*index))
            .filter_map(|(_, said)| said.as_ref())
        {
            say::result(&format!("#   not {value}, of {from}: a place is named above it"));
        }
    }
}

fn keys(args: &MapArgs, config: &Config) -> Vec<Key> {
    let place = &args.place;
    let trust = &place.trust;
    let path = |path: &std::path::PathBuf| quoted(&path.display().to_string());
    let key = |name, flag, variable, file, default: &str| Key {
        name,
        is_place: false,
        flag,
        variable,
        file,
        default: default.to_owned(),
    };
    let place_key = |name, flag, variable, file, default: &str| Key {
        is_place: true,
        ..key(name, flag, variable, file, default)
    };
    let dns: Vec<_> = place.dns.iter().map(|(host, port)| format!("{host}:{port}")).collect();
    let files = |files: &[std::path::PathBuf]| {
        list(&files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>())
    };
    let mdns = match (place.mdns, place.no_mdns) {
        (true, _) => Some("true".to_owned()),
        (_, true) => Some("false".to_owned()),
        _ => None,
    };
    let wait = |wait: Wait| match wait {
        Wait::Forever => quoted("never"),
        Wait::For(time) => quoted(&format!("{time:?}")),
    };
    let shown = |text: &Option<String>| text.as_deref().map(quoted);
    vec![
        place_key(
            "workers",
            ("--worker", list(&place.worker)),
            "WIDEMAP_WORKERS",
            list(&config.workers),
            "none is named",
        ),
        place_key(
            "workers-file",
            ("--workers-file", files(&place.workers_file)),
            "WIDEMAP_WORKERS_FILE",
            files(&config.workers_file),
            "none is named",
        ),
        place_key("dns", ("--dns", list(&dns)), "WIDEMAP_DNS", list(&config.dns), "none is named"),
        place_key(
            "local",
            ("--local", place.local.map(|n| n.to_string())),
            "WIDEMAP_LOCAL",
            config.local.map(|n| n.to_string()),
            "as many slots as cores, where no place is named and there is no key",
        ),
        place_key(
            "coordinator",
            ("--coordinator", shown(&args.coordinator.coordinator)),
            "WIDEMAP_COORDINATOR",
            shown(&config.coordinator),
            "none is named",
        ),
        key(
            "mdns",
            (if place.no_mdns { "--no-mdns" } else { "--mdns" }, mdns),
            "",
            config.mdns.map(|is| is.to_string()),
            "where there is a key and no place is named",
        ),
        key(
            "mdns-interface",
            ("--mdns-interface", list(&place.mdns_interface)),
            "WIDEMAP_MDNS_INTERFACE",
            list(&config.mdns_interface),
            "all",
        ),
        key(
            "key",
            ("--key", trust.key.as_ref().map(path)),
            "WIDEMAP_KEY",
            config.key.as_ref().map(path),
            "~/.config/widemap/key, else /etc/widemap/key",
        ),
        key(
            "tls-cert",
            ("--tls-cert", trust.tls_cert.as_ref().map(path)),
            "WIDEMAP_TLS_CERT",
            config.tls_cert.as_ref().map(path),
            "made from the key",
        ),
        key(
            "tls-key",
            ("--tls-key", trust.tls_key.as_ref().map(path)),
            "WIDEMAP_TLS_KEY",
            config.tls_key.as_ref().map(path),
            "made from the key",
        ),
        key(
            "tls-ca",
            ("--tls-ca", trust.tls_ca.as_ref().map(path)),
            "WIDEMAP_TLS_CA",
            config.tls_ca.as_ref().map(path),
            "made from the key",
        ),
        key(
            "jobs",
            ("-j", args.jobs.map(|n| n.to_string())),
            "WIDEMAP_JOBS",
            config.jobs.map(|n| n.to_string()),
            "all slots of each worker",
        ),
        key(
            "wait-workers",
            ("--wait-workers", args.wait_workers.map(wait)),
            "WIDEMAP_WAIT_WORKERS",
            shown(&config.wait_workers),
            &format!("{WAIT_WORKERS_S}s"),
        ),
        key(
            "max-output",
            ("--max-output", args.job.max_output.map(|n| n.to_string())),
            "WIDEMAP_MAX_OUTPUT",
            shown(&config.max_output),
            &MAX_OUTPUT_BYTES.to_string(),
        ),
        key("log", ("--log or WIDEMAP_LOG", shown(&args.log.log)), "", shown(&config.log), "warn"),
        key(
            "log-format",
            (
                "--log-format or WIDEMAP_LOG_FORMAT",
                args.log.log_format.map(|form| quoted(&format!("{form:?}").to_lowercase())),
            ),
            "",
            shown(&config.log_format),
            "text",
        ),
    ]
}

fn list(names: &[String]) -> Option<String> {
    let names: Vec<_> = names.iter().map(|name| quoted(name)).collect();
    (!names.is_empty()).then(|| format!("[{}]", names.join(", ")))
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}
