//! Signatures as Standard Webhooks wants them: `v1,` and the base64 of an HMAC-SHA256 over `id.timestamp.body`.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::Request;

/// A signature older or newer than this many seconds is refused.
const TOLERANCE: u64 = 300;

/// A signing key, `whsec_` and base64.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

/// What the check of a signature came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Signed by who has the secret, lately.
    Valid,
    /// There is no signature.
    Unsigned,
    /// The signature is of another secret, id, time or body.
    Invalid,
    /// It is right, but its time is more than five minutes away.
    Stale,
}

impl Verdict {
    /// It in words.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Valid => "signature ok",
            Verdict::Unsigned => "not signed",
            Verdict::Invalid => "wrong signature",
            Verdict::Stale => "signature too old or too new",
        }
    }
}

/// Checks a request against all keys, of which one is right; none without a key.
pub(crate) fn verify_any(secrets: &[Secret], request: &Request) -> Option<Verdict> {
    let verdicts = secrets.iter().map(|secret| secret.verify(request));
    verdicts.min_by_key(|verdict| match verdict {
        Verdict::Valid => 0,
        Verdict::Stale => 1,
        Verdict::Unsigned | Verdict::Invalid => 2,
    })
}

impl Secret {
    /// Reads `whsec_…`; none if that is not base64.
    pub fn parse(text: &str) -> Option<Self> {
        let key = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text)).ok()?;
        Hmac::new_from_slice(&key).ok().map(Self)
    }

    /// The signature of a webhook.
    pub fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        format!("v1,{}", STANDARD.encode(self.mac(id, timestamp, body).finalize().into_bytes()))
    }

    /// Checks a request as it arrives.
    pub fn verify(&self, request: &Request) -> Verdict {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.verify_at(request, now)
    }

    /// Checks a request as of a time, in seconds since 1970.
    pub fn verify_at(&self, request: &Request, now: u64) -> Verdict {
        let (Some(signatures), Some(id), Some(timestamp)) = (
            request.header("webhook-signature"),
            request.header("webhook-id"),
            request.header("webhook-timestamp"),
        ) else {
            return Verdict::Unsigned;
        };
        // While a secret rotates there are several.
        let genuine = signatures.split(' ').filter_map(|one| one.strip_prefix("v1,")).any(|one| {
            STANDARD
                .decode(one)
                .is_ok_and(|tag| self.mac(id, timestamp, request.body()).verify_slice(&tag).is_ok())
        });
        match timestamp.parse::<u64>() {
            _ if !genuine => Verdict::Invalid,
            Ok(signed) if signed.abs_diff(now) <= TOLERANCE => Verdict::Valid,
            _ => Verdict::Stale,
        }
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        self.0
            .clone()
            .chain_update(id)
            .chain_update(".")
            .chain_update(timestamp)
            .chain_update(".")
            .chain_update(body)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn request(signature: &str, body: &str) -> Request {
        let head = format!(
            "POST / HTTP/1.1\r\nwebhook-id: msg_p5jXN8AQM9LWM0D4loKWxJek\r\nwebhook-timestamp: 1614265330\r\n\
             webhook-signature: {signature}\r\n\r\n"
        );
        Request::new(format!("{head}{body}").as_bytes(), head.len(), Instant::now(), 1)
    }

    #[test]
    fn the_published_vector_is_valid_and_a_changed_body_is_not() {
        let secret = Secret::parse(SECRET).unwrap();
        let published = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let body = r#"{"test": 2432232314}"#;
        assert_eq!(secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body.as_bytes()), published);
        assert_eq!(secret.verify_at(&request(published, body), 1614265330 + 299), Verdict::Valid);
        assert_eq!(
            secret.verify_at(&request(&format!("v1,AAAA {published}"), body), 1614265330),
            Verdict::Valid
        );
        assert_eq!(secret.verify_at(&request(published, "{}"), 1614265330), Verdict::Invalid);
        assert_eq!(secret.verify_at(&request(published, body), 1614265330 + 301), Verdict::Stale);
    }

    #[test]
    fn without_the_headers_it_is_unsigned() {
        let bare = Request::new(b"POST / HTTP/1.1\r\n\r\n", 19, Instant::now(), 1);
        assert_eq!(Secret::parse(SECRET).unwrap().verify(&bare), Verdict::Unsigned);
        assert!(Secret::parse("whsec_not base64").is_none());
    }
}
