//! What this process proves itself with, and whom it trusts: from the key file, from a worker bundle,
//! or from certificates that somebody else has made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::authority::{Authority, MintError};
use crate::bundle::WorkerBundle;
use crate::cluster_id::ClusterId;
use crate::key::{self, KeyError, KeyFile, KeyRing};
use crate::role::Role;

/// A certificate with its private key, and the authorities whose certificates are believed.
#[derive(Debug)]
pub struct Identity {
    pub(crate) role: Role,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) trusted: Vec<Trusted>,
    source: Source,
}

/// An authority, and the cluster that it is of, where it was made from a cluster key.
#[derive(Debug, Clone)]
pub(crate) struct Trusted {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) cluster: Option<ClusterId>,
}

/// What the command line, the environment and the configuration file say of identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A key file or a worker bundle.
    pub key: Option<PathBuf>,
    /// The certificate chain of `--tls-cert`.
    pub certificate: Option<PathBuf>,
    /// The private key of `--tls-key`.
    pub private_key: Option<PathBuf>,
    /// The authorities of `--tls-ca`.
    pub authority: Option<PathBuf>,
}

/// What an identity was made from, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This key file.
    Key(PathBuf),
    /// This worker bundle.
    Bundle(PathBuf),
    /// Certificates made elsewhere.
    Certificates(PathBuf),
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key file is not usable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate could not be made.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// A worker bundle is no coordinator.
    #[error(
        "{0} is a worker bundle: it lets its holder be a worker and nothing else; name the key file itself"
    )]
    WorkerOnly(PathBuf),
    /// Only some of the files were named.
    #[error("--tls-cert, --tls-key and --tls-ca belong together: name all three")]
    Incomplete,
    /// A key and certificates were named.
    #[error("--key and --tls-cert exclude each other: the key makes its own certificates")]
    Both,
    /// A file of certificates or a private key cannot be used.
    #[error("{path}: {problem}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// The variable that names the key file, where no option does.
const KEY_VARIABLE: &str = "WIDEMAP_KEY";

impl Wanted {
    /// What the environment says.
    #[must_use]
    pub fn of_environment() -> Self {
        let key = std::env::var_os(KEY_VARIABLE).filter(|value| !value.is_empty());
        Self { key: key.map(PathBuf::from), ..Self::default() }
    }

    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is said here, or else what is said there: the levels do not mix.
    #[must_use]
    pub fn or(self, lower: Self) -> Self {
        if self.is_empty() { lower } else { self }
    }
}

impl Identity {
    /// The identity that was asked for, or the one of the usual key file; `None` if nothing was asked
    /// for and there is no key file.
    ///
    /// # Errors
    /// If what was asked for, or what is there, cannot be used.
    pub fn find(wanted: &Wanted, role: Role) -> Result<Option<Self>, IdentityError> {
        let files = [&wanted.certificate, &wanted.private_key, &wanted.authority];
        match (files, &wanted.key) {
            ([None, None, None], None) => match key::usual_file()? {
                Some(path) => Self::of_key_file(&path, role).map(Some),
                None => Ok(None),
            },
            ([None, None, None], Some(path)) => Self::of_key_file(path, role).map(Some),
            (_, Some(_)) => Err(IdentityError::Both),
            ([Some(certificate), Some(private_key), Some(authority)], None) => {
                Self::of_files(certificate, private_key, authority, role).map(Some)
            }
            _ => Err(IdentityError::Incomplete),
        }
    }

    /// The identity of a key file or a worker bundle.
    ///
    /// # Errors
    /// If the file cannot be used, or the role is not the bundle's.
    pub fn of_key_file(path: &Path, role: Role) -> Result<Self, IdentityError> {
        match key::read(path)? {
            KeyFile::Keys(ring) => Self::of_keys(&ring, role, Source::Key(path.to_owned())),
            KeyFile::Bundle(_) if role != Role::Worker => {
                Err(IdentityError::WorkerOnly(path.to_owned()))
            }
            KeyFile::Bundle(bundle) => Ok(Self::of_bundle(bundle, path)),
        }
    }

    fn of_keys(ring: &KeyRing, role: Role, source: Source) -> Result<Self, IdentityError> {
        let own = Authority::of(ring.own())?.mint(role)?;
        let key = PrivateKeyDer::try_from(own.key.serialize_der())
            .map_err(|_| MintError::from(rcgen::Error::CouldNotParseKeyPair))?;
        let trust = |key| {
            let authority = Authority::of(key)?;
            Ok(Trusted {
                roots: roots([authority.certificate().der().clone()]),
                cluster: Some(key.cluster()),
            })
        };
        let trusted = ring.all().iter().map(trust).collect::<Result<_, MintError>>()?;
        Ok(Self { role, chain: vec![own.certificate.der().clone()], key, trusted, source })
    }

    fn of_bundle(bundle: WorkerBundle, path: &Path) -> Self {
        let trust =
            |(authority, cluster)| Trusted { roots: roots([authority]), cluster: Some(cluster) };
        Self {
            role: Role::Worker,
            chain: vec![bundle.leaf],
            key: bundle.key,
            trusted: bundle.authorities.into_iter().zip(bundle.clusters).map(trust).collect(),
            source: Source::Bundle(path.to_owned()),
        }
    }

    /// Certificates of an authority that is not ours: everything is checked here, as TLS passes over
    /// what it cannot read.
    fn of_files(
        certificate: &Path,
        private_key: &Path,
        authority: &Path,
        role: Role,
    ) -> Result<Self, IdentityError> {
        let chain = certificates(certificate)?;
        let text = key::read_secret(private_key)?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|error| unreadable(private_key, &error, "a private key"))?;
        let mut store = RootCertStore::empty();
        for root in certificates(authority)? {
            store.add(root).map_err(|error| IdentityError::File {
                path: authority.to_owned(),
                problem: format!("not a certificate authority: {error}"),
            })?;
        }
        let trusted = vec![Trusted { roots: Arc::new(store), cluster: None }];
        let source = Source::Certificates(certificate.to_owned());
        let identity = Self { role, chain, key, trusted, source };
        identity.check(certificate, private_key)?;
        Ok(identity)
    }

    /// The cluster that this process belongs to; none with certificates made elsewhere.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.trusted.first()?.cluster
    }

    /// Whether members of this cluster are believed, as far as its name tells.
    #[must_use]
    pub fn trusts(&self, cluster: ClusterId) -> bool {
        self.trusted.iter().any(|trusted| trusted.cluster == Some(cluster))
    }

    /// What it was made from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }
}

/// The name of the file, as a person finds it.
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(path) => write!(f, "key {}", path.display()),
            Self::Bundle(path) => write!(f, "worker bundle {}", path.display()),
            Self::Certificates(path) => write!(f, "certificate {}", path.display()),
        }
    }
}

pub(crate) fn roots(
    authorities: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    for authority in authorities {
        // One that cannot be read is no authority: then nobody is believed, and it is said of whom.
        if let Err(error) = store.add(authority) {
            tracing::error!(%error, "a certificate authority cannot be read");
        }
    }
    Arc::new(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    key::refuse_secret(path)?;
    let text = std::fs::read(path).map_err(|error| IdentityError::File {
        path: path.to_owned(),
        problem: format!("cannot be read: {error}"),
    })?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unreadable(path, &pem::Error::NoItemsFound, "a certificate")),
        Err(error) => Err(unreadable(path, &error, "a certificate")),
    }
}

fn unreadable(path: &Path, error: &pem::Error, what: &str) -> IdentityError {
    let problem = match error {
        pem::Error::NoItemsFound => format!("{what} in PEM form is expected, and there is none"),
        error => format!("{what} in PEM form is expected: {error}"),
    };
    IdentityError::File { path: path.to_owned(), problem }
}
