//! What goes wrong with TLS, in words that one can act on.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error, OtherError, PeerIncompatible};

/// Names of a certificate that an error lists.
const MAX_SHOWN_NAMES: usize = 10;
/// The longest name there is, in characters.
const MAX_NAME: usize = 255;

/// A refusal of our own, in words already.
#[derive(Clone, Debug)]
pub(super) struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Says why a connection could not be secured, or could not go on.
pub(crate) fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => describe_certificate(error),
        Error::AlertReceived(alert) => describe_alert(*alert),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerSentHelloRetryRequestWithUnknownExtension,
        ) => "the server supports neither TLS 1.2 nor TLS 1.3".to_owned(),
        Error::PeerIncompatible(_) => {
            "no version, cipher and signature algorithm is supported by both sides".to_owned()
        }
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            "the server does not answer in TLS; it may expect http on this port".to_owned()
        }
        Error::NoCertificatesPresented => "the server shows no certificate".to_owned(),
        Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_)
        | Error::DecryptError
        | Error::PeerSentOversizedRecord => "the server does not keep to the rules of TLS".to_owned(),
        Error::Other(OtherError(inner)) => match inner.downcast_ref::<Refusal>() {
            Some(refusal) => refusal.to_string(),
            None => "TLS failed".to_owned(),
        },
        Error::General(text) => text.clone(),
        _ => "TLS failed".to_owned(),
    }
}

fn describe_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate, or one that it was issued by, has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet by the clock of this server".to_owned()
        }
        CertificateError::Revoked => "the server's certificate has been revoked".to_owned(),
        CertificateError::UnknownIssuer => UNKNOWN_ISSUER.to_owned(),
        CertificateError::NotValidForName => {
            "the server's certificate is not valid for this name".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let more = presented.len().saturating_sub(MAX_SHOWN_NAMES);
            let presented: Vec<_> =
                presented.iter().filter_map(|name| bare_name(name)).take(MAX_SHOWN_NAMES).collect();
            let names = match (presented.is_empty(), more) {
                (true, _) => "no name".to_owned(),
                (false, 0) => presented.join(", "),
                (false, more) => format!("{} and {more} more", presented.join(", ")),
            };
            format!(
                "the server's certificate is not valid for {}, only for {names}",
                expected.to_str()
            )
        }
        CertificateError::BadSignature => {
            "a signature of the server is not valid: its certificate is issued by another authority of the same name as \
             a trusted one, or has an RSA key of fewer than 2048 bits, which is not supported"
                .to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the server's certificate, or one that it was issued by, has a key or signature of a kind that is \
             not supported; RSA from 2048 bits on, ECDSA with P-256 or P-384, and Ed25519 are"
                .to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not made for servers".to_owned()
        }
        CertificateError::BadEncoding => "the server's certificate cannot be read".to_owned(),
        CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<Refusal>() {
            Some(refusal) => refusal.to_string(),
            None => describe_chain(&inner.to_string()).to_owned(),
        },
        _ => "the server's certificate is not acceptable".to_owned(),
    }
}

/// What is wrong with a chain, for which the library has a name only.
fn describe_chain(name: &str) -> &'static str {
    let is = |start: &str| name.starts_with(start);
    if is("EndEntityUsedAsCa") || is("PathLenConstraintViolated") {
        "the server's certificate is issued by a certificate that may not issue any, or not at this depth"
    } else if is("NameConstraintViolation") {
        "the authority that issued the server's certificate may not issue it for this name"
    } else if is("UnsupportedCriticalExtension") {
        "the server's certificate, or one that it was issued by, has a critical extension that is not supported"
    } else if is("UnsupportedCertVersion") {
        "the server's certificate, or one that it was issued by, is not of X.509 version 3"
    } else if is("Maximum") {
        "the server's chain of certificates is too long or too tangled"
    } else {
        "the server's certificate, or one that it was issued by, is malformed"
    }
}

/// Why a chain that ends nowhere is refused.
pub(super) const UNKNOWN_ISSUER: &str =
    "the issuer of the server's certificate is not trusted; a private authority belongs into pgwh.ca_file";

fn describe_alert(alert: AlertDescription) -> String {
    let words = match alert {
        AlertDescription::ProtocolVersion => "the server supports neither TLS 1.2 nor TLS 1.3",
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "the server refuses the connection: it supports none of our ciphers, groups and kinds of keys, or wants a client certificate"
        }
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "the server wants a client certificate, and the subscription has none"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied => {
            "the server does not accept the client certificate, or wants one that the subscription does not have"
        }
        AlertDescription::UnrecognisedName => "the server does not know the host name",
        AlertDescription::NoApplicationProtocol => "the server does not speak HTTP/1.1",
        AlertDescription::InternalError => "the server reports an error of its own",
        _ => return format!("the server ended TLS with alert {}", u8::from(alert)),
    };
    words.to_owned()
}

/// A DNS name or address in a certificate, without what says which of them it is.
fn bare_name(name: &str) -> Option<String> {
    let name = name
        .strip_prefix("DnsName(\"")
        .and_then(|name| name.strip_suffix("\")"))
        .or_else(|| name.strip_prefix("IpAddress(").and_then(|name| name.strip_suffix(')')))?;
    Some(name.chars().filter(|letter| !letter.is_control()).take(MAX_NAME).collect())
}
