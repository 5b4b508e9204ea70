//! A byte queue whose spare room is always initialised, so that it can be lent to a receive or to an
//! encryption without being zeroed again. Memory is given back when the owner says so, never by itself.

/// A head and a short answer have room in it.
const KEPT_BYTES: usize = 2048;

/// Bytes waiting between `start` and `end`; the rest of the memory is room.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// The bytes that wait, oldest first.
    pub fn filled(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether no byte waits.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// At least `wanted` bytes of room behind the waiting bytes; [`Buffer::advance`] counts what was written.
    pub fn room(&mut self, wanted: usize) -> &mut [u8] {
        if self.memory.len() - self.end < wanted && self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.memory.len() - self.end < wanted {
            self.memory.resize(self.end + wanted, 0);
        }
        &mut self.memory[self.end..]
    }

    /// Counts `written` bytes of the room as waiting.
    pub fn advance(&mut self, written: usize) {
        debug_assert!(self.end + written <= self.memory.len(), "more than the room that was lent");
        self.end += written;
    }

    /// Puts `bytes` behind those that wait.
    pub fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    /// Drops the `used` oldest bytes.
    pub fn consume(&mut self, used: usize) {
        debug_assert!(used <= self.len(), "more than waits");
        self.start += used;
        if self.start == self.end {
            self.clear();
        }
    }

    /// Drops every byte, keeps the memory.
    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Gives the memory back where no byte waits, but for what the next message may well need.
    pub fn release(&mut self) {
        if self.memory.capacity() > KEPT_BYTES {
            self.free();
        }
    }

    /// Gives all memory back where no byte waits.
    pub fn free(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_the_order_they_went_in() {
        let mut buffer = Buffer::default();
        buffer.push(b"abc");
        buffer.consume(2);
        buffer.push(b"defgh");
        assert_eq!(buffer.filled(), b"cdefgh");
        assert_eq!(buffer.len(), 6);
        buffer.consume(6);
        assert!(buffer.is_empty());
    }

    #[test]
    fn room_is_taken_from_the_front_before_the_memory_grows() {
        let mut buffer = Buffer::default();
        buffer.push(&[1; 100]);
        buffer.consume(90);
        assert_eq!(buffer.room(90).len(), 90);
        assert_eq!(buffer.filled(), [1; 10]);
    }

    #[test]
    fn memory_is_given_back_only_when_empty() {
        let mut buffer = Buffer::default();
        buffer.push(&[7; KEPT_BYTES + 1]);
        buffer.release();
        assert_eq!(buffer.len(), KEPT_BYTES + 1);
        buffer.consume(KEPT_BYTES + 1);
        buffer.release();
        assert_eq!(buffer.memory.capacity(), 0);
        buffer.push(b"x");
        buffer.free();
        assert_eq!(buffer.filled(), b"x");
        buffer.consume(1);
        buffer.release();
        assert_ne!(buffer.memory.capacity(), 0);
        buffer.free();
        assert_eq!(buffer.memory.capacity(), 0);
    }
}
