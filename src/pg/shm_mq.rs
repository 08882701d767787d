//! The queues between our processes: `shm_mq` in dynamic shared memory segments, used as streams of bytes.

use pgrx::pg_sys;

/// The other side is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Detached;

/// The end where bytes come out.
pub struct Receiver {
    queue: *mut pg_sys::shm_mq_handle,
    segment: *mut pg_sys::dsm_segment,
}

impl Receiver {
    /// Makes a queue of about `size` bytes.
    pub fn create(size: usize) -> Receiver {
        // SAFETY: outside a transaction the segment and the handle (in the top memory context) last as long as the
        // process or until detached; the queue takes the whole segment.
        unsafe {
            let previous = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let segment = pg_sys::dsm_create(size, 0);
            pg_sys::dsm_pin_mapping(segment);
            let queue = pg_sys::shm_mq_create(pg_sys::dsm_segment_address(segment), size);
            pg_sys::shm_mq_set_receiver(queue, pg_sys::MyProc);
            let queue = pg_sys::shm_mq_attach(queue, segment, std::ptr::null_mut());
            pg_sys::MemoryContextSwitchTo(previous);
            Receiver { queue, segment }
        }
    }

    /// What the sender needs to find the queue.
    pub fn handle(&self) -> u32 {
        // SAFETY: the segment is attached.
        unsafe { pg_sys::dsm_segment_handle(self.segment) }
    }

    /// Lets go of the queue, with all that is in it.
    pub fn close(self) {
        // SAFETY: the handle and the segment are live, and nobody uses them any more.
        unsafe {
            pg_sys::shm_mq_detach(self.queue);
            pg_sys::dsm_detach(self.segment);
        }
    }

    /// The next piece of the stream, if one is there. The process' latch is set when there may be more.
    pub fn receive(&mut self) -> Result<Option<&[u8]>, Detached> {
        self.take(true)
    }

    /// The next piece of the stream; waits for it, and serves interrupts meanwhile.
    pub fn await_piece(&mut self) -> Result<&[u8], Detached> {
        self.take(false)?.ok_or(Detached)
    }

    fn take(&mut self, at_once: bool) -> Result<Option<&[u8]>, Detached> {
        let mut length = 0;
        let mut data = std::ptr::null_mut();
        // SAFETY: the handle is live; the data stays until the next call, which the borrow forbids meanwhile.
        unsafe {
            match pg_sys::shm_mq_receive(self.queue, &mut length, &mut data, at_once) {
                pg_sys::shm_mq_result::SHM_MQ_SUCCESS => {
                    Ok(Some(std::slice::from_raw_parts(data.cast::<u8>(), length)))
                }
                pg_sys::shm_mq_result::SHM_MQ_WOULD_BLOCK => Ok(None),
                _ => Err(Detached),
            }
        }
    }
}

/// The end where bytes go in.
pub struct Sender {
    queue: *mut pg_sys::shm_mq_handle,
}

impl Sender {
    /// The longest piece sent at once: both sides would keep memory for the longest they have seen.
    pub const PIECE: usize = 64 * 1024;

    /// Attaches to the queue that the dispatcher made.
    pub fn attach(handle: u32) -> Result<Sender, Detached> {
        // SAFETY: the segment holds a queue from its beginning, made by `Receiver::create`.
        unsafe {
            let previous = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let segment = pg_sys::dsm_attach(handle);
            let sender = if segment.is_null() {
                Err(Detached)
            } else {
                pg_sys::dsm_pin_mapping(segment);
                let queue = pg_sys::dsm_segment_address(segment).cast::<pg_sys::shm_mq>();
                pg_sys::shm_mq_set_sender(queue, pg_sys::MyProc);
                Ok(Sender { queue: pg_sys::shm_mq_attach(queue, segment, std::ptr::null_mut()) })
            };
            pg_sys::MemoryContextSwitchTo(previous);
            sender
        }
    }

    /// Sends as many of the bytes as there is room for, without waiting; how many. The process' latch is set when there
    /// is more room, and then the rest has to follow as it is.
    pub fn send_some(&mut self, bytes: &[u8]) -> Result<usize, Detached> {
        let mut sent = 0;
        for piece in bytes.chunks(Self::PIECE) {
            // SAFETY: the handle is live; a piece that would block is sent again with the same bytes.
            match unsafe { pg_sys::shm_mq_send(self.queue, piece.len(), piece.as_ptr().cast(), true, true) } {
                pg_sys::shm_mq_result::SHM_MQ_SUCCESS => sent += piece.len(),
                pg_sys::shm_mq_result::SHM_MQ_WOULD_BLOCK => break,
                _ => return Err(Detached),
            }
        }
        Ok(sent)
    }

    /// Sends all bytes, waiting while the queue is full, as a walsender waits on its socket. Interrupts are served.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Detached> {
        for piece in bytes.chunks(Self::PIECE) {
            // SAFETY: the handle is live; a piece that would block must be sent again with the same bytes, as it is.
            unsafe {
                let data = piece.as_ptr().cast();
                let mut result = pg_sys::shm_mq_send(self.queue, piece.len(), data, true, true);
                if result == pg_sys::shm_mq_result::SHM_MQ_WOULD_BLOCK {
                    // Building relation cache entries has set this backend's xmin, which would hold up vacuum for as
                    // long as we wait.
                    pg_sys::InvalidateCatalogSnapshot();
                    result = pg_sys::shm_mq_send(self.queue, piece.len(), data, false, true);
                }
                if result != pg_sys::shm_mq_result::SHM_MQ_SUCCESS {
                    return Err(Detached);
                }
            }
        }
        Ok(())
    }
}

/// Two queues in one segment, one each way, between a process and another that it starts.
pub struct Pair {
    sender: Sender,
    receiver: Receiver,
}

impl Pair {
    /// Makes both queues, each of about `size` bytes.
    pub fn create(size: usize) -> Pair {
        // SAFETY: as in `Receiver::create`; each queue takes its half of the segment.
        unsafe {
            let previous = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let segment = pg_sys::dsm_create(2 * size, 0);
            pg_sys::dsm_pin_mapping(segment);
            let address = pg_sys::dsm_segment_address(segment).cast::<u8>();
            let (out, back) = (
                pg_sys::shm_mq_create(address.cast(), size),
                pg_sys::shm_mq_create(address.add(size).cast(), size),
            );
            pg_sys::shm_mq_set_sender(out, pg_sys::MyProc);
            pg_sys::shm_mq_set_receiver(back, pg_sys::MyProc);
            let pair = Pair::of(segment, out, back);
            pg_sys::MemoryContextSwitchTo(previous);
            pair
        }
    }

    /// Attaches to the queues, each of `size` bytes, that the other process made.
    pub fn attach(handle: u32, size: usize) -> Result<Pair, Detached> {
        // SAFETY: the segment holds two queues, made by `Pair::create` with the same size.
        unsafe {
            let previous = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let segment = pg_sys::dsm_attach(handle);
            let pair = if segment.is_null() {
                Err(Detached)
            } else {
                pg_sys::dsm_pin_mapping(segment);
                let address = pg_sys::dsm_segment_address(segment).cast::<u8>();
                let (back, out) = (address.cast(), address.add(size).cast());
                pg_sys::shm_mq_set_sender(out, pg_sys::MyProc);
                pg_sys::shm_mq_set_receiver(back, pg_sys::MyProc);
                Ok(Pair::of(segment, out, back))
            };
            pg_sys::MemoryContextSwitchTo(previous);
            pair
        }
    }

    /// # Safety
    /// The queues are in the segment, and this process is the sender of one and the receiver of the other.
    unsafe fn of(
        segment: *mut pg_sys::dsm_segment,
        out: *mut pg_sys::shm_mq,
        back: *mut pg_sys::shm_mq,
    ) -> Pair {
        // SAFETY: as the caller promises.
        unsafe {
            Pair {
                sender: Sender { queue: pg_sys::shm_mq_attach(out, segment, std::ptr::null_mut()) },
                receiver: Receiver {
                    queue: pg_sys::shm_mq_attach(back, segment, std::ptr::null_mut()),
                    segment,
                },
            }
        }
    }

    /// What the other process needs to find the queues.
    pub fn handle(&self) -> u32 {
        self.receiver.handle()
    }

    /// The queue from here.
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// The queue to here.
    pub fn receiver(&mut self) -> &mut Receiver {
        &mut self.receiver
    }
}

impl Drop for Pair {
    /// The other process finds itself alone.
    fn drop(&mut self) {
        // SAFETY: both handles are live and used no more, and the mapping is this process' own.
        unsafe {
            pg_sys::shm_mq_detach(self.sender.queue);
            pg_sys::shm_mq_detach(self.receiver.queue);
            pg_sys::dsm_detach(self.receiver.segment);
        }
    }
}
