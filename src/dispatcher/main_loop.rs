//! The dispatcher: one a database. It takes events from the decoder, journals them, decides what is sent when, and tells
//! how far everything is recorded. It never decodes, and the threads that send are its own.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pgrx::{pg_guard, pg_sys};

use super::backfills::Backfilling;
use super::deferred_work::DeferredWork;
use super::error_watch::ErrorWatch;
use super::ingest::Intake;
use super::journal_writer::Recording;
use super::notices::Notices;
use super::sender::Sending;
use super::{clone_check, effects, endpoint_config, startup};
use crate::event::Lsn;
use crate::ipc::frame::Item;
use crate::journal::{
    Command, CommandKind, Locked, SESSION_TABLES, SubscriptionRow, TableGapChange, Version,
};
use crate::pg::compat;
use crate::pg::process::bgworker::WorkerHandle;
use crate::pg::process::wait_event_set::WaitSet;
use crate::pg::process::{bgworker, shutdown};
use crate::pg::shm_mq::Receiver;
use crate::shmem::registry::{self, Database, Demand, Phase, Shared};
use crate::shmem::subscription_stats::Publisher;
use crate::shmem::worker_counters;
use crate::{gucs, journal};

/// How often versions of subscriptions are dropped that no restart needs any more.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// How long answers to requests are waited for when the server goes down; the others are made again.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// How often is looked whether the last failure of the pair is over.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// How long it waits at most for the decoder to have news when the server goes down.
const CLOSING_WAIT: Duration = Duration::from_millis(50);

/// The dispatcher's main function; the argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgwh_dispatcher_main(argument: pg_sys::Datum) {
    compat::install_signal_handlers();
    let oid = pg_sys::Oid::from(argument.value() as u32);
    let Some(database) = registry::shared().and_then(|shared| shared.find(oid)) else { return };
    bgworker::connect(oid);
    bgworker::pin(&[(c"synchronous_commit", c"local")]);
    journal::write_as_our_own();
    database.dispatcher.set_me();
    database.dispatcher_pid.store(std::process::id() as i32, Ordering::SeqCst);
    bgworker::at_exit(leave);
    bgworker::report_busy(c"starting");

    bgworker::on_failure(|message| database.note_failure(message), || serve(database));
}

fn serve(database: &'static Database) {
    if startup::must_end(database) {
        return;
    }
    let oid = database.oid();
    let Some(version) = startup::wait_for_version(database) else { return };
    let Some(installation) = startup::find_installation(database) else { return };
    let slot = startup::settle_slot_name(oid, &installation);
    startup::wait_for_tables();
    let is_any_unarmed = clone_check::see_to(&slot);
    let is_copy = journal::with_tables(|_| journal::are_all_copies()).unwrap_or_default();
    database.set_demand(Demand::of(is_copy));
    // Before there is a decoder, so that a journal that cannot be read starts and ends nobody else.
    let Some((recording, loaded)) = Recording::open() else { return };
    worker_counters::add(&database.dispatched.starts, 1);
    startup::drop_stale_slots(oid, &slot);
    if !startup::has_wal_level(database) {
        return;
    }
    let mut receiver = Receiver::create(gucs::queue_size());
    database.decoded.queued.store(0, Ordering::SeqCst);
    database.dispatched.unqueued.store(0, Ordering::SeqCst);
    database.queue.store(receiver.handle(), Ordering::SeqCst);
    database.rests.store(false, Ordering::SeqCst);
    let Some(decoder) = startup::start_decoder(database) else { return };
    let source = bgworker::in_bare_transaction(|| endpoint_config::source_of(oid, &installation.id));
    let sending = Sending::new(database, source, loaded);
    let extension = (installation.extension, version);
    let mut dispatcher = Dispatcher::new(database, decoder, extension, recording, sending);
    if is_any_unarmed {
        dispatcher.deferred.arming_is_left();
    }
    dispatcher.run(&mut receiver);
}

/// Ends the decoder with us, and tells that we are gone.
fn leave() {
    if let (Some(shared), Some(database)) = (registry::shared(), registry::my_database()) {
        registry::ask_to_stop(database);
        database.figures.store(0, Ordering::SeqCst);
        database.under_way.store(0, Ordering::SeqCst);
        database.tallies.store(0, Ordering::SeqCst);
        database.dispatched.memory.store(0, Ordering::Relaxed);
        database.dispatched.in_flight.store(0, Ordering::Relaxed);
        database.dispatcher.clear();
        database.dispatcher_pid.store(0, Ordering::SeqCst);
        // The launcher that started us may have been replaced; nobody tells its successor of our end.
        shared.launcher.wake();
    }
}

struct Dispatcher {
    database: &'static Database,
    decoder: WorkerHandle,
    intake: Intake,
    recording: Recording,
    sending: Sending,
    backfilling: Backfilling,
    /// A transaction is half told.
    within: bool,
    publisher: Publisher,
    /// Targets of the change to come that don't get it, and why.
    refusals: HashMap<i64, String>,
    /// Versions of subscriptions that were told and are not stored yet.
    versions: Vec<Version>,
    /// Gaps of tables that were told and are not stored yet.
    table_gaps: Vec<TableGapChange>,
    /// What other sessions' locks stand in the way of.
    deferred: DeferredWork,
    /// The first image is being told: what is stored so far belongs to a slot that is gone.
    image: Option<Vec<Version>>,
    /// The extension's oid: another one is another installation, whose slot is not ours.
    extension: pg_sys::Oid,
    /// What is to be said of what happened.
    notices: Notices,
    error_watch: ErrorWatch,
    /// The last failure of the pair is not over.
    unsettled: bool,
    /// The version of its SQL: after an update all begins anew.
    version: String,
    last_check: Instant,
    last_prune: Instant,
}

impl Dispatcher {
    fn new(
        database: &'static Database,
        decoder: WorkerHandle,
        (extension, version): (pg_sys::Oid, String),
        recording: Recording,
        sending: Sending,
    ) -> Dispatcher {
        let mut dispatcher = Dispatcher {
            database,
            decoder,
            intake: Intake::new(),
            recording,
            sending,
            backfilling: Backfilling::new(database),
            within: false,
            publisher: Publisher::new(database),
            refusals: HashMap::new(),
            versions: Vec::new(),
            table_gaps: Vec::new(),
            deferred: DeferredWork::new(),
            image: None,
            extension,
            notices: Notices::new(database),
            error_watch: ErrorWatch::new(),
            unsettled: database.problem.is_set() || database.failures.load(Ordering::SeqCst) > 0,
            version,
            last_check: Instant::now(),
            last_prune: Instant::now(),
        };
        // Without knowing who is subscribed nothing can be taken from the decoder.
        if let Some(rows) = dispatcher.with_tables(journal::all_subscriptions) {
            dispatcher.take_up_all(rows);
        }
        // Replays that were under way are known before anything newer arrives.
        database.commands.store(true, Ordering::SeqCst);
        dispatcher.obey();
        dispatcher
    }

    /// The main loop: outcomes, events, requests, records; then sleep until one of them has news.
    fn run(&mut self, receiver: &mut Receiver) {
        let mut wait_set = WaitSet::new(self.sending.wake_fd());
        shutdown::prepare();
        loop {
            if bgworker::see_to_interrupts() {
                effects::report_ca_file_problem();
                self.reload();
            }
            if shutdown::is_asked() {
                self.close(receiver, &mut wait_set);
                break;
            }
            if self.must_end() {
                break;
            }
            let mut busy = self.sending.collect_outcomes();
            let rests = self.intake.rests(&self.sending);
            busy |= !rests && self.receive(receiver);
            self.store_versions();
            self.store_table_gaps();
            self.try_deferred_work();
            self.obey();
            self.sending.test(self.database);
            // What happens does not wait for what was there before: a chunk is often complete by the very event that came.
            busy |= self.sending.submit();
            busy |= self.backfilling.go_on(&mut self.sending, &mut self.recording, !self.within);
            busy |= self.sending.submit();
            busy |= self.sending.render();
            // Behind that: what has just become ready to be read must not be slept over.
            busy |= self.sending.read_back(&mut self.recording);
            busy |= self.record();
            self.notify();
            self.settle();
            self.tell();
            if !busy && self.error_watch.look(self.recording.frontier(), &mut self.notices) {
                self.notices.write_system_events();
                self.notices.notify();
            }
            if !busy && !self.sending.arm() {
                bgworker::report_idle(self.sending.what_it_waits_for());
                let sending = self.sending.next_wakeup(self.recording.is_written());
                let backfills = self.backfilling.next_wakeup();
                let statistics = bgworker::report_statistics().map(|wait| Instant::now() + wait);
                let wakeups = sending
                    .into_iter()
                    .chain(self.recording.next_wakeup())
                    .chain(rests.then(|| self.intake.rests_until(&self.sending)))
                    .chain(statistics)
                    .chain(backfills)
                    .chain(self.notices.next_wakeup())
                    .chain(self.error_watch.next_wakeup())
                    .chain(self.unsettled.then(|| Instant::now() + SETTLE_EVERY))
                    .chain(self.deferred.next_wakeup());
                wait_set.wait(wakeups.min(), startup::RECHECK_EVERY);
                self.sending.disarm();
            }
        }
    }

    /// The server goes down: what it has committed is journaled, and nothing is sent any more. The decoder ends when the slot
    /// is confirmed behind all of it; whatever was written after that would be left to be decoded.
    fn close(&mut self, receiver: &mut Receiver, wait_set: &mut WaitSet) {
        bgworker::report_busy(c"recording what was committed before the server goes down");
        let asked = Instant::now();
        let mut rests = false;
        while !self.decoder.has_ended() {
            bgworker::see_to_interrupts();
            if !rests {
                self.sending.collect_outcomes();
                self.take_what_happened();
            }
            let busy = self.receive(receiver);
            self.store_versions();
            self.store_table_gaps();
            let last = !rests && (!self.sending.is_any_under_way() || asked.elapsed() > ANSWERS_WITHIN);
            if last {
                let positions = self.sending.positions(true);
                self.recording.checkpoint(positions);
            }
            if !self.recording.write() {
                return;
            }
            rests |= last;
            self.database.rests.store(rests, Ordering::SeqCst);
            self.tell();
            if !busy {
                wait_set.wait(None, CLOSING_WAIT);
            }
        }
    }

    /// Sends by the settings and subscriptions of now.
    fn reload(&mut self) {
        self.error_watch.look_again();
        match self.unless_locked(pg_sys::AccessShareLock, journal::all_subscriptions) {
            Some(rows) => self.take_up_all(rows),
            None => self.deferred.reload = true,
        }
    }

    fn take_up_all(&mut self, rows: Vec<SubscriptionRow>) {
        self.recording.keep_for(&[], &rows);
        self.sending.reload(rows, self.recording.last());
    }

    /// Runs the action in a transaction that may use our tables; none when they are not there any more.
    fn with_tables<T>(&self, action: impl FnOnce() -> T) -> Option<T> {
        let done = journal::with_tables(|extension| (extension == self.extension).then(action)).flatten();
        if done.is_none() {
            self.database.recheck.store(true, Ordering::SeqCst);
        }
        done
    }

    /// Leaves processes and slot to other databases, unless this one is no copy after all. No
    /// subscription can be made meanwhile, and one that is made later finds no slot that it could rely on.
    fn gives_way(&self) -> bool {
        if !self.database.give_way.swap(false, Ordering::SeqCst) || self.database.is_asked() {
            return false;
        }
        let gives_way = || {
            let idle = journal::keep_subscriptions_as_they_are() && journal::are_all_copies();
            if idle {
                // What is captured from a new slot on begins with a new image.
                journal::forget_image();
                self.database.set_phase(Phase::GaveWay);
            }
            idle
        };
        self.with_tables(gives_way).unwrap_or_default()
    }

    /// Runs the action as [`Dispatcher::with_tables`] does, with locks of that mode on the tables that sessions write to; none, too, when
    /// that would have to wait for a session.
    fn unless_locked<T>(&mut self, mode: u32, action: impl FnOnce() -> T) -> Option<T> {
        let ours = self.extension;
        let done =
            journal::unless_locked(mode, &SESSION_TABLES, |extension| (extension == ours).then(action));
        match done {
            Locked::Done(Some(done)) => Some(done),
            Locked::Yes => {
                self.deferred.tables_are_locked();
                None
            }
            Locked::Done(None) | Locked::Gone => {
                self.database.recheck.store(true, Ordering::SeqCst);
                None
            }
        }
    }

    /// Tries again what locks of other sessions stood in the way of.
    fn try_deferred_work(&mut self) {
        if self.deferred.rests() {
            return;
        }
        if std::mem::take(&mut self.deferred.reload) {
            self.reload();
        }
        let unread: Vec<i64> = self.deferred.unread.drain().collect();
        if !unread.is_empty() {
            self.read_again(&unread);
        }
        if self.deferred.takes_disables() {
            self.write_disables();
        }
        if self.deferred.takes_arming() {
            if self.unless_locked(pg_sys::RowExclusiveLock, clone_check::arm).unwrap_or(true) {
                self.deferred.arming_is_left();
            }
            self.reload();
        }
    }

    /// Writes of subscriptions that are disabled that they are, as far as nobody holds a lock on their rows.
    fn write_disables(&mut self) {
        let written = journal::as_news(journal::write_disables);
        if matches!(written, Locked::Yes) {
            self.deferred.tables_are_locked();
        }
        match written {
            Locked::Done((done, is_any_left)) => {
                if !done.is_empty() {
                    self.read_again(&done);
                }
                if is_any_left {
                    self.deferred.disables_are_left();
                }
            }
            Locked::Yes | Locked::Gone => self.deferred.disables_are_left(),
        }
    }

    /// Whether it is over. A decoder that has ended ends us, too: what is in memory is decoded again.
    fn must_end(&mut self) -> bool {
        if startup::must_end(self.database) || self.extension_is_another() {
            self.take_what_happened();
            self.recording.write();
            self.notify();
            self.end_decoder();
            self.sending.end_renderers();
            match bgworker::in_transaction(journal::extension) {
                None => startup::retire(self.database),
                // One that is there now has another installation, or another version.
                Some(_) if !startup::must_end(self.database) => self.database.set_phase(Phase::Quiesced),
                Some(_) => {}
            }
            return true;
        }
        if self.gives_way() {
            self.recording.write();
            self.end_decoder();
            self.sending.end_renderers();
            startup::drop_stale_slots(self.database.oid(), c"");
            let others = registry::shared().into_iter().flat_map(Shared::databases);
            others.filter(|other| other.phase() == Phase::NoFreeSlot).for_each(|other| other.decoder.wake());
            pgrx::log!(
                "pgstream_hooks: nothing is to be sent from this database, and its worker processes are left to others"
            );
            return true;
        }
        if self.decoder.has_ended() {
            return self.decoder_has_gone();
        }
        false
    }

    /// Whether our installation has been dropped or updated, by what somebody told or by looking now and then.
    fn extension_is_another(&mut self) -> bool {
        let told = self.database.recheck.swap(false, Ordering::SeqCst);
        if !told && self.last_check.elapsed() < startup::RECHECK_EVERY {
            return false;
        }
        self.last_check = Instant::now();
        // And what was asked for, whoever did not ring.
        self.database.commands.store(true, Ordering::SeqCst);
        let there = bgworker::in_transaction(|| journal::extension().zip(journal::extension_version()));
        there.is_none_or(|(extension, version)| extension != self.extension || version != self.version)
    }

    /// The server may be going down, or somebody has ended the decoder; its log says why.
    fn decoder_has_gone(&self) -> bool {
        pgrx::log!("pgstream_hooks: the decoder of this database has ended; both are started again");
        true
    }

    /// Waits for the decoder to end, so that its slot is free.
    fn end_decoder(&self) {
        registry::ask_to_stop(self.database);
        bgworker::report_busy(c"waiting for the decoder to end");
        let gentle = Instant::now() + Duration::from_secs(2);
        while !self.decoder.has_ended() {
            if Instant::now() > gentle {
                self.decoder.terminate();
            }
            // The decoder's end sets our latch.
            bgworker::sleep(Some(Duration::from_millis(100)));
        }
    }

    /// Takes a round of what the decoder has sent, unless it is time to write. Returns whether there was anything.
    fn receive(&mut self, receiver: &mut Receiver) -> bool {
        if self.recording.is_full() {
            return false;
        }
        let items = self.intake.take(receiver, self.database, &self.sending);
        let targets = items.iter().flat_map(Item::targets);
        self.sending.prefetch(targets.map(|target| target.subscription));
        let any = !items.is_empty();
        items.into_iter().for_each(|item| self.take(item));
        any
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::ImageBegin { .. } => self.image = Some(Vec::new()),
            Item::Subscription { id, lsn, spec } => {
                let version = Version { id, lsn, spec };
                self.image.as_mut().unwrap_or(&mut self.versions).push(version);
            }
            Item::ImageEnd { lsn } => self.store_first_image(lsn),
            // Its events may be for a subscription that was told of just before.
            Item::Begin(_) => {
                self.within = true;
                self.store_versions();
            }
            Item::Refusal { subscription, reason } => {
                self.refusals.insert(subscription, reason);
            }
            Item::Change { .. } | Item::Failed { .. } => {
                let refusals = std::mem::take(&mut self.refusals);
                // What is decoded again is in the journal already, and so is what becomes of it.
                if let Some(first) = self.recording.append(&item) {
                    self.backfilling.note(&item, &refusals, &mut self.recording);
                    self.sending.arrive(first, item, &refusals, &mut self.recording);
                }
            }
            Item::Commit { end_lsn } => {
                self.within = false;
                self.recording.arrived(end_lsn);
            }
            Item::Progress { lsn } => self.recording.arrived(lsn),
            Item::TableGap(gap) => self.table_gaps.push(TableGapChange::Begin(gap)),
            Item::TableGapEnd(end) => self.table_gaps.push(TableGapChange::End(end)),
            // The decoder tells of none.
            Item::Chunk(_) | Item::NoChunk { .. } => {}
        }
    }

    /// Journals what has happened, when it is time, and has done what follows from it. Returns whether there was
    /// anything that something else may wait for.
    fn record(&mut self) -> bool {
        let any = self.take_what_happened();
        let positions = self.recording.checkpoint_wanted().map(|all| self.sending.positions(all));
        if let Some(positions) = positions {
            self.recording.checkpoint(positions);
        }
        if self.recording.is_due() && !self.recording.write() {
            self.database.recheck.store(true, Ordering::SeqCst);
        }
        self.recording.retain(|| self.sending.oldest_pending());
        any
    }

    /// Takes what became of requests, and does what follows from that before it is written. Returns whether anything does.
    fn take_what_happened(&mut self) -> bool {
        self.sending.hand_over_records(&mut self.recording);
        let effects = self.sending.take_effects();
        if !effects::carry_out(&effects, &mut self.notices) {
            self.deferred.disables_are_left();
        }
        self.notices.write_system_events();
        !effects.is_empty()
    }

    /// Notifies those who listen of what is written.
    fn notify(&mut self) {
        if self.recording.is_written() {
            self.backfilling.take_ended().into_iter().for_each(|ended| self.notices.add_notification(ended));
            self.notices.notify();
        }
    }

    /// Forgets that the pair has failed, once it has made progress since.
    fn settle(&mut self) {
        if self.unsettled && self.database.is_steady() {
            self.unsettled = false;
            self.database.failures.store(0, Ordering::SeqCst);
            self.database.problem.set("");
        }
    }

    /// Does what sessions have asked for since they last rang.
    fn obey(&mut self) {
        if self.deferred.rests() || !self.database.commands.swap(false, Ordering::SeqCst) {
            return;
        }
        let read = || (journal::commands(), journal::open_replays(), journal::open_backfills());
        let Some((commands, replays, backfills)) = self.unless_locked(pg_sys::RowExclusiveLock, read) else {
            self.database.commands.store(true, Ordering::SeqCst);
            return;
        };
        self.sending.replay(replays);
        self.backfilling.take_up(backfills);
        // What is to be forgotten is known when the log has told of everything before the adoption.
        let (discards, commands): (Vec<_>, Vec<_>) =
            commands.into_iter().partition(|command| matches!(command.kind, CommandKind::Discard { .. }));
        self.discard(discards);
        for command in &commands {
            match command.kind {
                CommandKind::Reload { subscription } => self.read_again(&[subscription]),
                CommandKind::PauseBackfill { backfill } => self.backfilling.pause(backfill),
                CommandKind::ResumeBackfill { backfill } => self.backfilling.resume(backfill),
                CommandKind::CancelBackfill { backfill } => self.backfilling.cancel(backfill),
                kind => self.sending.obey(kind, self.recording.journal()),
            }
        }
        // What was done is on record before it is forgotten that it was asked for.
        self.sending.hand_over_records(&mut self.recording);
        if !commands.is_empty() && self.recording.write() {
            self.unless_locked(pg_sys::RowExclusiveLock, || journal::commands_done(&commands));
        }
    }

    /// Forgets what subscriptions have pending, on record, and only then lets them send.
    fn discard(&mut self, commands: Vec<Command>) {
        let mut ids = Vec::new();
        let commands: Vec<Command> = commands
            .into_iter()
            .filter(|command| match command.kind {
                CommandKind::Discard { subscription, upto: Some(upto) } => {
                    self.sending.discard(subscription, upto, self.recording.last());
                    ids.push(subscription);
                    true
                }
                _ => false,
            })
            .collect();
        if ids.is_empty() {
            return;
        }
        // Taken up again, they are still held: the commands are there.
        self.read_again(&ids);
        self.sending.hand_over_records(&mut self.recording);
        let positions = self.sending.positions(true);
        self.recording.checkpoint(positions);
        if self.recording.write() {
            if self.unless_locked(pg_sys::RowExclusiveLock, || journal::commands_done(&commands)).is_none() {
                // They are held until that is done.
                self.database.commands.store(true, Ordering::SeqCst);
            }
            self.read_again(&ids);
        }
    }

    fn read_again(&mut self, ids: &[i64]) {
        match self.unless_locked(pg_sys::AccessShareLock, || journal::subscriptions(ids)) {
            Some(rows) => {
                self.recording.keep_for(ids, &rows);
                self.sending.edit(ids, rows, self.recording.last());
            }
            None => {
                self.sending.suspend(ids, self.recording.last());
                self.deferred.unread.extend(ids);
            }
        }
    }

    /// Replaces the image by the first one of a new slot; the decoder waits for that.
    fn store_first_image(&mut self, consistent: Lsn) {
        let image = self.image.take().unwrap_or_default();
        let high = self.recording.journal().high();
        let given_up = self.database.slot_given_up.swap(false, Ordering::SeqCst);
        let gaps = self.with_tables(|| {
            let gaps = journal::note_loss(high, consistent, given_up);
            journal::forget_image();
            journal::store_image(&image);
            gaps
        });
        if let Some(gaps) = gaps {
            effects::tell_of_gaps(gaps, consistent, &mut self.notices);
            self.database.image_saved.store(true, Ordering::SeqCst);
            self.database.decoder.wake();
        }
    }

    /// Stores versions of subscriptions before any progress beyond them is told, and sends by them from here on. Where other sessions'
    /// locks stand in the way, just these subscriptions wait, and what arrives is not confirmed.
    fn store_versions(&mut self) {
        if self.versions.is_empty() || !self.deferred.takes_versions(self.versions.len()) {
            return;
        }
        let versions = std::mem::take(&mut self.versions);
        let left = if self.deferred.rests() { versions } else { self.try_to_store(versions) };
        let suspended: HashSet<i64> = left.iter().map(|version| version.id).collect();
        let suspended: Vec<i64> = suspended.into_iter().collect();
        self.sending.suspend(&suspended, self.recording.last());
        self.deferred.versions_are_left(left.len());
        self.deferred.rows_have_changed();
        self.versions = left;
        self.hold_unstored();
    }

    /// Returns those that could not be stored.
    fn try_to_store(&mut self, versions: Vec<Version>) -> Vec<Version> {
        let ids: HashSet<i64> = versions.iter().map(|version| version.id).collect();
        let mut ids: Vec<i64> = ids.into_iter().collect();
        let confirmed = Lsn(self.database.saved.load(Ordering::SeqCst));
        // It looks through the whole image, which may be of a hundred thousand subscriptions.
        let prune = self.last_prune.elapsed() >= PRUNE_EVERY;
        if prune {
            self.last_prune = Instant::now();
        }
        let last = self.recording.last();
        let (mut now, mut left) = (versions, Vec::new());
        let store = || {
            let locked = journal::locked_subscriptions(&ids);
            if !locked.is_empty() {
                ids.retain(|id| !locked.contains(id));
                (left, now) =
                    std::mem::take(&mut now).into_iter().partition(|version| locked.contains(&version.id));
            }
            journal::store_image(&now);
            let gaps = journal::note_gaps(&now);
            if prune {
                journal::prune_image(confirmed);
            }
            journal::begin_discards(&ids, last);
            (journal::subscriptions(&ids), gaps, journal::are_all_copies())
        };
        let stored =
            bgworker::without_waiting_for_disk(|| self.unless_locked(pg_sys::RowExclusiveLock, store));
        let Some((rows, gaps, is_copy)) = stored else { return now };
        self.recording.must_flush();
        if gaps {
            self.notices.look_for_gaps();
        }
        self.database.set_demand(Demand::of(is_copy));
        let some_are_gone = rows.len() < ids.len();
        if rows.iter().any(|row| row.held) {
            self.database.commands.store(true, Ordering::SeqCst);
        }
        self.recording.keep_for(&ids, &rows);
        self.backfilling.read_again(&ids);
        self.sending.edit(&ids, rows, self.recording.last());
        if some_are_gone
            && !self.backfilling.is_idle()
            && let Some(open) = self.unless_locked(pg_sys::RowExclusiveLock, journal::open_backfills)
        {
            self.backfilling.keep(&open);
        }
        left
    }

    /// Records gaps of tables before any progress beyond their commits is told. Where other sessions' locks stand in the way,
    /// nothing beyond is confirmed.
    fn store_table_gaps(&mut self) {
        if self.table_gaps.is_empty() {
            return;
        }
        let changes = std::mem::take(&mut self.table_gaps);
        let stored = if self.deferred.rests() {
            None
        } else {
            let store = || journal::store_table_gaps(&changes);
            bgworker::without_waiting_for_disk(|| self.unless_locked(pg_sys::RowExclusiveLock, store))
        };
        match stored {
            Some(begun) => {
                self.recording.must_flush();
                let ended = changes.iter().filter_map(|change| match change {
                    TableGapChange::End(end) => Some(end.subscription),
                    TableGapChange::Begin(_) => None,
                });
                self.backfilling.read_again(&ended.collect::<Vec<_>>());
                effects::tell_of_table_gaps(begun, &mut self.notices);
            }
            None => self.table_gaps = changes,
        }
        self.hold_unstored();
    }

    /// Nothing is confirmed while the log has told of something that could not be stored.
    fn hold_unstored(&mut self) {
        self.recording.hold(!self.versions.is_empty() || !self.table_gaps.is_empty());
    }

    /// Tells the decoder what may be confirmed, and everybody how subscriptions fare.
    fn tell(&mut self) {
        let (frontier, confirmable) = (self.recording.frontier(), self.recording.proven());
        // Who looks at the frontier and then at figures must not find figures from before it; and who finds something in
        // the figures must find it in the journal.
        if self.recording.is_written()
            && let Some(shown) = self.sending.publish(&mut self.publisher, frontier)
        {
            self.database.frontier.store(shown.0, Ordering::Release);
        }
        self.database.confirmable.store(confirmable.0, Ordering::Release);
        self.sending.tell(&self.database.dispatched);
    }
}
