//! Where one event goes, as a subscription's route says.

use serde_json::{Map, Value};
use ureq_proto::http::{HeaderName, HeaderValue, Method, Uri};
use url::Url;

use super::endpoint::{Endpoint, check_header};
use super::user_error::{Problem, quoted};

const HINT: &str = r#"Return an object such as {"method": "PUT", "path": "/orders/7", "headers": {"x-tenant": "acme"}}, or NULL."#;

/// What a route may ask for.
const MEMBERS: [&str; 3] = ["method", "path", "headers"];

/// Where a request goes instead of its endpoint's own URL, and how. Its server is always the endpoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub(super) method: Method,
    /// None: the endpoint's own.
    pub(super) uri: Option<Uri>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Endpoint {
    /// Reads what a route has said of one event: an object with any of `method`, `path` and `headers`.
    ///
    /// # Errors
    ///
    /// When it is something else, or asks for what cannot be sent. No error repeats a header's value.
    pub fn route(&self, json: &[u8]) -> Result<Route, Problem> {
        let mut asked = match serde_json::from_slice(json) {
            Ok(Value::Object(asked)) => asked,
            Ok(Value::Null) => Map::new(),
            _ => return Err(refuse("It is no JSON object.".to_owned())),
        };
        if let Some(unknown) = asked.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
            return Err(refuse(format!(
                "It has {}, which is none of {}.",
                quoted(unknown),
                MEMBERS.join(", ")
            )));
        }
        // It comes of a key that is null; the endpoint's own URL would be that of all keys.
        if asked.get("path").is_some_and(Value::is_null) {
            return Err(refuse(
                "The path is null. Leave path out for the subscription's own URL.".to_owned(),
            ));
        }
        let mut take = |name| asked.remove(name).filter(|value| !value.is_null());
        Ok(Route {
            method: take("method").map_or(Ok(Method::POST), method_of)?,
            uri: take("path").map(|path| uri_of(&self.target.uri, path)).transpose()?,
            headers: take("headers").map_or(Ok(Vec::new()), headers_of)?,
        })
    }
}

fn method_of(value: Value) -> Result<Method, Problem> {
    let word = value.as_str().map(str::to_ascii_uppercase);
    match word.as_deref() {
        Some("POST") => Ok(Method::POST),
        Some("PUT") => Ok(Method::PUT),
        Some("PATCH") => Ok(Method::PATCH),
        Some("DELETE") => Ok(Method::DELETE),
        _ => Err(refuse(format!("The method is {value}, not POST, PUT, PATCH or DELETE."))),
    }
}

/// The path behind that of the endpoint's URL, and its query behind that one's.
fn uri_of(base: &Uri, value: Value) -> Result<Uri, Problem> {
    let no_path = || refuse(format!("The path is {value}, which doesn't begin with a slash."));
    let asked = value.as_str().filter(|asked| asked.starts_with('/')).ok_or_else(no_path)?;
    let (path, query) = asked.split_once('?').map_or((asked, None), |(path, query)| (path, Some(query)));
    let climbs = |part: &str| matches!(part.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
    if asked.contains(['#', '\\']) || asked.contains(char::is_control) || path.split('/').any(climbs) {
        return Err(refuse(format!(
            "The path {value} has a dot for a part, a #, a backslash or a control character."
        )));
    }
    let failed = |error: String| refuse(format!("The path {value} cannot be sent to: {error}."));
    let mut url = Url::parse(&base.to_string()).map_err(|error| failed(error.to_string()))?;
    let joined = format!("{}{path}", url.path().trim_end_matches('/'));
    url.set_path(&joined);
    if let Some(query) = query {
        let joined = url.query().map_or(query.to_owned(), |own| format!("{own}&{query}"));
        url.set_query(Some(&joined));
    }
    url.as_str().parse().map_err(|error: ureq_proto::http::uri::InvalidUri| failed(error.to_string()))
}

fn headers_of(value: Value) -> Result<Vec<(HeaderName, HeaderValue)>, Problem> {
    let Value::Object(headers) = value else {
        return Err(refuse("Its headers are no JSON object.".to_owned()));
    };
    let checked = headers.iter().map(|(name, value)| match value.as_str() {
        Some(value) => check_header(name, value),
        None => Err(refuse(format!("The value of its header {} is no string.", quoted(name)))),
    });
    checked.collect()
}

fn refuse(detail: String) -> Problem {
    Problem::new("the route is none", detail, HINT)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::event::format::{Format, Shown};
    use crate::http::{EndpointSettings, Guard};

    fn endpoint(url: &str) -> Endpoint {
        Endpoint::new(EndpointSettings {
            subscription_id: 1,
            subscription: "s".to_owned(),
            source: Arc::default(),
            url: url.to_owned(),
            headers: Vec::new(),
            timeout: Duration::from_secs(1),
            secrets: Vec::new(),
            previous_secret: None,
            client_certificate: None,
            max_in_flight: 1,
            format: Format::Pgwh,
            columns: Shown::All,
            batched: false,
            compress: false,
            max_response_size: 0,
            guard: Arc::new(Guard::default()),
            proxy: None,
        })
        .unwrap()
    }

    #[test]
    fn a_path_goes_behind_that_of_the_url_and_a_query_behind_its_query() {
        for (url, path, expected) in [
            ("https://example.com", "/a", "https://example.com/a"),
            ("https://example.com/hook/", "/a/b?x=1", "https://example.com/hook/a/b?x=1"),
            ("https://example.com/hook?key=k", "/a?x=1", "https://example.com/hook/a?key=k&x=1"),
            ("https://example.com/hook?key=k", "/a", "https://example.com/hook/a?key=k"),
            ("https://example.com", "//evil.com/x", "https://example.com//evil.com/x"),
            ("https://example.com", "/@evil.com:80/ü b", "https://example.com/@evil.com:80/%C3%BC%20b"),
        ] {
            let route = endpoint(url).route(format!(r#"{{"path": "{path}"}}"#).as_bytes()).unwrap();
            assert_eq!(route.uri.unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for path in [
            "\"a\"",
            "\"http://evil.com/\"",
            "\"\"",
            "7",
            "null",
            "\"/../a\"",
            "\"/a/%2E%2e/b\"",
            "\"/a/./b\"",
            "\"/a\\\\b\"",
            "\"/a#b\"",
            "\"/a\\nb\"",
        ] {
            let route =
                endpoint("https://example.com/hook").route(format!(r#"{{"path": {path}}}"#).as_bytes());
            assert!(route.is_err(), "{path}: {route:?}");
        }
    }

    #[test]
    fn nothing_said_is_the_endpoint_itself() {
        for json in ["{}", "null", r#"{"method": null, "headers": null}"#] {
            let route = endpoint("https://example.com/hook").route(json.as_bytes()).unwrap();
            assert_eq!(route, Route { method: Method::POST, uri: None, headers: Vec::new() });
        }
    }

    #[test]
    fn no_error_tells_a_header_s_value() {
        for headers in [r#"{"x-key": 12345}"#, r#"{"x-key": "12345\n"}"#, r#"{"host": "12345"}"#] {
            let json = format!(r#"{{"headers": {headers}}}"#);
            let problem = endpoint("https://example.com").route(json.as_bytes()).unwrap_err();
            assert!(!problem.to_string().contains("12345"), "{problem}");
        }
    }
}
