//! What a worker can be given instead of the key: a certificate that lets it serve, and nothing more.
//!
//! A line that names the clusters, then PEM: the worker's certificate, the authorities it trusts, its
//! private key.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::authority::{Authority, MintError};
use crate::cluster_id::ClusterId;
use crate::key::KeyRing;
use crate::role::Role;

/// What every bundle begins with.
pub(crate) const PREFIX: &str = "widemap-worker-bundle-v1:";

/// A worker's certificate, its private key, and the authorities that it trusts.
#[derive(Debug)]
pub struct WorkerBundle {
    /// The clusters that the authorities belong to, in their order.
    pub(crate) clusters: Vec<ClusterId>,
    /// The worker's own certificate.
    pub(crate) leaf: CertificateDer<'static>,
    /// Its private key.
    pub(crate) key: PrivateKeyDer<'static>,
    /// The authorities.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
}

/// Why a worker bundle cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Its first line names no cluster.
    #[error("the worker bundle is damaged: its first line names no cluster")]
    Clusters,
    /// A certificate cannot be read, or one is missing.
    #[error(
        "the worker bundle is damaged: it has a certificate of its own and one for each cluster"
    )]
    Certificates,
    /// The private key cannot be read.
    #[error("the worker bundle is damaged: it has one private key")]
    PrivateKey,
}

impl Clone for WorkerBundle {
    fn clone(&self) -> Self {
        Self {
            clusters: self.clusters.clone(),
            leaf: self.leaf.clone(),
            key: self.key.clone_key(),
            authorities: self.authorities.clone(),
        }
    }
}

/// Whether a text is meant to be a bundle.
pub(crate) fn is_bundle(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// Makes a worker's bundle from the keys of a key file: certified by the own key, trusting all of them.
///
/// # Errors
/// If the certificates cannot be made.
pub fn make(ring: &KeyRing) -> Result<Zeroizing<String>, MintError> {
    let own = Authority::of(ring.own())?;
    let leaf = own.mint(Role::Worker)?;
    let mut text = Zeroizing::new(String::from(PREFIX));
    for key in ring.all() {
        text.push_str(&format!(" {}", key.cluster()));
    }
    text.push('\n');
    text.push_str(&leaf.certificate.pem());
    for key in ring.all() {
        text.push_str(&Authority::of(key)?.certificate().pem());
    }
    text.push_str(&Zeroizing::new(leaf.key.serialize_pem()));
    Ok(text)
}

impl WorkerBundle {
    /// The clusters that it is believed in, the own one first.
    #[must_use]
    pub fn clusters(&self) -> &[ClusterId] {
        &self.clusters
    }

    /// Reads a bundle.
    ///
    /// # Errors
    /// What is wrong with it, and nothing of what stands there.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let first = text.lines().next().and_then(|line| line.strip_prefix(PREFIX));
        let clusters = first.ok_or(BundleError::Clusters)?.split_whitespace().map(str::parse);
        let clusters: Vec<ClusterId> =
            clusters.collect::<Result<_, _>>().map_err(|_| BundleError::Clusters)?;
        if clusters.is_empty() {
            return Err(BundleError::Clusters);
        }
        let certificates =
            CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
        let mut certificates = certificates.map_err(|_| BundleError::Certificates)?;
        if certificates.len() != clusters.len() + 1 {
            return Err(BundleError::Certificates);
        }
        let leaf = certificates.remove(0);
        let mut keys = PrivateKeyDer::pem_slice_iter(text.as_bytes());
        let (Some(Ok(key)), None) = (keys.next(), keys.next()) else {
            return Err(BundleError::PrivateKey);
        };
        Ok(Self { clusters, leaf, key, authorities: certificates })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{ClusterKey, parse};

    fn ring() -> KeyRing {
        let keys = [ClusterKey::generate().unwrap(), ClusterKey::generate().unwrap()];
        parse(&format!("{}\n{}\n", *keys[0].to_text(), *keys[1].to_text())).unwrap()
    }

    #[test]
    fn a_bundle_can_be_read_back_and_holds_no_key() {
        let ring = ring();
        let text = make(&ring).unwrap();
        let bundle = WorkerBundle::parse(&text).unwrap();
        assert_eq!(bundle.clusters, ring.all().iter().map(ClusterKey::cluster).collect::<Vec<_>>());
        assert_eq!(bundle.authorities.len(), 2);
        for key in ring.all() {
            assert!(!text.contains(&key.to_text()["widemap-key-v1:".len()..]));
            let own = Authority::of(key).unwrap().private_pem();
            assert!(!text.contains(own.lines().nth(1).unwrap()));
        }
    }

    #[test]
    fn a_damaged_bundle_says_where() {
        let text = make(&ring()).unwrap();
        let without =
            |from: &str, to: &str| WorkerBundle::parse(&text.replacen(from, to, 1)).unwrap_err();
        assert_eq!(without(" ", " x"), BundleError::Clusters);
        assert_eq!(without("BEGIN CERTIFICATE", "BEGIN CERTIFICATES"), BundleError::Certificates);
        let damaged = WorkerBundle::parse(&text.replace("PRIVATE", "PUBLIC"));
        assert_eq!(damaged.unwrap_err(), BundleError::PrivateKey);
        assert_eq!(WorkerBundle::parse(PREFIX).unwrap_err(), BundleError::Clusters);
        assert_eq!(WorkerBundle::parse("").unwrap_err(), BundleError::Clusters);
    }
}
