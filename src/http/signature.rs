//! Signatures of Standard Webhooks over `<id>.<timestamp>.<body>`: version 1 by HMAC-SHA256, version 1a by Ed25519.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use ring::signature::{Ed25519KeyPair, KeyPair};
use sha2::Sha256;

use super::user_error::Problem;
use crate::prefetch::prefetch;

/// What every symmetric secret of Standard Webhooks begins with.
const SYMMETRIC: &str = "whsec_";
/// What every private key of Standard Webhooks begins with.
const PRIVATE: &str = "whsk_";
/// What every public key of Standard Webhooks begins with.
const PUBLIC: &str = "whpk_";

/// The length of a generated symmetric key in bytes, as the specification's libraries make them.
const GENERATED_LENGTH: usize = 24;
/// The length of an Ed25519 seed in bytes; a private key is that and the public key, 64 bytes together.
const SEED_LENGTH: usize = 32;

/// How requests are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// HMAC-SHA256 by a key that both sides have.
    #[default]
    V1,
    /// Ed25519: who has the public key can verify and not sign.
    V1a,
}

impl Scheme {
    /// Reads `v1` or `v1a`.
    pub fn parse(word: &str) -> Result<Scheme, Problem> {
        match word.trim().to_lowercase().as_str() {
            "v1" => Ok(Scheme::V1),
            "v1a" => Ok(Scheme::V1a),
            _ => Err(Problem::new(
                "unknown kind of signature",
                format!("The signature is \"{word}\"; there are v1 (HMAC-SHA256) and v1a (Ed25519)."),
                "For example: signature => 'v1a'",
            )),
        }
    }
}

/// One signing key, ready to sign. Never printed.
#[derive(Clone)]
pub struct SigningKey {
    algorithm: Algorithm,
    /// The second since 1970 from which it signs no more.
    until: u64,
}

#[derive(Clone)]
enum Algorithm {
    /// The keyed state, so that a signature doesn't begin by hashing the key again.
    Hmac(Box<Hmac<Sha256>>),
    Ed25519(Arc<Ed25519KeyPair>),
}

impl SigningKey {
    /// Reads a secret as users write it: `whsec_` and 24 to 64 bytes in base64, or `whsk_` and the 64 bytes of an
    /// Ed25519 private key in base64.
    ///
    /// The secret itself is never part of the error.
    pub fn parse(secret: &str) -> Result<SigningKey, Problem> {
        let algorithm = match secret.strip_prefix(PRIVATE) {
            Some(encoded) => Algorithm::Ed25519(Arc::new(private_key(encoded)?)),
            None => Algorithm::Hmac(Box::new(symmetric_key(secret)?)),
        };
        Ok(SigningKey { algorithm, until: u64::MAX })
    }

    /// The same key, which signs no more from that time on.
    pub fn until(self, time: SystemTime) -> SigningKey {
        SigningKey { until: time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(), ..self }
    }

    /// Has the processor bring what it signs by into its caches.
    pub(super) fn prefetch(&self) {
        match &self.algorithm {
            Algorithm::Hmac(keyed) => prefetch(&**keyed),
            Algorithm::Ed25519(pair) => prefetch(&**pair),
        }
    }

    /// How it signs.
    pub fn scheme(&self) -> Scheme {
        match self.algorithm {
            Algorithm::Hmac(_) => Scheme::V1,
            Algorithm::Ed25519(_) => Scheme::V1a,
        }
    }

    /// What receivers verify by, when that is no secret: `whpk_` and the public key in base64.
    pub fn public_key(&self) -> Option<String> {
        match &self.algorithm {
            Algorithm::Hmac(_) => None,
            Algorithm::Ed25519(pair) => Some(format!("{PUBLIC}{}", STANDARD.encode(pair.public_key()))),
        }
    }

    /// Appends `v1,<signature>` or `v1a,<signature>` of one request to `out`.
    fn sign(&self, out: &mut String, id: &str, timestamp: u64, body: &[u8]) {
        let mut number = itoa::Buffer::new();
        let timestamp = number.format(timestamp);
        let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        match &self.algorithm {
            Algorithm::Hmac(keyed) => {
                let mut mac = Hmac::clone(keyed);
                parts.iter().for_each(|part| mac.update(part));
                out.push_str("v1,");
                STANDARD.encode_string(mac.finalize().into_bytes(), out);
            }
            Algorithm::Ed25519(pair) => {
                out.push_str("v1a,");
                STANDARD.encode_string(pair.sign(&parts.concat()), out);
            }
        }
    }
}

fn symmetric_key(secret: &str) -> Result<Hmac<Sha256>, Problem> {
    let refuse = |detail: &str| {
        Problem::new(
            "invalid signing secret",
            detail,
            "Leave \"secret\" out to have one generated, or give 'whsec_' followed by 24 to 64 random bytes in base64.",
        )
    };
    let encoded = secret
        .strip_prefix(SYMMETRIC)
        .ok_or_else(|| refuse("The secret begins neither with \"whsec_\" nor with \"whsk_\"."))?;
    let key = STANDARD.decode(encoded).map_err(|_| refuse("What follows \"whsec_\" is not base64."))?;
    if !(24..=64).contains(&key.len()) {
        return Err(refuse(&format!("The secret holds {} bytes.", key.len())));
    }
    Hmac::new_from_slice(&key).map_err(|_| refuse("The secret cannot be used as a key."))
}

fn private_key(encoded: &str) -> Result<Ed25519KeyPair, Problem> {
    let refuse = |detail: &str| {
        Problem::new(
            "invalid signing secret",
            detail,
            "Give signature => 'v1a' and no secret to have one generated, or give 'whsk_' followed by an Ed25519 private key (seed and public key, 64 bytes) in base64.",
        )
    };
    let bytes = STANDARD.decode(encoded).map_err(|_| refuse("What follows \"whsk_\" is not base64."))?;
    let (seed, public) = bytes
        .split_at_checked(SEED_LENGTH)
        .filter(|(_, public)| public.len() == SEED_LENGTH)
        .ok_or_else(|| refuse(&format!("The secret holds {} bytes, not 64.", bytes.len())))?;
    Ed25519KeyPair::from_seed_and_public_key(seed, public)
        .map_err(|_| refuse("Its two halves do not belong together."))
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

/// The value of the header `webhook-signature`: one signature a key that signs at that time, separated by spaces.
///
/// `timestamp` is in seconds since 1970 and the same as in the header `webhook-timestamp`.
pub fn sign(keys: &[SigningKey], id: &str, timestamp: u64, body: &[u8]) -> String {
    // A SHA-256 in base64 has 44 characters.
    let mut out = String::with_capacity(keys.len() * 48);
    for key in keys.iter().filter(|key| timestamp < key.until) {
        if !out.is_empty() {
            out.push(' ');
        }
        key.sign(&mut out, id, timestamp, body);
    }
    out
}

/// A new secret from the system's source of randomness.
pub fn generate_secret(scheme: Scheme) -> Result<String, getrandom::Error> {
    match scheme {
        Scheme::V1 => {
            let mut key = [0u8; GENERATED_LENGTH];
            getrandom::fill(&mut key)?;
            Ok(format!("{SYMMETRIC}{}", STANDARD.encode(key)))
        }
        Scheme::V1a => {
            let mut seed = [0u8; SEED_LENGTH];
            getrandom::fill(&mut seed)?;
            let pair =
                Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| getrandom::Error::UNEXPECTED)?;
            Ok(format!("{PRIVATE}{}", STANDARD.encode([&seed[..], pair.public_key().as_ref()].concat())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vector {
        scheme: String,
        secret: String,
        id: String,
        timestamp: u64,
        body: String,
        signature: String,
    }

    fn vectors() -> Vec<Vector> {
        serde_json::from_str(include_str!("../../tests/vectors/standard-webhooks.json")).unwrap()
    }

    #[test]
    fn signs_as_the_standard_vectors_do() {
        let vectors = vectors();
        assert_eq!(vectors.iter().filter(|vector| vector.scheme == "v1a").count(), 1);
        assert_eq!(vectors.len(), 4);
        for vector in vectors {
            let key = SigningKey::parse(&vector.secret).unwrap();
            assert_eq!(key.scheme(), Scheme::parse(&vector.scheme).unwrap());
            assert_eq!(sign(&[key], &vector.id, vector.timestamp, vector.body.as_bytes()), vector.signature);
        }
    }

    #[test]
    fn several_keys_give_several_signatures_separated_by_a_space() {
        let vectors = vectors();
        let keys: Vec<_> = vectors.iter().map(|vector| SigningKey::parse(&vector.secret).unwrap()).collect();
        let both = [keys[0].clone(), keys[3].clone()];
        let signature = sign(&both, "id", 1, b"{}");
        let parts: Vec<_> = signature.split(' ').collect();
        assert_eq!(parts, [sign(&both[..1], "id", 1, b"{}"), sign(&both[1..], "id", 1, b"{}")]);
        assert_eq!(sign(&[], "id", 1, b"{}"), "");
    }

    #[test]
    fn a_key_whose_time_is_over_signs_no_more() {
        let key = SigningKey::parse(&vectors()[0].secret).unwrap();
        let previous = key.clone().until(UNIX_EPOCH + std::time::Duration::from_secs(100));
        let keys = [key, previous];
        assert_eq!(sign(&keys, "id", 99, b"{}").split(' ').count(), 2);
        assert_eq!(sign(&keys, "id", 100, b"{}"), sign(&keys[..1], "id", 100, b"{}"));
    }

    #[test]
    fn generated_secrets_are_usable_and_differ() {
        for (scheme, prefix, length) in [(Scheme::V1, "whsec_", 32), (Scheme::V1a, "whsk_", 88)] {
            let (one, other) = (generate_secret(scheme).unwrap(), generate_secret(scheme).unwrap());
            assert_ne!(one, other);
            assert_eq!((&one[..prefix.len()], one.len()), (prefix, prefix.len() + length));
            assert_eq!(SigningKey::parse(&one).unwrap().scheme(), scheme);
        }
    }

    #[test]
    fn who_has_the_public_key_can_verify_and_not_sign() {
        let key = SigningKey::parse(&generate_secret(Scheme::V1a).unwrap()).unwrap();
        let public = key.public_key().unwrap();
        let public = STANDARD.decode(public.strip_prefix("whpk_").unwrap()).unwrap();
        let verifier = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public);
        let signature = sign(&[key], "id", 7, b"{}");
        let signature = STANDARD.decode(signature.strip_prefix("v1a,").unwrap()).unwrap();
        assert!(verifier.verify(b"id.7.{}", &signature).is_ok());
        assert!(verifier.verify(b"id.8.{}", &signature).is_err());
        assert_eq!(SigningKey::parse(&vectors()[0].secret).unwrap().public_key(), None);
    }

    #[test]
    fn a_refused_secret_is_not_repeated() {
        for secret in
            ["hunter2", "whsec_hunter2!", "whsec_aHVudGVyMg==", "whsk_hunter2!", "whsk_aHVudGVyMg=="]
        {
            let problem = SigningKey::parse(secret).unwrap_err().to_string();
            assert!(!problem.contains("hunter2") && !problem.contains("aHVudGVyMg"), "{problem}");
        }
    }
}
