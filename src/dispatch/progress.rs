//! How far everything is done: what the slot may be confirmed to.
//!
//! Transactions with something outstanding form a chain in commit order. One that is done leaves the chain at
//! once and hands what it proves to the one before it, so memory grows with what is outstanding, not with what
//! has passed since the oldest of it.

use slab::Slab;

use crate::event::Lsn;

/// Names a transaction as long as something of it is outstanding or it has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TransactionId(u32);

const NONE: u32 = u32::MAX;

struct Open {
    commit_lsn: Lsn,
    /// Once this transaction and all before it are done, everything that ended at or before this is.
    proves: Lsn,
    outstanding: usize,
    older: u32,
    newer: u32,
}

/// The transactions that are not done, in commit order.
pub(super) struct Progress {
    chain: Slab<Open>,
    newest: u32,
    /// The transaction whose end has not come yet.
    receiving: u32,
    confirmed: Lsn,
    frontier: Lsn,
}

impl Progress {
    /// Everything that ended at or before `start` is done.
    pub fn new(start: Lsn) -> Progress {
        Progress { chain: Slab::new(), newest: NONE, receiving: NONE, confirmed: start, frontier: start }
    }

    /// The next transaction in commit order begins to arrive. One that has not ended by now never will: its
    /// decoder is gone, and the next one sends it again from its beginning.
    pub fn begin(&mut self, commit_lsn: Lsn) -> TransactionId {
        self.abandon();
        let slot = self.chain.insert(Open {
            commit_lsn,
            proves: commit_lsn,
            outstanding: 0,
            older: self.newest,
            newer: NONE,
        }) as u32;
        if let Some(older) = self.chain.get_mut(self.newest as usize) {
            older.newer = slot;
        }
        self.newest = slot;
        self.receiving = slot;
        TransactionId(slot)
    }

    /// One more delivery is outstanding of the transaction that is arriving; None between transactions.
    pub fn added(&mut self) -> Option<TransactionId> {
        let transaction = self.chain.get_mut(self.receiving as usize)?;
        transaction.outstanding += 1;
        Some(TransactionId(self.receiving))
    }

    /// The transaction has arrived whole; it ended at `end_lsn`, where its commit record ends.
    pub fn commit(&mut self, end_lsn: Lsn) {
        if let Some(transaction) = self.chain.get_mut(self.receiving as usize) {
            transaction.proves = end_lsn;
        }
        self.abandon();
        self.idle(end_lsn);
    }

    /// One delivery is done.
    pub fn done(&mut self, id: TransactionId) {
        let Some(transaction) = self.chain.get_mut(id.0 as usize) else { return };
        transaction.outstanding -= 1;
        if transaction.outstanding == 0 && id.0 != self.receiving {
            self.unchain(id.0);
        }
    }

    /// Everything that ended at or before `lsn` has arrived.
    pub fn idle(&mut self, lsn: Lsn) {
        if self.receiving != NONE {
            return;
        }
        self.frontier = self.frontier.max(lsn);
        self.prove(self.newest, lsn);
    }

    /// Every transaction that ended at or before this has arrived and has nothing outstanding.
    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// Every transaction that ended at or before this has arrived.
    pub fn frontier(&self) -> Lsn {
        self.frontier
    }

    /// Where the commit record of a transaction that is not done begins.
    pub fn commit_lsn(&self, id: TransactionId) -> Lsn {
        self.chain.get(id.0 as usize).map_or(self.confirmed, |transaction| transaction.commit_lsn)
    }

    fn abandon(&mut self) {
        let slot = std::mem::replace(&mut self.receiving, NONE);
        if self.chain.get(slot as usize).is_some_and(|transaction| transaction.outstanding == 0) {
            self.unchain(slot);
        }
    }

    fn unchain(&mut self, slot: u32) {
        let Open { proves, older, newer, .. } = self.chain.remove(slot as usize);
        if let Some(older) = self.chain.get_mut(older as usize) {
            older.newer = newer;
        }
        match self.chain.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        self.prove(older, proves);
        if self.chain.is_empty() {
            // Gives the memory of a burst back.
            self.chain.shrink_to_fit();
        }
    }

    /// Once the transaction in this slot and all before it are done, so is all that ended at or before `lsn`.
    fn prove(&mut self, slot: u32, lsn: Lsn) {
        let proves = match self.chain.get_mut(slot as usize) {
            Some(transaction) => &mut transaction.proves,
            None => &mut self.confirmed,
        };
        *proves = (*proves).max(lsn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_out_of_order_is_confirmed_when_the_oldest_is() {
        let mut progress = Progress::new(Lsn(5));
        let transactions: Vec<_> = (1..=3)
            .map(|n| {
                let id = progress.begin(Lsn(n * 100));
                progress.added();
                progress.commit(Lsn(n * 100 + 10));
                id
            })
            .collect();
        progress.idle(Lsn(400));
        assert_eq!((progress.confirmed(), progress.frontier()), (Lsn(5), Lsn(400)));
        progress.done(transactions[1]);
        assert_eq!(progress.confirmed(), Lsn(5));
        progress.done(transactions[0]);
        assert_eq!(progress.confirmed(), Lsn(210));
        progress.done(transactions[2]);
        assert_eq!(progress.confirmed(), Lsn(400));
    }

    #[test]
    fn a_transaction_still_arriving_is_not_confirmed_though_all_of_it_so_far_is_done() {
        let mut progress = Progress::new(Lsn(0));
        let id = progress.begin(Lsn(100));
        progress.added();
        progress.done(id);
        progress.idle(Lsn(500));
        assert_eq!(progress.confirmed(), Lsn(0));
        progress.commit(Lsn(110));
        assert_eq!(progress.confirmed(), Lsn(110));
    }

    #[test]
    fn what_matched_nobody_is_confirmed_at_once_when_nothing_is_before_it() {
        let mut progress = Progress::new(Lsn(0));
        progress.begin(Lsn(100));
        progress.commit(Lsn(110));
        assert_eq!(progress.confirmed(), Lsn(110));
        progress.idle(Lsn(300));
        assert_eq!(progress.confirmed(), Lsn(300));
        progress.idle(Lsn(200));
        assert_eq!(progress.confirmed(), Lsn(300));
    }

    #[test]
    fn a_transaction_cut_off_by_a_lost_decoder_is_confirmed_only_when_sent_again_whole() {
        let mut progress = Progress::new(Lsn(0));
        let cut_off = progress.begin(Lsn(100));
        progress.added();
        let again = progress.begin(Lsn(100));
        progress.done(cut_off);
        assert_eq!(progress.confirmed(), Lsn(100), "what ended before it began is done");
        progress.added();
        progress.commit(Lsn(110));
        assert_eq!(progress.confirmed(), Lsn(100));
        progress.done(again);
        assert_eq!(progress.confirmed(), Lsn(110));
    }

    #[test]
    fn millions_behind_one_that_is_stuck_take_no_memory_once_they_are_done() {
        let mut progress = Progress::new(Lsn(0));
        let stuck = progress.begin(Lsn(1));
        progress.added();
        progress.commit(Lsn(2));
        for n in 1..1_000_000 {
            let id = progress.begin(Lsn(n * 10));
            progress.added();
            progress.commit(Lsn(n * 10 + 5));
            progress.done(id);
        }
        assert_eq!((progress.confirmed(), progress.chain.len()), (Lsn(0), 1));
        progress.done(stuck);
        assert_eq!(progress.confirmed(), Lsn(9_999_995));
    }
}
