//! The buffers of a request and its answer. They belong to a thread, not to a connection, so that a thousand
//! idle connections hold none.

use ureq::unversioned::transport::Buffers;

/// Bytes gathered before they are written. A request that fits is one system call.
const OUTPUT_SIZE: usize = 32 * 1024;
/// The space that is always left for the next piece: `ureq` wants room for a whole line of the head.
const OUTPUT_RESERVE: usize = 16 * 1024;
/// What is first allocated for an answer, and kept between answers.
const INPUT_SIZE: usize = 4 * 1024;
/// The most that is held of an answer not yet understood. More than `MAX_HEAD_SIZE`, which `ureq` checks.
const MAX_INPUT_SIZE: usize = 64 * 1024;
/// The longest head of an answer, in bytes.
pub(super) const MAX_HEAD_SIZE: usize = 32 * 1024;

/// Gathers output until it is worth writing and holds input until it is understood. Allocates with the first use.
#[derive(Default)]
pub(super) struct RequestBuffers {
    output: Vec<u8>,
    gathered: usize,
    input: Vec<u8>,
    /// Of `input`, what is read and not consumed.
    start: usize,
    end: usize,
    /// Whether the last consumption got on.
    progress: bool,
}

impl RequestBuffers {
    /// Forgets what is inside.
    pub fn clear(&mut self) {
        (self.gathered, self.start, self.end, self.progress) = (0, 0, 0, false);
        if self.input.len() > INPUT_SIZE {
            self.input = Vec::new();
        }
    }

    /// Counts `amount` bytes of [`Buffers::output`] as gathered.
    pub fn gather(&mut self, amount: usize) {
        self.gathered += amount;
    }

    /// What is to be written.
    pub fn gathered(&self) -> &[u8] {
        &self.output[..self.gathered]
    }

    /// Makes room after [`RequestBuffers::gathered`] was written.
    pub fn written(&mut self) {
        self.gathered = 0;
    }

    /// Whether it is time to write.
    pub fn is_output_full(&self) -> bool {
        self.output.len() - self.gathered < OUTPUT_RESERVE
    }

    /// Whether no more can be read before some is consumed.
    pub fn is_input_full(&self) -> bool {
        self.end - self.start >= MAX_INPUT_SIZE
    }

    fn free_output(&mut self) -> &mut [u8] {
        if self.output.is_empty() {
            self.output = vec![0; OUTPUT_SIZE];
        }
        &mut self.output[self.gathered..]
    }
}

impl Buffers for RequestBuffers {
    fn output(&mut self) -> &mut [u8] {
        self.free_output()
    }

    fn input(&self) -> &[u8] {
        &self.input[self.start..self.end]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.input.len() && self.end < MAX_INPUT_SIZE {
            let size = (self.input.len() * 2).clamp(INPUT_SIZE, MAX_INPUT_SIZE);
            self.input.resize(size, 0);
        }
        &mut self.input[self.end..]
    }

    fn input_appended(&mut self, amount: usize) {
        self.end += amount;
    }

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        self.start += amount;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        // The scratch space is for bodies of unknown length, which are never sent here.
        (&mut [], self.free_output())
    }

    fn can_use_input(&self) -> bool {
        self.start < self.end && self.progress
    }
}
