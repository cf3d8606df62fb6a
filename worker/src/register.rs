//! `--register DIR`: a file in a directory that coordinators watch (`widemap map --workers-file
//! DIR`), on a network file system say, for as long as the worker takes work.
//!
//! The file has the address to dial on one line. It gets its name once it is whole, so that nobody
//! reads half of it.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The digits that set a life of a worker apart from its others.
const LIFE_DIGITS: usize = 16;

/// What everybody may do with the file: a coordinator need not be of the worker's user.
const FILE_MODE: u32 = 0o644;

/// What is kept of a worker's and a host's name in the file's: a file's name has 255 bytes at the most.
const NAME_BYTES_MAX: usize = 64;

/// Names of network interfaces begin so that lead to containers and virtual machines on this host
/// alone.
const INNER_INTERFACES: [&str; 8] =
    ["docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "lxc"];

/// The file of a registered worker, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    file: Option<PathBuf>,
}

/// Why a worker could not be registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error(
        "--register {}: cannot write there: {error} \
         (name a directory that exists, and that this user may write in)", .directory.display()
    )]
    Directory { directory: PathBuf, error: io::Error },
    #[error(
        "--register: cannot find out where this host can be reached: {0} (say --listen ADDRESS:PORT)"
    )]
    Host(#[source] io::Error),
    #[error(
        "--register: listening on {0}, and found no address of this host that others could reach: \
         say which with --listen ADDRESS:PORT"
    )]
    NoAddress(SocketAddr),
}

/// What this host knows of itself.
#[derive(Debug)]
struct Here {
    /// Its name.
    name: String,
    /// What its name leads to.
    resolved: Vec<IpAddr>,
    /// Its interfaces' names and addresses.
    interfaces: Vec<(String, IpAddr)>,
}

impl Registration {
    /// Registers the worker `name` that listens on `listener`, in `directory`.
    ///
    /// # Errors
    /// [`RegisterError`] if nobody could find it by that.
    pub(crate) fn write(
        directory: &Path,
        name: &str,
        bound: SocketAddr,
        listener: impl AsFd,
    ) -> Result<Self, RegisterError> {
        let here = Here::look_around(bound).map_err(RegisterError::Host)?;
        let only_v6 = bound.is_ipv6() && rustix::net::sockopt::ipv6_v6only(listener) == Ok(true);
        let address = here.address_of(bound, only_v6).ok_or(RegisterError::NoAddress(bound))?;
        let life = format!("{:016x}", fastrand::u64(..));
        let entry = Entry { worker: name, host: &here.name, bound, address: &address };
        entry.replace_former(directory);
        let file = entry
            .write(directory, &life)
            .map_err(|error| RegisterError::Directory { directory: directory.to_owned(), error })?;
        Ok(Self { file: Some(file) })
    }

    /// Takes the worker off the list. Once more changes nothing.
    ///
    /// # Errors
    /// If the file is there and cannot be removed.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        match self.file.take().map(std::fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // At the end there is nobody to tell: coordinators will find that nobody listens there.
        let _ = self.remove();
    }
}

/// What is written of a worker.
#[derive(Debug)]
struct Entry<'a> {
    worker: &'a str,
    host: &'a str,
    bound: SocketAddr,
    address: &'a str,
}

impl Entry<'_> {
    /// What the names of its files begin with, in each of its lives.
    fn stem(&self) -> String {
        format!("{}@{}-{}-", file_name(self.worker), file_name(self.host), self.bound.port())
    }

    /// The line that sets it apart from workers of the same name that listen beside it.
    fn comment(&self) -> String {
        format!("# {}, listening on {}", self.stem().trim_end_matches('-'), self.bound)
    }

    fn write(&self, directory: &Path, life: &str) -> io::Result<PathBuf> {
        let path = directory.join(self.stem() + life);
        let mut file = tempfile::Builder::new().prefix(".widemap-").tempfile_in(directory)?;
        writeln!(file, "{}\n{}", self.comment(), self.address)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(FILE_MODE))?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(path)
    }

    /// Removes what a former life left that was killed: nobody else can listen where we do.
    fn replace_former(&self, directory: &Path) {
        let (stem, comment) = (self.stem(), self.comment());
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let life = name.to_str().and_then(|name| name.strip_prefix(&stem));
            if !life.is_some_and(is_life) {
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            if text.lines().next() == Some(&comment) {
                // What stays does no harm: it has the same address.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn is_life(text: &str) -> bool {
    text.len() == LIFE_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `text` as a part of a file's name that is neither hidden nor a path.
fn file_name(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let chars = text.chars().take(NAME_BYTES_MAX);
    let name: String = chars.map(|c| if plain(c) { c } else { '_' }).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

impl Here {
    fn look_around(bound: SocketAddr) -> io::Result<Self> {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        if !bound.ip().is_unspecified() {
            // It is known where to reach us: nobody need be asked.
            return Ok(Self { name, resolved: Vec::new(), interfaces: Vec::new() });
        }
        let interfaces = if_addrs::get_if_addrs()?;
        let interfaces = interfaces.into_iter().map(|one| (one.name.clone(), one.ip())).collect();
        // A name that leads nowhere is not used.
        let resolved = (name.as_str(), bound.port()).to_socket_addrs();
        let resolved =
            resolved.map_or_else(|_| Vec::new(), |all| all.map(|one| one.ip()).collect());
        Ok(Self { name, resolved, interfaces })
    }

    /// Where others reach what listens on `bound`.
    fn address_of(&self, bound: SocketAddr, only_v6: bool) -> Option<String> {
        if !bound.ip().is_unspecified() {
            return with_port(bound.ip(), bound.port());
        }
        let listened =
            |ip: &IpAddr| if bound.is_ipv4() { ip.is_ipv4() } else { !only_v6 || ip.is_ipv6() };
        let mine = |ip: &IpAddr| self.interfaces.iter().any(|(_, mine)| mine == ip);
        let useful = |ip: &IpAddr| listened(ip) && may_be_reached(*ip);
        // Not if it leads elsewhere too: some hosts have a loopback address of their own name.
        let named = !self.resolved.is_empty()
            && self.resolved.iter().all(|ip| useful(ip) && mine(ip))
            && self.name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        if named {
            return Some(format!("{}:{}", self.name, bound.port()));
        }
        let outer = |name: &str| !INNER_INTERFACES.iter().any(|inner| name.starts_with(inner));
        let mut addresses: Vec<_> = self
            .interfaces
            .iter()
            .filter(|(name, ip)| outer(name) && useful(ip))
            .map(|(_, ip)| *ip)
            .collect();
        // The order of the interfaces otherwise.
        addresses.sort_by_key(IpAddr::is_ipv6);
        with_port(*addresses.first()?, bound.port())
    }
}

/// Whether an address can lead here from another host, said without an interface.
fn may_be_reached(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip == Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified()),
    }
}

/// An address as it is dialled; nothing for one that needs an interface with it.
fn with_port(ip: IpAddr, port: u16) -> Option<String> {
    match ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => None,
        ip => Some(SocketAddr::new(ip, port).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(resolved: &[&str], interfaces: &[(&str, &str)]) -> Here {
        Here {
            name: "ann".to_owned(),
            resolved: resolved.iter().map(|ip| ip.parse().unwrap()).collect(),
            interfaces: interfaces
                .iter()
                .map(|(name, ip)| ((*name).to_owned(), ip.parse().unwrap()))
                .collect(),
        }
    }

    #[test]
    fn the_address_is_the_one_that_others_can_dial() {
        let lo = ("lo", "127.0.0.1");
        let eth = ("eth0", "10.0.0.7");
        let six = ("eth0", "2001:db8::7");
        let bridge = ("docker0", "172.17.0.1");
        let link = ("eth0", "fe80::7");
        // What is listened on, the host's name, its interfaces, what is dialled.
        for (bound, resolved, interfaces, want) in [
            ("10.0.0.9:7", vec![], vec![], Some("10.0.0.9:7")),
            ("127.0.0.1:7", vec![], vec![], Some("127.0.0.1:7")),
            ("[::1]:7", vec![], vec![], Some("[::1]:7")),
            ("[fe80::7]:7", vec![], vec![], None),
            ("0.0.0.0:7", vec!["10.0.0.7"], vec![lo, eth], Some("ann:7")),
            // The name leads to this host alone, or to another one.
            ("0.0.0.0:7", vec!["127.0.1.1"], vec![lo, bridge, eth], Some("10.0.0.7:7")),
            ("0.0.0.0:7", vec!["10.0.0.8"], vec![lo, eth], Some("10.0.0.7:7")),
            ("0.0.0.0:7", vec!["127.0.1.1", "10.0.0.7"], vec![lo, eth], Some("10.0.0.7:7")),
            ("0.0.0.0:7", vec![], vec![lo, link, six, eth], Some("10.0.0.7:7")),
            ("0.0.0.0:7", vec![], vec![lo, bridge, link, six], None),
            ("[::]:7", vec![], vec![lo, link, six, eth], Some("10.0.0.7:7")),
            ("[::]:7", vec![], vec![lo, link, six], Some("[2001:db8::7]:7")),
        ] {
            let here = here(&resolved, &interfaces);
            let bound: SocketAddr = bound.parse().unwrap();
            assert_eq!(here.address_of(bound, false).as_deref(), want, "{bound} {here:?}");
        }
        let both = here(&[], &[eth, six]);
        let bound = "[::]:7".parse().unwrap();
        assert_eq!(both.address_of(bound, true).as_deref(), Some("[2001:db8::7]:7"));
    }

    fn register(directory: &Path, name: &str, bound: &str) -> Registration {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Registration::write(directory, name, bound.parse().unwrap(), socket).unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_worker_is_listed_from_its_registration_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut worker = register(directory.path(), "../ann lee", "127.0.0.1:7433");
        let files = names(directory.path());
        assert_eq!(files.len(), 1, "{files:?}");
        assert!(files[0].starts_with("_.._ann_lee@") && files[0].contains("-7433-"), "{files:?}");
        let path = directory.path().join(&files[0]);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, ["127.0.0.1:7433"]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, FILE_MODE);
        worker.remove().unwrap();
        assert_eq!(names(directory.path()), [""; 0]);
        assert!(worker.remove().is_ok());
        // A name of any length.
        drop(register(directory.path(), &"x".repeat(1_000), "127.0.0.1:7433"));
        drop(register(directory.path(), "ann", "127.0.0.1:7433"));
        assert_eq!(names(directory.path()), [""; 0]);
    }

    #[test]
    fn what_a_killed_worker_left_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let killed = register(path, "ann", "127.0.0.1:7433");
        let left = killed.file.clone().unwrap();
        std::mem::forget(killed);
        // Another port, another address with the same port, another name, a file of a person.
        let _others =
            [("ann", "127.0.0.1:7434"), ("ann", "127.0.0.2:7433"), ("bob", "127.0.0.1:7433")]
                .map(|(name, bound)| register(path, name, bound));
        std::fs::write(path.join("hosts"), "carl\n").unwrap();
        let before = names(path);
        assert_eq!(before.len(), 5);
        let _again = register(path, "ann", "127.0.0.1:7433");
        assert!(!left.exists());
        assert_eq!(names(path).len(), 5);
        let kept = before.iter().filter(|name| names(path).contains(name)).count();
        assert_eq!(kept, 4);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = socket.local_addr().unwrap();
        let none = directory.path().join("none");
        let error = Registration::write(&none, "ann", bound, socket).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("--register {}: cannot write", none.display())),
            "{error}"
        );
    }
}
