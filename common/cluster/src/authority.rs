//! The certificate authority that follows from a cluster key: every holder of the key makes the same
//! one, and certifies itself with it.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use crate::cluster_id::ClusterId;
use crate::key::ClusterKey;
use crate::role::Role;

/// What stands before the 32 bytes of an Ed25519 private key in PKCS#8 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The first and the last year of every certificate. A member mints its own at each start, and a
/// stolen one is ended by another key; so no clock, however wrong, need keep a cluster apart.
const VALID_YEARS: (i32, i32) = (2000, 2200);

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate: {0}")]
pub struct MintError(#[from] rcgen::Error);

/// A cluster's certificate authority.
pub(crate) struct Authority {
    cluster: ClusterId,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key.
pub(crate) struct Leaf {
    pub(crate) certificate: Certificate,
    pub(crate) key: KeyPair,
}

impl Authority {
    /// The authority of a key: the same on every host.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn of(key: &ClusterKey) -> Result<Self, MintError> {
        let cluster = key.cluster();
        let mut pkcs8 = Zeroizing::new(PKCS8_PREFIX.to_vec());
        pkcs8.extend_from_slice(key.authority_seed().as_slice());
        let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)?;
        let mut params = params(&format!("Widemap cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&pair)?;
        Ok(Self { cluster, certificate, issuer: Issuer::new(params, pair) })
    }

    /// What proves the others: no secret.
    pub(crate) fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// A new certificate for one role, with a private key of its own.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn mint(&self, role: Role) -> Result<Leaf, MintError> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let usages = match role {
            Role::Worker => vec![ServerAuth],
            Role::Coordinator => vec![ClientAuth],
            Role::Service => vec![ServerAuth, ClientAuth],
        };
        self.mint_for(&role.subject(self.cluster), usages)
    }

    pub(crate) fn mint_for(
        &self,
        subject: &str,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<Leaf, MintError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = params(subject);
        params.subject_alt_names = CertificateParams::new([subject.to_owned()])?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { certificate, key })
    }

    #[cfg(test)]
    pub(crate) fn private_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) =
        (date_time_ymd(VALID_YEARS.0, 1, 1), date_time_ymd(VALID_YEARS.1, 1, 1));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
