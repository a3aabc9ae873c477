//! Who a peer is, by its certificate.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Any, Decode};

use crate::error::Error;

/// `id-at-commonName` (RFC 5280, A.1).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Who a peer says it is in the certificate that it was let in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The common name of the subject; if there are several, the last one, as for Kubernetes' API
    /// server.
    pub common_name: Option<String>,
    /// The certificate is not valid any more after this time.
    pub not_after: SystemTime,
}

impl PeerCertificate {
    /// Reads a certificate. It verifies nothing: the TLS handshake has.
    ///
    /// # Errors
    /// [`Error::PeerCertificate`] when this is no X.509 certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let certificate = Certificate::from_der(certificate)
            .map_err(|source| Error::PeerCertificate { source })?
            .tbs_certificate;
        let attributes = certificate.subject.0.iter().flat_map(|name| name.0.iter());
        let mut common_names = attributes.filter(|attribute| attribute.oid == COMMON_NAME);
        Ok(Self {
            common_name: common_names.next_back().and_then(|attribute| text(&attribute.value)),
            not_after: certificate.validity.not_after.to_system_time(),
        })
    }
}

/// The text of an attribute in one of the types that are in use.
fn text(value: &Any) -> Option<String> {
    let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
    let printable =
        || value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned());
    let ia5 = || value.decode_as::<Ia5StringRef<'_>>().map(|text| text.as_str().to_owned());
    utf8.or_else(|_| printable()).or_else(|_| ia5()).ok()
}
