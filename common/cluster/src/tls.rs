//! Mutual TLS 1.3: the only file that makes rustls configurations and understands its errors.
//!
//! Each side believes certificates of the trusted authorities alone. The client asks for the name of a
//! worker, or of a coordinator, besides; what a client may do, the server decides by [`peer_role`] for
//! each call.

#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    Error as TlsError, InvalidMessage, OtherError, ServerConfig, SignatureScheme,
};

use crate::identity::{Identity, IdentityError, Trusted};
use crate::role::Role;

/// What is spoken inside: HTTP/2.
const PROTOCOL: &[u8] = b"h2";

/// With certificates made elsewhere a worker may be certified for this name instead of its host's, as
/// members are dialled by address.
const WORKER_NAME: &str = "worker.widemap.internal";

/// The same for a coordinator that serves.
const SERVICE_NAME: &str = "coordinator.widemap.internal";

/// Where authorities are named, whoever has another one is told by an alert of its own: there is no
/// cluster key then that could be compared.
#[derive(Debug, thiserror::Error)]
#[error("it is not signed by the authority of --tls-ca")]
struct NotOfAuthority;

/// Why a peer is not believed, or does not believe us, from this side's point of view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Its certificate is of another authority.
    #[error("its certificate is of another cluster key")]
    OtherKey,
    /// It says the same of ours.
    #[error("it does not believe this side's certificate: it has another cluster key")]
    RefusesUs,
    /// With certificates made elsewhere: no authority that this side was given has signed its own.
    #[error("its certificate is not signed by the authority of --tls-ca here")]
    OtherAuthority,
    /// It says the same of ours.
    #[error(
        "it does not believe this side's certificate, which is not signed by the authority of --tls-ca \
         there"
    )]
    RefusesAuthority,
    /// It says that ours is for another role.
    #[error("it does not accept this side's certificate: it is for another role")]
    RefusesRole,
    /// Its certificate is for another role.
    #[error("its certificate is for another role")]
    OtherRole,
    /// Its certificate is for another host.
    #[error(
        "its certificate is neither for the host that was dialled nor for {WORKER_NAME} or \
         {SERVICE_NAME}"
    )]
    OtherName,
    /// It shows none.
    #[error("it has no certificate")]
    NoCertificate,
    /// Its certificate is not valid now.
    #[error("its certificate is not valid at this host's time (is the clock right?)")]
    Clock,
    /// It does not speak TLS.
    #[error("it does not speak TLS")]
    NotTls,
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl Identity {
    /// The side that is dialled.
    ///
    /// # Errors
    /// If the certificate and its key do not fit.
    pub fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let verifier = AnyOf::new(&self.trusted, client_verifier)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A session that is resumed would not be proved again.
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The side that dials a worker.
    ///
    /// # Errors
    /// If the certificate and its key do not fit.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        self.client_of(Role::Worker, WORKER_NAME)
    }

    /// The side that dials a coordinator that serves.
    ///
    /// # Errors
    /// If the certificate and its key do not fit.
    pub fn client_of_service(&self) -> Result<Arc<ClientConfig>, TlsError> {
        self.client_of(Role::Service, SERVICE_NAME)
    }

    fn client_of(
        &self,
        role: Role,
        made_elsewhere: &'static str,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let named = |trusted: &Trusted| {
            let names = match trusted.cluster {
                Some(cluster) => Names::Only(role.server_name(cluster)),
                None => Names::HostOr(made_elsewhere.try_into().expect("it is a DNS name")),
            };
            Ok(NamedVerifier { inner: server_verifier(trusted)?, names })
        };
        let verifier = AnyOf::new(&self.trusted, named)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// What the holder of a certificate that was believed may be; none if it is for neither role.
    #[must_use]
    pub fn peer_role(&self, certificate: &CertificateDer<'_>) -> Option<Role> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let is = |role: Role| {
            self.trusted.iter().any(|trusted| match trusted.cluster {
                Some(cluster) => {
                    rustls::client::verify_server_name(&parsed, &role.server_name(cluster)).is_ok()
                }
                // Whom another authority certifies as a client is one that may give work.
                None => role == Role::Coordinator,
            })
        };
        [Role::Coordinator, Role::Worker].into_iter().find(|&role| is(role))
    }

    /// Whether certificates made elsewhere can be used at all, before anybody connects.
    pub(crate) fn check(
        &self,
        certificate: &Path,
        private_key: &Path,
    ) -> Result<(), IdentityError> {
        let bad =
            |path: &Path, problem: String| IdentityError::File { path: path.to_owned(), problem };
        for certificate_der in &self.chain {
            ParsedCertificate::try_from(certificate_der).map_err(|error| {
                bad(certificate, format!("a certificate cannot be read: {error}"))
            })?;
        }
        let key =
            provider().key_provider.load_private_key(self.key.clone_key()).map_err(|error| {
                bad(private_key, format!("the private key cannot be used: {error}"))
            })?;
        CertifiedKey::new(self.chain.clone(), key).keys_match().map_err(|_| {
            bad(private_key, format!("it is not the private key of {}", certificate.display()))
        })?;
        // What the peers would say later is said now.
        let Err(error) = self.verify_own() else { return Ok(()) };
        Err(bad(
            certificate,
            match Distrust::of(&error) {
                Distrust::OtherKey => "it is not signed by the authority of --tls-ca".to_owned(),
                Distrust::OtherRole => self.wanted_usages().to_owned(),
                Distrust::Clock => {
                    "it is not valid now: too old, or the clock of this host is wrong".to_owned()
                }
                other => other.to_string(),
            },
        ))
    }

    /// Looks at the own certificate as a peer with the same authorities would.
    fn verify_own(&self) -> Result<(), TlsError> {
        let (own, rest, now) = (&self.chain[0], &self.chain[1..], UnixTime::now());
        let trusted = &self.trusted[0];
        let as_server = |name: &'static str| {
            let name = name.try_into().expect("it is a DNS name");
            match server_verifier(trusted)?.verify_server_cert(own, rest, &name, &[], now) {
                // What it will be dialled by is not known here.
                Err(error) if !is_other_name(&error) => Err(error),
                _ => Ok(()),
            }
        };
        let as_client = || client_verifier(trusted)?.verify_client_cert(own, rest, now).map(drop);
        match self.role {
            Role::Worker => as_server(WORKER_NAME),
            Role::Coordinator => as_client(),
            Role::Service => as_server(SERVICE_NAME).and_then(|()| as_client()),
        }
    }

    /// What a certificate is not for that is not for this role.
    fn wanted_usages(&self) -> &'static str {
        match self.role {
            Role::Worker => "it is not for a server (extended key usage serverAuth)",
            Role::Coordinator => "it is not for a client (extended key usage clientAuth)",
            Role::Service => {
                "it is not for a server and a client (extended key usages serverAuth and clientAuth)"
            }
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn client_verifier(trusted: &Trusted) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(trusted.roots.clone(), provider())
        .build()
        .map_err(|error| TlsError::General(error.to_string()))
}

fn server_verifier(trusted: &Trusted) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(trusted.roots.clone(), provider())
        .build()
        .map_err(|error| TlsError::General(error.to_string()))
}

/// The name of a certificate counts beside its authority.
#[derive(Debug)]
struct NamedVerifier {
    inner: Arc<WebPkiServerVerifier>,
    names: Names,
}

/// What a worker's certificate must be for.
#[derive(Debug)]
enum Names {
    /// The cluster's workers.
    Only(ServerName<'static>),
    /// The host that was dialled, or any worker.
    HostOr(ServerName<'static>),
}

impl NamedVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let by = |name| self.inner.verify_server_cert(leaf, rest, name, &[], now);
        match &self.names {
            Names::Only(name) => by(name),
            Names::HostOr(name) => by(host).or_else(|error| match is_other_name(&error) {
                true => by(name).map_err(|_| error),
                false => Err(error),
            }),
        }
    }
}

/// Believes whom one of several authorities vouches for.
#[derive(Debug)]
struct AnyOf<V> {
    any_of: Vec<V>,
    /// Whether they are named by files, and not made from a cluster key.
    made_elsewhere: bool,
}

impl<V> AnyOf<V> {
    fn new(
        trusted: &[Trusted],
        verifier: impl Fn(&Trusted) -> Result<V, TlsError>,
    ) -> Result<Self, TlsError> {
        let made_elsewhere = trusted.iter().all(|trusted| trusted.cluster.is_none());
        Ok(Self { any_of: trusted.iter().map(verifier).collect::<Result<_, _>>()?, made_elsewhere })
    }

    /// The first success, or else the error that says most: that of the authority that has signed.
    fn first<T>(&self, verify: impl Fn(&V) -> Result<T, TlsError>) -> Result<T, TlsError> {
        let mut worst = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        for verifier in &self.any_of {
            match verify(verifier) {
                Ok(believed) => return Ok(believed),
                Err(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
                Err(error) => worst = error,
            }
        }
        Err(match worst {
            TlsError::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) if self.made_elsewhere => {
                let error = OtherError(Arc::new(NotOfAuthority));
                TlsError::InvalidCertificate(CertificateError::Other(error))
            }
            error => error,
        })
    }
}

/// What both kinds of verifier do with signatures, whose keys the certificates have told already: it
/// does not depend on the authority.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, TlsError> {
            let algorithms = provider().signature_verification_algorithms;
            verify_tls12_signature(message, leaf, signature, &algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, TlsError> {
            let algorithms = provider().signature_verification_algorithms;
            verify_tls13_signature(message, leaf, signature, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for AnyOf<NamedVerifier> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.first(|verifier| verifier.verify(leaf, rest, host, now))
    }

    signatures!();
}

impl ClientCertVerifier for AnyOf<Arc<dyn ClientCertVerifier>> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A client has one certificate: hints would only tell strangers what the cluster is called.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.first(|verifier| verifier.verify_client_cert(leaf, rest, now))
    }

    signatures!();
}

fn is_other_name(error: &TlsError) -> bool {
    matches!(
        error,
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        )
    )
}

impl Distrust {
    /// What an error of TLS means.
    #[must_use]
    pub fn of(error: &TlsError) -> Self {
        match error {
            TlsError::InvalidCertificate(error) => Self::of_certificate(error),
            TlsError::NoCertificatesPresented => Self::NoCertificate,
            TlsError::AlertReceived(
                AlertDescription::UnknownCA
                | AlertDescription::DecryptError
                | AlertDescription::BadCertificate,
            ) => Self::RefusesUs,
            TlsError::AlertReceived(AlertDescription::CertificateUnknown) => Self::RefusesAuthority,
            TlsError::AlertReceived(AlertDescription::UnsupportedCertificate) => Self::RefusesRole,
            TlsError::AlertReceived(AlertDescription::CertificateRequired) => {
                Self::Other("it asks for a certificate, and this side has none".to_owned())
            }
            TlsError::AlertReceived(alert) => Self::Other(format!("it refuses: {alert:?}")),
            TlsError::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
                | InvalidMessage::InvalidEmptyPayload,
            ) => Self::NotTls,
            other => Self::Other(other.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::OtherKey,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::OtherName
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::OtherRole
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Clock,
            CertificateError::Other(error) if error.0.is::<NotOfAuthority>() => {
                Self::OtherAuthority
            }
            other => Self::Other(format!("its certificate cannot be used: {other:?}")),
        }
    }

    /// The same of an error of a connection; `None` if TLS is not the cause.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Option<Self> {
        let mut cause: Option<&(dyn StdError + 'static)> = error.get_ref().map(|inner| inner as _);
        while let Some(error) = cause {
            if let Some(tls) = error.downcast_ref::<TlsError>() {
                return Some(Self::of(tls));
            }
            cause = error.source();
        }
        None
    }
}
