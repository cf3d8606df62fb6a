//! Mutual TLS 1.3: the only file that makes rustls configurations and understands its errors.
//!
//! Each side believes certificates of the trusted authorities alone. The client asks for a worker's
//! name besides; what a client may do, the server decides by [`peer_role`] for each call.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    Error as TlsError, InvalidMessage, ServerConfig, SignatureScheme,
};

use crate::identity::{Identity, IdentityError, Trusted};
use crate::role::Role;

/// What is spoken inside: HTTP/2.
const PROTOCOL: &[u8] = b"h2";

/// With certificates made elsewhere a worker may be certified for this name instead of its host's, as
/// members are dialled by address.
const WORKER_NAME: &str = "worker.widemap.internal";

/// Why a peer is not believed, or does not believe us, from this side's point of view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Its certificate is of another authority.
    #[error("its certificate is of another cluster key")]
    OtherKey,
    /// It says the same of ours.
    #[error("it does not believe this side's certificate: it has another cluster key")]
    RefusesUs,
    /// It says that ours is for another role.
    #[error("it does not accept this side's certificate: it is for another role")]
    RefusesRole,
    /// Its certificate is for another role.
    #[error("its certificate is for another role")]
    OtherRole,
    /// Its certificate is for another host.
    #[error("its certificate is neither for the host that was dialled nor for {WORKER_NAME}")]
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
        let any_of = self.trusted.iter().map(client_verifier).collect::<Result<_, _>>()?;
        let verifier = ClientVerifier { any_of };
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
        let named = |trusted: &Trusted| {
            let names = match trusted.cluster {
                Some(cluster) => Names::Only(Role::Worker.server_name(cluster)),
                None => Names::HostOr(WORKER_NAME.try_into().expect("it is a DNS name")),
            };
            Ok(NamedVerifier { inner: server_verifier(trusted)?, names })
        };
        let any_of = self.trusted.iter().map(named).collect::<Result<_, TlsError>>()?;
        let verifier = ServerVerifier { any_of };
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
                Distrust::OtherRole => match self.role {
                    Role::Worker => {
                        "it is not for a server (extended key usage serverAuth)".to_owned()
                    }
                    Role::Coordinator => {
                        "it is not for a client (extended key usage clientAuth)".to_owned()
                    }
                },
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
        match self.role {
            Role::Worker => {
                let name = WORKER_NAME.try_into().expect("it is a DNS name");
                match server_verifier(trusted)?.verify_server_cert(own, rest, &name, &[], now) {
                    // What it will be dialled by is not known here.
                    Err(error) if !is_other_name(&error) => Err(error),
                    _ => Ok(()),
                }
            }
            Role::Coordinator => {
                client_verifier(trusted)?.verify_client_cert(own, rest, now).map(drop)
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

/// Believes a worker that one of several authorities vouches for.
#[derive(Debug)]
struct ServerVerifier {
    any_of: Vec<NamedVerifier>,
}

/// Believes a client that one of several authorities vouches for.
#[derive(Debug)]
struct ClientVerifier {
    any_of: Vec<Arc<dyn ClientCertVerifier>>,
}

/// The first success, or else the error that says most: that of the authority that has signed.
fn first<T>(results: impl Iterator<Item = Result<T, TlsError>>) -> Result<T, TlsError> {
    let mut worst = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
    for result in results {
        match result {
            Ok(believed) => return Ok(believed),
            Err(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
            Err(error) => worst = error,
        }
    }
    Err(worst)
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        first(self.any_of.iter().map(|verifier| verifier.verify(leaf, rest, host, now)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.any_of[0].inner.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.any_of[0].inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any_of[0].inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for ClientVerifier {
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
        first(self.any_of.iter().map(|verifier| verifier.verify_client_cert(leaf, rest, now)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.any_of[0].verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.any_of[0].verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any_of[0].supported_verify_schemes()
    }
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::ExtendedKeyUsagePurpose;
    use rustls::{ClientConnection, ServerConnection};

    use super::*;
    use crate::authority::Authority;
    use crate::bundle;
    use crate::key::{self, ClusterKey, KeyRing};

    /// A key file with these keys, of a directory that goes with it.
    fn file(keys: &[&ClusterKey]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let text: String = keys.iter().map(|key| format!("{}\n", *key.to_text())).collect();
        key::write_new(&path, &text).unwrap();
        (directory, path)
    }

    fn identity(keys: &[&ClusterKey], role: Role) -> Identity {
        let (_directory, path) = file(keys);
        Identity::of_key_file(&path, role).unwrap()
    }

    fn new_key() -> ClusterKey {
        ClusterKey::generate().unwrap()
    }

    /// What either side makes of a handshake between them: first the client, then the server.
    fn shake(
        client: &Identity,
        server: &Identity,
    ) -> (Result<(), Distrust>, Result<Role, Distrust>) {
        let host = "10.0.0.1".try_into().unwrap();
        let mut near = ClientConnection::new(client.client().unwrap(), host).unwrap();
        let mut far = ServerConnection::new(server.server().unwrap()).unwrap();
        let (mut near_ends, mut far_ends) = (Ok(()), Ok(()));
        for _ in 0..4 {
            let mut bytes = Vec::new();
            while near.wants_write() {
                near.write_tls(&mut bytes).unwrap();
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() && far_ends.is_ok() {
                far.read_tls(&mut rest).unwrap();
                far_ends = far.process_new_packets().map(drop).map_err(|e| Distrust::of(&e));
            }
            let mut bytes = Vec::new();
            while far.wants_write() {
                far.write_tls(&mut bytes).unwrap();
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() && near_ends.is_ok() {
                near.read_tls(&mut rest).unwrap();
                near_ends = near.process_new_packets().map(drop).map_err(|e| Distrust::of(&e));
            }
        }
        let role = far_ends.map(|()| {
            let certificates = far.peer_certificates().expect("the client is believed");
            server.peer_role(&certificates[0]).expect("it has a role")
        });
        (near_ends, role)
    }

    #[test]
    fn members_of_one_cluster_believe_each_other() {
        let key = new_key();
        let (client, server) =
            (identity(&[&key], Role::Coordinator), identity(&[&key], Role::Worker));
        assert_eq!(shake(&client, &server), (Ok(()), Ok(Role::Coordinator)));
        assert_eq!(client.cluster(), Some(key.cluster()));
    }

    #[test]
    fn another_key_is_named_on_both_sides() {
        let (client, server) =
            (identity(&[&new_key()], Role::Coordinator), identity(&[&new_key()], Role::Worker));
        assert_eq!(shake(&client, &server), (Err(Distrust::OtherKey), Err(Distrust::RefusesUs)));
    }

    #[test]
    fn a_certificate_is_for_one_role() {
        let key = new_key();
        let (worker, coordinator) =
            (identity(&[&key], Role::Worker), identity(&[&key], Role::Coordinator));
        // A worker's certificate used by a client: the client learns of it after its handshake.
        let refused = (Err(Distrust::RefusesRole), Err(Distrust::OtherRole));
        assert_eq!(shake(&worker, &worker), refused);
        // A coordinator's certificate used by a server.
        let (client, _) = shake(&coordinator, &coordinator);
        assert_eq!(client, Err(Distrust::OtherRole));
    }

    #[test]
    fn a_bundle_serves_and_does_nothing_else() {
        let key = new_key();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bundle");
        key::write_new(&path, &bundle::make(&KeyRing::of(key.clone())).unwrap()).unwrap();
        let server = Identity::of_key_file(&path, Role::Worker).unwrap();
        let client = identity(&[&key], Role::Coordinator);
        assert_eq!(shake(&client, &server), (Ok(()), Ok(Role::Coordinator)));
        assert_eq!(server.cluster(), Some(key.cluster()));
        let refused = Identity::of_key_file(&path, Role::Coordinator).unwrap_err();
        assert!(matches!(refused, IdentityError::WorkerOnly(_)));
        // Used as a client all the same, it is not believed.
        assert_eq!(shake(&server, &identity(&[&key], Role::Worker)).1, Err(Distrust::OtherRole));
    }

    #[test]
    fn two_keys_are_believed_while_they_are_changed() {
        let (old, new) = (new_key(), new_key());
        let steps: [&[&ClusterKey]; 4] = [&[&old], &[&old, &new], &[&new, &old], &[&new]];
        for pair in steps.windows(2) {
            for (client, server) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                let client = identity(client, Role::Coordinator);
                let server = identity(server, Role::Worker);
                assert_eq!(shake(&client, &server), (Ok(()), Ok(Role::Coordinator)));
            }
        }
        let client = identity(&[&old], Role::Coordinator);
        assert_eq!(
            shake(&client, &identity(&[&new, &old], Role::Worker)).0,
            Err(Distrust::OtherKey)
        );
    }

    #[test]
    fn a_certificate_of_no_role_has_none() {
        let key = new_key();
        let server = identity(&[&key], Role::Worker);
        let leaf = Authority::of(&key)
            .unwrap()
            .mint_for("somebody.example", ExtendedKeyUsagePurpose::ClientAuth)
            .unwrap();
        assert_eq!(server.peer_role(leaf.certificate.der()), None);
        let other = Authority::of(&key).unwrap().mint(Role::Worker).unwrap();
        assert_eq!(server.peer_role(other.certificate.der()), Some(Role::Worker));
    }

    #[test]
    fn certificates_made_elsewhere_are_checked_before_anybody_connects() {
        let directory = tempfile::tempdir().unwrap();
        let key = new_key();
        let authority = Authority::of(&key).unwrap();
        let save = |name: &str, text: &str| {
            let path = directory.path().join(name);
            key::write_new(&path, text).unwrap();
            path
        };
        let ca = save("ca", &authority.certificate().pem());
        let other_ca = save("other", &Authority::of(&new_key()).unwrap().certificate().pem());
        let server = authority
            .mint_for("worker.widemap.internal", ExtendedKeyUsagePurpose::ServerAuth)
            .unwrap();
        let client = authority.mint_for("anna", ExtendedKeyUsagePurpose::ClientAuth).unwrap();
        let by_address =
            authority.mint_for("10.0.0.1", ExtendedKeyUsagePurpose::ServerAuth).unwrap();
        let elsewhere =
            authority.mint_for("10.0.0.2", ExtendedKeyUsagePurpose::ServerAuth).unwrap();
        let mut paths = Vec::new();
        for (name, leaf) in [
            ("server", &server),
            ("client", &client),
            ("address", &by_address),
            ("elsewhere", &elsewhere),
        ] {
            paths.push((
                save(name, &leaf.certificate.pem()),
                save(&format!("{name}-key"), &leaf.key.serialize_pem()),
            ));
        }
        let find = |pair: &(PathBuf, PathBuf), ca: &PathBuf, role| {
            let wanted = crate::Wanted {
                key: None,
                certificate: Some(pair.0.clone()),
                private_key: Some(pair.1.clone()),
                authority: Some(ca.clone()),
            };
            Identity::find(&wanted, role).map(|found| found.expect("it was asked for"))
        };
        let coordinator = find(&paths[1], &ca, Role::Coordinator).unwrap();
        for pair in [&paths[0], &paths[2]] {
            let worker = find(pair, &ca, Role::Worker).unwrap();
            assert_eq!(shake(&coordinator, &worker), (Ok(()), Ok(Role::Coordinator)));
        }
        let worker = find(&paths[3], &ca, Role::Worker).unwrap();
        assert_eq!(shake(&coordinator, &worker).0, Err(Distrust::OtherName));
        let crossed = (paths[0].0.clone(), paths[1].1.clone());
        for (problem, found) in [
            ("not for a client", find(&paths[0], &ca, Role::Coordinator)),
            ("not for a server", find(&paths[1], &ca, Role::Worker)),
            ("not signed by the authority", find(&paths[0], &other_ca, Role::Worker)),
            ("not the private key of", find(&crossed, &ca, Role::Worker)),
            (
                "a certificate in PEM form",
                find(&(paths[0].1.clone(), paths[0].1.clone()), &ca, Role::Worker),
            ),
            (
                "a private key in PEM form",
                find(&(paths[0].0.clone(), paths[0].0.clone()), &ca, Role::Worker),
            ),
        ] {
            let error = found.unwrap_err().to_string();
            assert!(error.contains(problem), "{problem}: {error}");
        }
    }
}
