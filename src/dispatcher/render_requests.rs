//! What goes to an endpoint by another way than decoding: events through users' functions, and pings.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::payload::{Members, jitter};
use super::renderers::{Rendered, Unrendered};
use super::sender::Sending;
use crate::decode::routing::router::Grantee;
use crate::delivery::{DeliveryId, Failure, Sifted};
use crate::http::{Job, Prepared};
use crate::ipc::render::{By, Shaped};
use crate::shmem::registry::Database;

impl Sending {
    /// Sends the pings that sessions wait for.
    pub fn test(&mut self, database: &Database) {
        for job in self.testing.asked(database, &self.source) {
            self.sender.submit(job);
        }
    }

    /// Goes on with what waits for users' functions. Returns whether something came of any.
    pub fn render(&mut self) -> bool {
        let rendered = self.rendering.turn();
        let any = !rendered.is_empty();
        rendered.into_iter().for_each(|rendered| self.rendered(rendered));
        any
    }

    /// Takes out of a request what its subscription's owner may not read any more: an attempt that failed.
    pub(super) fn keep_permitted(
        &mut self,
        number: usize,
        grantee: &Arc<Grantee>,
        members: &mut Members,
        replay: Option<i64>,
    ) {
        let denied: Vec<(DeliveryId, Sifted)> = members
            .iter()
            .filter_map(|(id, (event, _))| {
                let error = self.permission.refusal(grantee, event, replay.is_some())?;
                Some((*id, Sifted::Failed(Failure { kind: "denied", error, ..Failure::default() })))
            })
            .collect();
        if !denied.is_empty() {
            let left = self.sift(number, denied, Duration::ZERO);
            members.retain(|(id, _)| left.contains(id));
        }
    }

    /// Sends what is left of a request when its events have been put through functions.
    fn rendered(&mut self, Rendered { request, shaped, duration }: Rendered) {
        let Unrendered { number, subscription, endpoint, members, attempt, replay, functions } = request;
        let by = if functions.transform.is_some() { By::Transform } else { By::Route };
        let shaped = shaped.unwrap_or_else(|message| vec![Shaped::Failed { by, message }; members.len()]);
        let failed = |by: By, error: String| {
            Sifted::Failed(Failure { kind: by.as_str(), error, ..Failure::default() })
        };
        let mut sifted = Vec::new();
        let mut ready = HashMap::new();
        for ((id, payload), shaped) in members.into_iter().zip(shaped) {
            match shaped {
                Shaped::Dropped => sifted.push((id, Sifted::Dropped)),
                Shaped::Failed { by, message } => sifted.push((id, failed(by, message))),
                Shaped::Ready { body, route } => {
                    match route.map(|route| endpoint.route(&route)).transpose() {
                        Ok(route) => _ = ready.insert(id, (payload, body, route)),
                        Err(problem) => sifted.push((id, failed(By::Route, problem.to_string()))),
                    }
                }
            }
        }
        let left = self.sift(number, sifted, duration);
        let mut left: Members =
            left.into_iter().filter_map(|id| Some((id, ready.get(&id)?.0.clone()))).collect();
        // Functions take their time, in which a right may have gone.
        if let Some(grantee) = self.endpoints.get(&subscription).and_then(|it| it.grantee.clone()) {
            self.permission.refresh();
            self.keep_permitted(number, &grantee, &mut left, replay);
        }
        if left.is_empty() {
            return;
        }
        let (mut events, mut bodies, mut prepared) = (Vec::new(), Vec::new(), Prepared::default());
        for (payload, body, route) in left.iter().filter_map(|(id, _)| ready.remove(id)) {
            events.push(payload);
            bodies.extend(body);
            prepared.route = prepared.route.or(route);
        }
        prepared.bodies = functions.transform.is_some().then_some(bodies);
        let prepared = Some(Box::new(prepared));
        self.sender.submit(Job { ticket: number as u64, endpoint, events, attempt, replay, prepared });
    }

    /// Takes deliveries out of a request under way; what is left of it.
    pub(super) fn sift(
        &mut self,
        number: usize,
        sifted: Vec<(DeliveryId, Sifted)>,
        duration: Duration,
    ) -> Vec<DeliveryId> {
        let Some(&(ticket, id)) = self.under_way.get(number) else { return Vec::new() };
        let left = self.engine.sift(ticket, sifted, duration, Instant::now(), jitter(number as u64));
        if left.is_empty() {
            self.under_way.remove(number);
            self.shown.end(number);
        }
        self.showing.changed(id);
        left
    }

    /// Ends the processes that run users' functions.
    pub fn end_renderers(&mut self) {
        self.rendering.end();
    }
}
