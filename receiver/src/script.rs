//! Misbehaviour to order: which requests fail, and how.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde_json::Value;

use crate::{Answer, Behaviour, Reply, Request};

/// A behaviour that fails some requests and answers 200 to the others.
#[derive(Clone, Debug)]
pub struct Script {
    /// The requests that get the fault.
    pub which: Which,
    /// What these get.
    pub fault: Reply,
    /// How long every request waits for its reply, on top of the fault's own delay.
    pub delay: Duration,
    seen: HashMap<String, u64>,
}

/// A choice of requests.
#[derive(Clone, Debug)]
pub enum Which {
    /// None.
    None,
    /// All.
    All,
    /// The first so many, counted over all.
    First(u64),
    /// The first so many attempts of each webhook, told by `webhook-id`.
    FirstOfEach(u64),
    /// So many of a hundred. The seed, the webhook and its attempt decide, not the order of arrival.
    Percent {
        /// From 0 to 100.
        percent: f64,
        /// Another seed chooses others.
        seed: u64,
    },
    /// Those whose event has this key.
    Key(Value),
}

impl Default for Script {
    fn default() -> Self {
        Self::new(Which::None, Reply::default())
    }
}

impl Script {
    /// Gives these requests this fault.
    pub fn new(which: Which, fault: impl Into<Reply>) -> Self {
        Self { which, fault: fault.into(), delay: Duration::ZERO, seen: HashMap::new() }
    }

    /// Fails the first `count` requests.
    pub fn fail_first(count: u64, status: u16) -> Self {
        Self::new(Which::First(count), Reply::status(status))
    }

    /// Fails the first `count` attempts of each webhook.
    pub fn fail_first_of_each(count: u64, status: u16) -> Self {
        Self::new(Which::FirstOfEach(count), Reply::status(status))
    }

    /// Fails the events of one key.
    pub fn fail_key(key: Value, status: u16) -> Self {
        Self::new(Which::Key(key), Reply::status(status))
    }

    /// Gives all requests the same.
    pub fn always(fault: impl Into<Reply>) -> Self {
        Self::new(Which::All, fault)
    }

    fn is_chosen(&mut self, request: &Request) -> bool {
        let mut so_far = |whose: &str| {
            let count = self.seen.entry(whose.to_owned()).or_default();
            *count += 1;
            *count - 1
        };
        match &self.which {
            Which::None => false,
            Which::All => true,
            Which::First(count) => so_far("") < *count,
            Which::FirstOfEach(count) => so_far(request.webhook_id()) < *count,
            Which::Percent { percent, seed } => {
                let mut hasher = DefaultHasher::new();
                (seed, request.webhook_id(), request.attempt()).hash(&mut hasher);
                (hasher.finish() % 1_000_000) as f64 / 10_000.0 < *percent
            }
            Which::Key(key) => request.events().iter().any(|event| event["data"]["key"] == *key),
        }
    }

    /// Reads what `/_control` is told; an unknown word is an error, so that a typing mistake is no silence.
    pub fn from_json(told: &Value) -> Result<Self, String> {
        let Value::Object(told) = told else { return Err("expected a JSON object".into()) };
        let mut script = Self::default();
        let mut seed = 0;
        let mut percent = None;
        let mut retry_after = None;
        for (word, value) in told {
            let number = || value.as_u64().ok_or(format!("{word}: expected a whole number"));
            let fault = match word.as_str() {
                "status" => {
                    let status = u16::try_from(number()?).ok().filter(|status| (100..1000).contains(status));
                    Some(Reply::status(status.ok_or("status: expected three digits")?))
                }
                "hang" => Some(Answer::Hang.into()),
                "close" => Some(Answer::Close.into()),
                "reset" => Some(Answer::Reset.into()),
                "cut" => Some(Answer::Cut.into()),
                "cut_body" => Some(Answer::CutBody.into()),
                "garbage" => Some(Answer::Garbage.into()),
                "trickle_ms" => {
                    Some(Answer::Trickle { status: 200, every: Duration::from_millis(number()?) }.into())
                }
                _ => None,
            };
            if let Some(fault) = fault {
                script.fault = fault;
                if matches!(script.which, Which::None) {
                    script.which = Which::All;
                }
                continue;
            }
            match word.as_str() {
                "delay_ms" => script.delay = Duration::from_millis(number()?),
                "fail_first" => script.which = Which::First(number()?),
                "fail_first_of_each" => script.which = Which::FirstOfEach(number()?),
                "key" => script.which = Which::Key(value.clone()),
                "percent" => percent = Some(value.as_f64().ok_or("percent: expected a number")?),
                "seed" => seed = number()?,
                "retry_after" => retry_after = Some(value.clone()),
                _ => return Err(format!("unknown word: {word}")),
            }
        }
        if let Some(percent) = percent {
            script.which = Which::Percent { percent, seed };
        }
        if !matches!(script.which, Which::None) && !told.contains_key("status") && script.fault.is_success() {
            let trickles = matches!(script.fault.answer, Answer::Trickle { .. });
            script.fault = if trickles { script.fault } else { Reply::status(500) };
        }
        if let Some(value) = retry_after {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            script.fault = script.fault.header("retry-after", text);
        }
        Ok(script)
    }
}

impl Behaviour for Script {
    fn reply(&mut self, request: &Request) -> Reply {
        let mut reply = if self.is_chosen(request) { self.fault.clone() } else { Reply::default() };
        reply.delay += self.delay;
        reply
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    fn request(id: &str, attempt: u32) -> Request {
        let head = format!("POST / HTTP/1.1\r\nwebhook-id: {id}\r\nwebhook-attempt: {attempt}\r\n\r\n");
        let body = json!({"data": {"key": {"id": id}}}).to_string();
        Request::new(format!("{head}{body}").as_bytes(), head.len(), Instant::now(), 1)
    }

    fn failed(script: &mut Script, id: &str, attempt: u32) -> bool {
        !script.reply(&request(id, attempt)).is_success()
    }

    #[test]
    fn the_first_fail_and_no_more() {
        let mut script = Script::fail_first(2, 503);
        assert_eq!([1, 2, 3].map(|n| failed(&mut script, &n.to_string(), 1)), [true, true, false]);
        let mut script = Script::fail_first_of_each(1, 503);
        assert_eq!(["a", "b", "a", "b"].map(|id| failed(&mut script, id, 1)), [true, true, false, false]);
    }

    #[test]
    fn a_percentage_is_the_same_whatever_the_order() {
        let choose = |seed, ids: &mut dyn Iterator<Item = u32>| {
            let mut script = Script::new(Which::Percent { percent: 30.0, seed }, Reply::status(500));
            let mut chosen: Vec<_> = ids.filter(|id| failed(&mut script, &id.to_string(), 1)).collect();
            chosen.sort_unstable();
            chosen
        };
        let forwards = choose(7, &mut (0..1000));
        assert_eq!(forwards, choose(7, &mut (0..1000).rev()));
        assert_ne!(forwards, choose(8, &mut (0..1000)));
        assert!((250..350).contains(&forwards.len()), "{}", forwards.len());
    }

    #[test]
    fn a_key_fails_and_no_other() {
        let mut script = Script::fail_key(json!({"id": "b"}), 500);
        assert_eq!(["a", "b", "c"].map(|id| failed(&mut script, id, 1)), [false, true, false]);
    }

    #[test]
    fn it_can_be_told_by_json() {
        let mut told = Script::from_json(&json!({"fail_first": 1, "status": 429, "retry_after": 7})).unwrap();
        let Answer::Respond { status, headers, .. } = told.reply(&request("a", 1)).answer else { panic!() };
        assert_eq!((status, headers), (429, vec![("retry-after".into(), "7".into())]));
        assert!(!failed(&mut told, "a", 2));
        assert!(failed(&mut Script::from_json(&json!({"hang": true})).unwrap(), "a", 1));
        assert!(failed(&mut Script::from_json(&json!({"key": {"id": "a"}})).unwrap(), "a", 1));
        assert!(!failed(&mut Script::from_json(&json!({})).unwrap(), "a", 1));
        assert!(Script::from_json(&json!({"stauts": 500})).is_err());
    }
}
