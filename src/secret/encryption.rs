//! Sealing by ChaCha20-Poly1305 (RFC 8439): a sealed text is `sealed:1:` and base64 of nonce, ciphertext and tag.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// What a sealed text begins with.
const PREFIX: &str = "sealed:1:";

/// The keys of the file that `pgwh.encryption_key_file` names: the first seals, all of them open.
#[derive(Clone)]
pub struct Keys(Vec<LessSafeKey>);

/// Why something cannot be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSealed {
    /// The file has no key, or a line that is none.
    BadKey,
    /// What is stored is no sealed text.
    BadText,
    /// None of the keys fits, or the text was sealed for another place.
    NoKeyFits,
    /// The system has no randomness to give.
    NoRandomness,
}

impl fmt::Display for NotSealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotSealed::BadKey => "the file must hold one key a line, 32 random bytes in base64 each",
            NotSealed::BadText => "it is damaged",
            NotSealed::NoKeyFits => "it was sealed by a key that pgwh.encryption_key_file does not have",
            NotSealed::NoRandomness => "the system gives no random bytes",
        })
    }
}

impl std::error::Error for NotSealed {}

/// Whether a text is a sealed one.
pub fn is_sealed(text: &str) -> bool {
    text.starts_with(PREFIX)
}

impl Keys {
    /// Reads a key file: one key a line, the present one first; empty lines and those that begin with # don't count.
    pub fn parse(file: &str) -> Result<Keys, NotSealed> {
        let lines = file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(|line| {
            let bytes = STANDARD.decode(line).map_err(|_| NotSealed::BadKey)?;
            let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| NotSealed::BadKey)?;
            Ok(LessSafeKey::new(key))
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(NotSealed::BadKey) } else { Ok(Keys(keys)) }
    }

    /// Seals a text for one place: moved to another, it doesn't open.
    pub fn seal(&self, place: &str, text: &str) -> Result<String, NotSealed> {
        let key = self.0.first().ok_or(NotSealed::BadKey)?;
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| NotSealed::NoRandomness)?;
        let mut bytes = text.as_bytes().to_vec();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place.as_bytes()),
            &mut bytes,
        )
        .map_err(|_| NotSealed::BadKey)?;
        Ok(format!("{PREFIX}{}", STANDARD.encode([&nonce[..], &bytes].concat())))
    }

    /// Opens what was sealed for that place.
    pub fn open(&self, place: &str, sealed: &str) -> Result<String, NotSealed> {
        let encoded = sealed.strip_prefix(PREFIX).ok_or(NotSealed::BadText)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| NotSealed::BadText)?;
        let (nonce, bytes) = bytes.split_at_checked(NONCE_LEN).ok_or(NotSealed::BadText)?;
        for key in &self.0 {
            let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotSealed::BadText)?;
            let mut opened = bytes.to_vec();
            if let Ok(text) = key.open_in_place(nonce, Aad::from(place.as_bytes()), &mut opened) {
                return String::from_utf8(text.to_vec()).map_err(|_| NotSealed::BadText);
            }
        }
        Err(NotSealed::NoKeyFits)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const NEW: &str = "Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

    #[test]
    fn what_is_sealed_opens_with_its_key_and_at_its_place_only() {
        let keys = Keys::parse(OLD).unwrap();
        let sealed = keys.seal("7/secret", "hunter2").unwrap();
        assert!(is_sealed(&sealed) && !sealed.contains("hunter2"));
        assert_eq!(keys.open("7/secret", &sealed).unwrap(), "hunter2");
        assert_eq!(keys.open("8/secret", &sealed), Err(NotSealed::NoKeyFits));
        assert_eq!(Keys::parse(NEW).unwrap().open("7/secret", &sealed), Err(NotSealed::NoKeyFits));
        assert_ne!(keys.seal("7/secret", "hunter2").unwrap(), sealed);
    }

    #[test]
    fn a_new_key_above_the_old_one_seals_and_both_open() {
        let before = Keys::parse(OLD).unwrap().seal("1/secret", "old").unwrap();
        let both = Keys::parse(&format!("# rotated today\n{NEW}\n\n{OLD}\n")).unwrap();
        assert_eq!(both.open("1/secret", &before).unwrap(), "old");
        let after = both.seal("1/secret", "new").unwrap();
        assert_eq!(Keys::parse(NEW).unwrap().open("1/secret", &after).unwrap(), "new");
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let keys = Keys::parse(OLD).unwrap();
        let sealed = keys.seal("1/secret", "text").unwrap();
        let mut other = sealed.clone().into_bytes();
        let last = other.len() - 6;
        other[last] = if other[last] == b'A' { b'B' } else { b'A' };
        assert_eq!(keys.open("1/secret", &String::from_utf8(other).unwrap()), Err(NotSealed::NoKeyFits));
        for text in ["sealed:1:", "sealed:1:AAAA", "sealed:1:?", "whsec_"] {
            assert!(keys.open("1/secret", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_without_a_good_key_is_refused() {
        for file in ["", "# none\n", "c2hvcnQ=", "not base64"] {
            assert_eq!(Keys::parse(file).err(), Some(NotSealed::BadKey), "{file:?}");
        }
    }
}
