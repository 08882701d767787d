//! Headers that are secrets: what is stored with the subscription is a sign that stands for the value, and what it
//! stands for is kept apart.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What a sign begins with.
const PREFIX: &str = "hidden:";

/// Parts of a header's name, between hyphens and underscores, that mark its value as a secret.
const WORDS: &[&str] = &[
    "auth",
    "authorization",
    "bearer",
    "cookie",
    "credential",
    "credentials",
    "jwt",
    "key",
    "pass",
    "passwd",
    "password",
    "pwd",
    "session",
    "sid",
    "signature",
];
/// What marks it wherever it stands in the name.
const PARTS: &[&str] = &["apikey", "password", "secret", "token"];

/// Values of sensitive headers by the signs that stand for them.
pub type Hidden = BTreeMap<String, String>;

/// Whether the header of that name has a value that nobody but the endpoint is to see.
pub fn is_sensitive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    PARTS.iter().any(|part| name.contains(part)) || name.split(['-', '_']).any(|word| WORDS.contains(&word))
}

/// Replaces values of sensitive headers by signs, which `values` then explains. A value that is a sign already stays:
/// who stores what they have read keeps what is behind it.
///
/// Fails when the system has no randomness to give.
pub fn hide(
    headers: &mut serde_json::Map<String, serde_json::Value>,
    values: &mut Hidden,
) -> Result<(), getrandom::Error> {
    for (name, value) in headers {
        let Some(text) = value.as_str().filter(|_| is_sensitive(name)) else { continue };
        if is_sign(text) {
            continue;
        }
        let mut random = [0; 9];
        getrandom::fill(&mut random)?;
        let sign = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
        values.insert(sign.clone(), text.to_owned());
        *value = sign.into();
    }
    Ok(())
}

/// Puts values in the place of signs; the name of a header whose sign stands for nothing that is known is the error.
pub fn reveal(headers: &mut BTreeMap<String, String>, values: &Hidden) -> Result<(), String> {
    for (name, value) in headers {
        if is_sign(value) && is_sensitive(name) {
            *value = values.get(value).ok_or_else(|| name.clone())?.clone();
        }
    }
    Ok(())
}

/// Whether a value is the sign of one that is kept apart.
pub fn is_sign(value: &str) -> bool {
    value
        .strip_prefix(PREFIX)
        .is_some_and(|rest| URL_SAFE_NO_PAD.decode(rest).is_ok_and(|bytes| bytes.len() == 9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_which_headers_are_secrets() {
        for name in [
            "Authorization",
            "cookie",
            "X-Api-Key",
            "x-apikey",
            "X-Auth-Token",
            "x-hub-signature",
            "api_key",
            "x-client-secret",
            "x-access-token",
            "x-session",
        ] {
            assert!(is_sensitive(name), "{name}");
        }
        for name in
            ["x-tenant", "accept", "x-author", "x-keyboard", "x-compass", "x-trace-id", "cache-control"]
        {
            assert!(!is_sensitive(name), "{name}");
        }
    }

    #[test]
    fn a_secret_is_replaced_by_a_sign_that_leads_back_to_it() {
        let typed = serde_json::json!({"Authorization": "Bearer s3cret", "x-tenant": "7"});
        let mut headers = typed.as_object().unwrap().clone();
        let mut values = Hidden::new();
        hide(&mut headers, &mut values).unwrap();
        assert_eq!(headers["x-tenant"], "7");
        assert!(!format!("{headers:?}").contains("s3cret"));
        // Stored again, it stays what it is.
        let before = headers.clone();
        hide(&mut headers, &mut values).unwrap();
        assert_eq!((&headers, values.len()), (&before, 1));
        let mut sent: BTreeMap<_, _> =
            headers.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect();
        reveal(&mut sent, &values).unwrap();
        assert_eq!(sent["Authorization"], "Bearer s3cret");
    }

    #[test]
    fn a_sign_without_a_value_is_an_error_that_names_the_header() {
        let mut headers = BTreeMap::from([("cookie".to_owned(), format!("{PREFIX}AAAAAAAAAAAA"))]);
        assert_eq!(reveal(&mut headers, &Hidden::new()), Err("cookie".to_owned()));
    }
}
