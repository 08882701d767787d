//! The queue between decoder and dispatcher: `shm_mq` in a dynamic shared memory segment, used as a stream of bytes.

use pgrx::pg_sys;

/// The other side is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Detached;

/// The dispatcher's end.
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

    /// The next piece of the stream, if one is there. The process' latch is set when there may be more.
    pub fn receive(&mut self) -> Result<Option<&[u8]>, Detached> {
        let mut length = 0;
        let mut data = std::ptr::null_mut();
        // SAFETY: the handle is live; the data stays until the next call, which the borrow forbids meanwhile.
        unsafe {
            match pg_sys::shm_mq_receive(self.queue, &mut length, &mut data, true) {
                pg_sys::shm_mq_result::SHM_MQ_SUCCESS => {
                    Ok(Some(std::slice::from_raw_parts(data.cast::<u8>(), length)))
                }
                pg_sys::shm_mq_result::SHM_MQ_WOULD_BLOCK => Ok(None),
                _ => Err(Detached),
            }
        }
    }
}

/// The decoder's end.
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
