//! Who receives: endpoints with moods.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use harness::{Answer, Receiver, Reply, Request, eventually};

use crate::truth::Seen;

/// How an endpoint takes what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mood {
    /// Everything is fine.
    Calm,
    /// Fails now and then, in every way there is.
    Moody,
    /// Fails at everything.
    Broken,
    /// Answers nobody.
    Silent,
}

/// An endpoint of one subscription.
pub struct Endpoint {
    pub name: &'static str,
    address: SocketAddr,
    receiver: Mutex<Option<Receiver>>,
    seed: u64,
    /// Of a thousand requests, how many fail in a bad mood.
    faults: u32,
    mood: Arc<AtomicU32>,
    pub seen: Arc<Mutex<Seen>>,
}

impl Endpoint {
    pub fn open(name: &'static str, seed: u64, faults: u32) -> Self {
        let any = ([127, 0, 0, 1], 0).into();
        let receiver = Receiver::with(receiver::Options { listen: any, keep: 0, control: false }).unwrap();
        let endpoint = Self {
            name,
            address: receiver.address(),
            receiver: Mutex::default(),
            seed,
            faults,
            mood: Arc::new(AtomicU32::new(Mood::Moody as u32)),
            seen: Arc::default(),
        };
        endpoint.serve(receiver, seed);
        endpoint
    }

    pub fn url(&self) -> String {
        format!("http://{}/{}", self.address, self.name)
    }

    /// Refuses connections and ends those that are, until [`Endpoint::reopen`].
    pub fn close(&self) {
        self.receiver.lock().unwrap().take();
    }

    pub fn reopen(&self, rng: &mut Rng) {
        if self.receiver.lock().unwrap().is_none() {
            let options = || receiver::Options { listen: self.address, keep: 0, control: false };
            let receiver = eventually("the same address", || Receiver::with(options()).ok());
            self.serve(receiver, self.seed ^ rng.u64(..));
        }
    }

    pub fn set_mood(&self, mood: Mood) {
        self.mood.store(mood as u32, Ordering::Relaxed);
    }

    fn serve(&self, receiver: Receiver, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let (mood, seen, faults) = (Arc::clone(&self.mood), Arc::clone(&self.seen), self.faults);
        receiver.behave(move |request: &Request| {
            let reply = match mood.load(Ordering::Relaxed) {
                calm if calm == Mood::Calm as u32 => Reply::default(),
                broken if broken == Mood::Broken as u32 => Reply::status([500, 502, 503][rng.usize(0..3)]),
                silent if silent == Mood::Silent as u32 => Answer::Hang.into(),
                _ if rng.u32(0..1000) < faults => fault(&mut rng),
                _ => Reply::default().after(Duration::from_millis(rng.u64(0..20) / 10 * rng.u64(0..30))),
            };
            seen.lock().unwrap().take(&request.events(), reply.is_success());
            reply
        });
        *self.receiver.lock().unwrap() = Some(receiver);
    }
}

fn fault(rng: &mut Rng) -> Reply {
    match rng.u32(0..100) {
        0..65 => Reply::status([500, 502, 503, 400, 404, 408, 409, 422, 301][rng.usize(0..9)]),
        65..75 => Answer::Reset.into(),
        75..85 => Answer::Close.into(),
        85..89 => Answer::Cut.into(),
        89..93 => Answer::Garbage.into(),
        93..98 => Answer::Hang.into(),
        98 => Reply::status(429).header("retry-after", 1),
        _ => Reply::status(503).header("retry-after", "soon"),
    }
}
