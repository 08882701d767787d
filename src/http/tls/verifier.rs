//! Which certificates of servers are trusted.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::errors::{Refusal, UNKNOWN_ISSUER};
use super::validity::is_self_signed;

/// Trusts what a trusted authority has issued, and the very certificates of `pgwh.ca_file` for their names: what
/// `openssl req -x509` makes is its own authority.
#[derive(Debug)]
pub(super) struct Verifier {
    authorities: Arc<WebPkiServerVerifier>,
    own: Arc<[CertificateDer<'static>]>,
}

impl Verifier {
    pub fn new(
        roots: Arc<RootCertStore>,
        own: Arc<[CertificateDer<'static>]>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Verifier, String> {
        let authorities = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        Ok(Verifier { authorities: authorities.map_err(|error| error.to_string())?, own })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(Error::InvalidCertificate(CertificateError::Other(other))) if is_authority(&other) => {
                // Its dates have been looked at before that.
                if !self.own.iter().any(|own| own == end_entity) {
                    return refuse(
                        "the server's certificate is its own authority; to trust it, add it to pgwh.ca_file",
                    );
                }
                rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) if is_self_signed(end_entity) => {
                refuse("the server's certificate is self-signed; to trust it, add it to pgwh.ca_file")
            }
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) if intermediates.is_empty() => {
                refuse(&format!(
                    "{UNKNOWN_ISSUER}, and a server has to send the intermediate certificate, which this one does not"
                ))
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

fn is_authority(OtherError(error): &OtherError) -> bool {
    error.to_string().contains("CaUsedAsEndEntity")
}

fn refuse(why: &str) -> Result<ServerCertVerified, Error> {
    let refusal = OtherError(Arc::new(Refusal(why.to_owned())));
    Err(Error::InvalidCertificate(CertificateError::Other(refusal)))
}
