//! A certificate that the cluster's authority has signed for a client, but for no coordinator: it gets
//! through the handshake, and then nothing. Nobody has one by our own means, so the authority is made
//! here from the key once more, by what is written of it.

use std::io;
use std::sync::Arc;

use hkdf::Hkdf;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, PKCS_ED25519};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::Sha256;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};
use widemap_proto::session::{CoordinatorHello, Order};
use widemap_proto::wire::ToWorker;
use widemap_proto::wire::worker_client::WorkerClient;
use widemap_tests::WorkerProcess;

use crate::support::Key;

/// A certificate for a client of this name, of the authority that follows from the key.
fn certify(key: &Key, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let text = std::fs::read_to_string(key.path()).unwrap();
    let digits = text.lines().last().unwrap().strip_prefix("widemap-key-v1:").unwrap();
    let digit = |pair: usize| u8::from_str_radix(&digits[2 * pair..2 * pair + 2], 16).unwrap();
    let secret: Vec<u8> = (0..32).map(digit).collect();
    let mut pkcs8 = vec![
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    let mut seed = [0; 32];
    Hkdf::<Sha256>::new(None, &secret).expand(b"widemap/v1/ca", &mut seed).unwrap();
    pkcs8.extend_from_slice(&seed);
    let der = PrivatePkcs8KeyDer::from(pkcs8);
    let authority = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let cluster = format!("Widemap cluster {}", key.cluster());
    params.distinguished_name.push(DnType::CommonName, cluster);
    let issuer = Issuer::new(params, authority);
    let own = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&own, &issuer).unwrap();
    (certificate.der().clone(), PrivateKeyDer::try_from(own.serialize_der()).unwrap())
}

/// A channel to the worker with that certificate.
async fn channel(
    worker: &WorkerProcess,
    key: &Key,
    authority: &CertificateDer<'static>,
    name: &str,
) -> Channel {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    let (certificate, private_key) = certify(key, name);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = builder.with_client_auth_cert(vec![certificate], private_key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let server = ServerName::try_from(format!("worker.{}.internal", key.cluster())).unwrap();
    let address = worker.address().to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let (connector, server, address) = (connector.clone(), server.clone(), address.clone());
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(server, stream).await?))
        }
    });
    Endpoint::from_static("http://worker").connect_with_connector(connect).await.unwrap()
}

/// What the worker answers to one who wants to open a session: how it begins, or why not.
async fn session(
    worker: &WorkerProcess,
    key: &Key,
    authority: &CertificateDer<'static>,
    name: &str,
) -> Result<(), tonic::Status> {
    let mut client = WorkerClient::new(channel(worker, key, authority, name).await);
    let hello = Order::Hello(CoordinatorHello {
        version: widemap_proto::VERSION,
        build: "test".to_owned(),
        coordinator: widemap_common::ids::CoordinatorId(1),
        epoch: widemap_common::ids::Epoch(1),
        linger_ms: 0,
    });
    let orders = tokio_stream::StreamExt::chain(
        tokio_stream::once(ToWorker::from(vec![hello])),
        tokio_stream::pending(),
    );
    let mut reports = client.session(orders).await?.into_inner();
    reports.message().await?.map(drop).ok_or_else(|| tonic::Status::unavailable("it ended"))
}

#[tokio::test]
async fn a_client_that_is_no_coordinator_gets_nothing() {
    let key = Key::new();
    let ann =
        WorkerProcess::start_with("ann", 1, &["--listen", "127.0.0.1:0", "--key", key.path()]);
    let bundle = std::fs::read(key.bundle()).unwrap();
    let authority = CertificateDer::pem_slice_iter(&bundle).nth(1).unwrap().unwrap();
    let cluster = key.cluster();
    for (name, what) in [
        (format!("worker.{cluster}.internal"), "this certificate is a worker's"),
        ("somebody.example".to_owned(), "this certificate is for no role"),
        ("coordinator.0123456789abcdef.internal".to_owned(), "this certificate is for no role"),
    ] {
        let refused = session(&ann, &key, &authority, &name).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}: {refused:?}");
        assert!(refused.message().contains(what), "{name}: {refused:?}");
    }
    // The same by the name of a coordinator is let in: the name is what was missing.
    let name = format!("coordinator.{cluster}.internal");
    session(&ann, &key, &authority, &name).await.unwrap();
}
