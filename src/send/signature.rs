//! Signatures of Standard Webhooks, version 1: HMAC-SHA256 over `<id>.<timestamp>.<body>`.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::problem::Problem;

/// What every symmetric secret of Standard Webhooks begins with.
const PREFIX: &str = "whsec_";

/// The length of a generated key in bytes, as the specification's libraries make them.
const GENERATED_LENGTH: usize = 24;

/// One signing key, ready to sign. Never printed.
#[derive(Clone)]
pub struct SigningKey {
    /// The keyed state, so that a signature doesn't begin by hashing the key again.
    keyed: Hmac<Sha256>,
}

impl SigningKey {
    /// Reads a secret as users write it: `whsec_` and 24 to 64 bytes in base64.
    ///
    /// The secret itself is never part of the error.
    pub fn parse(secret: &str) -> Result<SigningKey, Problem> {
        let refuse = |detail: &str| {
            Problem::new(
                "invalid signing secret",
                detail,
                "Leave \"secret\" out to have one generated, or give 'whsec_' followed by 24 to 64 random bytes in base64.",
            )
        };
        let encoded = secret
            .strip_prefix(PREFIX)
            .ok_or_else(|| refuse("The secret does not begin with \"whsec_\"."))?;
        let key = STANDARD.decode(encoded).map_err(|_| refuse("What follows \"whsec_\" is not base64."))?;
        if !(24..=64).contains(&key.len()) {
            return Err(refuse(&format!("The secret holds {} bytes.", key.len())));
        }
        let keyed = Hmac::new_from_slice(&key).map_err(|_| refuse("The secret can't be used as a key."))?;
        Ok(SigningKey { keyed })
    }

    /// Appends `v1,<signature>` of one request to `out`.
    fn sign(&self, out: &mut String, id: &str, timestamp: u64, body: &[u8]) {
        let mut mac = self.keyed.clone();
        mac.update(id.as_bytes());
        mac.update(b".");
        mac.update(timestamp.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        out.push_str("v1,");
        STANDARD.encode_string(mac.finalize().into_bytes(), out);
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

/// The value of the header `webhook-signature`: one signature a key, separated by spaces.
///
/// `timestamp` is in seconds since 1970 and the same as in the header `webhook-timestamp`.
pub fn sign(keys: &[SigningKey], id: &str, timestamp: u64, body: &[u8]) -> String {
    // A SHA-256 in base64 has 44 characters.
    let mut out = String::with_capacity(keys.len() * 48);
    for key in keys {
        if !out.is_empty() {
            out.push(' ');
        }
        key.sign(&mut out, id, timestamp, body);
    }
    out
}

/// A new secret from the system's source of randomness.
pub fn generate_secret() -> Result<String, getrandom::Error> {
    let mut key = [0u8; GENERATED_LENGTH];
    getrandom::fill(&mut key)?;
    Ok(format!("{PREFIX}{}", STANDARD.encode(key)))
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
        let all: Vec<Vector> =
            serde_json::from_str(include_str!("../../tests/vectors/standard-webhooks.json")).unwrap();
        all.into_iter().filter(|vector| vector.scheme == "v1").collect()
    }

    #[test]
    fn signs_as_the_standard_vectors_do() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 3);
        for vector in vectors {
            let key = SigningKey::parse(&vector.secret).unwrap();
            assert_eq!(sign(&[key], &vector.id, vector.timestamp, vector.body.as_bytes()), vector.signature);
        }
    }

    #[test]
    fn several_keys_give_several_signatures_separated_by_a_space() {
        let vectors = vectors();
        let keys: Vec<_> = vectors.iter().map(|vector| SigningKey::parse(&vector.secret).unwrap()).collect();
        let signature = sign(&keys[..2], "id", 1, b"{}");
        let parts: Vec<_> = signature.split(' ').collect();
        assert_eq!(parts, [sign(&keys[..1], "id", 1, b"{}"), sign(&keys[1..2], "id", 1, b"{}")]);
        assert_eq!(sign(&[], "id", 1, b"{}"), "");
    }

    #[test]
    fn generated_secrets_are_usable_and_differ() {
        let (one, other) = (generate_secret().unwrap(), generate_secret().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), "whsec_".len() + 32);
        assert!(SigningKey::parse(&one).is_ok());
    }

    #[test]
    fn a_refused_secret_is_not_repeated() {
        for secret in ["hunter2", "whsec_hunter2!", "whsec_aHVudGVyMg=="] {
            let problem = SigningKey::parse(secret).unwrap_err().to_string();
            assert!(!problem.contains("hunter2") && !problem.contains("aHVudGVyMg"), "{problem}");
        }
    }
}
