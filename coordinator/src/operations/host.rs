//! Whom an HTTP request is for. A page in somebody's browser can have a name of its own lead to this
//! host; what it asks for then names that name, and is refused.

use std::net::{IpAddr, SocketAddr};

/// The names by which a service may be asked.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    names: Vec<String>,
}

impl Hosts {
    /// `localhost`, every address, this host's own name, and the one by which it was told to listen.
    pub(crate) fn of(listen: &str) -> Self {
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let named = listen.rsplit_once(':').map_or(listen, |(host, _)| host).to_owned();
        let names = ["localhost".to_owned(), own, named];
        Self { names: names.into_iter().map(|name| name.to_ascii_lowercase()).collect() }
    }

    /// Whether a `Host` header means this service.
    pub(super) fn know(&self, host: &str) -> bool {
        if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
            return true;
        }
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if bracketed.is_some_and(|address| address.parse::<IpAddr>().is_ok()) {
            return true;
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        !name.is_empty() && self.names.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_known() {
        let hosts = Hosts::of("metrics.lab:9434");
        for host in [
            "localhost",
            "LOCALHOST:9434",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]:9434",
            "[::1]",
            "metrics.lab.:9434",
        ] {
            assert!(hosts.know(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:9434", ":9434", "localhost:x"] {
            assert!(!hosts.know(host), "{host}");
        }
    }
}
