//! A session whose records the kernel opens or seals, and what that leaves to the program: alerts, handshake messages, new
//! keys, and how many records a key may seal. Pure: asks no socket and sets no option. Uses the session of this folder.

use super::error::TlsError;
use super::established::{Session, TlsState};
use super::kernel_key::{KernelKey, Way};
use super::record::{ALERT, HANDSHAKE, KEY_UPDATE, Key, RecordError, RecordSuite, Version};
use crate::runtime::buffer::Buffer;

/// A record that is no data, to be sealed by the kernel by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ControlRecord {
    /// What comes behind it has a new key.
    KeyUpdate,
    /// The last word.
    Alert([u8; 2]),
}

impl ControlRecord {
    /// Its type (RFC 8446 5.1).
    pub fn kind(&self) -> u8 {
        match self {
            Self::KeyUpdate => HANDSHAKE,
            Self::Alert(_) => ALERT,
        }
    }

    /// Its content.
    pub fn content(&self) -> &[u8] {
        match self {
            Self::KeyUpdate => &KEY_UPDATE,
            Self::Alert(alert) => alert,
        }
    }
}

/// A record that the kernel could not open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BadRecord {
    /// Not sealed with the key that is due.
    Forged,
    /// More than a record may hold.
    TooLong,
    /// Not a record of this version.
    Unexpected,
}

/// Records that are counted as sealed before the kernel is asked how many there were: more than one turn makes.
const SEALED_UNASKED: u64 = 1024;

impl Session {
    fn key(&self, way: Way) -> Option<&Key> {
        match way {
            Way::Receive => self.opener.as_ref(),
            Way::Send => self.sealer.as_ref(),
        }
    }

    /// How its records are sealed; none where no keys were kept for the kernel.
    pub(super) fn suite_for_kernel(&self) -> Option<RecordSuite> {
        self.opener.as_ref().or(self.sealer.as_ref())?.parts().map(|parts| parts.suite)
    }

    /// The key of that way; none where it was not kept, or where the kernel has it.
    pub(super) fn key_for_kernel(&self, way: Way) -> Option<KernelKey> {
        KernelKey::of(self.key(way)?, way)
    }

    /// From here on the kernel does that way's records.
    pub(super) fn give_to_kernel(&mut self, way: Way) {
        let kernel = self.in_kernel.get_or_insert_default();
        match way {
            Way::Receive => self.opener = None,
            Way::Send => {
                if let Some(sealer) = self.sealer.take() {
                    (kernel.sealable, kernel.limit) = (sealer.left(), sealer.limit());
                }
            }
        }
    }

    /// The kernel will not be given what it does not have.
    pub(super) fn forget_keys(&mut self) {
        [&mut self.opener, &mut self.sealer].into_iter().flatten().for_each(Key::forget);
    }

    /// Takes in a record that the kernel has opened. Data may be of several in a row.
    pub(super) fn opened_by_kernel(
        &mut self,
        kind: u8,
        content: &[u8],
        sink: &mut impl FnMut(&[u8]),
        outgoing: &mut Buffer,
    ) -> Result<TlsState, TlsError> {
        self.take_in(kind, content, sink).map_err(|refusal| self.refuse(refusal, outgoing))
    }

    /// Ends the connection over a record that the kernel could not open.
    pub(super) fn refuse_record(&mut self, bad: BadRecord, outgoing: &mut Buffer) -> TlsError {
        let error = match bad {
            BadRecord::Forged => RecordError::Forged,
            BadRecord::TooLong => RecordError::TooLong,
            BadRecord::Unexpected => RecordError::Unexpected,
        };
        self.refuse(error, outgoing)
    }

    /// The record that has to be sent next. `has_unsent`: data waits, behind which the last word has to come.
    pub(super) fn control(&self, has_unsent: bool) -> Option<ControlRecord> {
        let kernel = self.in_kernel.as_ref().filter(|_| self.sealer.is_none())?;
        if self.owes_key_update && !self.is_over {
            return Some(ControlRecord::KeyUpdate);
        }
        kernel.alert.filter(|_| !has_unsent).map(ControlRecord::Alert)
    }

    /// Notes that the kernel has taken it; the key for what comes behind it.
    pub(super) fn control_sent(&mut self, sent: ControlRecord) -> Result<Option<KernelKey>, TlsError> {
        let Some(kernel) = &mut self.in_kernel else { return Ok(None) };
        if let ControlRecord::Alert(_) = sent {
            kernel.alert = None;
            return Ok(None);
        }
        let next = self.secrets.next_sealer(true)?;
        (kernel.sealable, kernel.limit) = (next.left(), next.limit());
        self.owes_key_update = false;
        Ok(KernelKey::of(&next, Way::Send))
    }

    /// Counts records that the kernel has sealed, or fewer.
    pub(super) fn note_sealed(&mut self, records: u64) {
        if let Some(kernel) = &mut self.in_kernel {
            kernel.sealable = kernel.sealable.saturating_sub(records);
        }
    }

    /// Whether it has to be asked how many it has sealed, for [`Session::recount`].
    pub(super) fn is_count_due(&self) -> bool {
        let kernel = self.in_kernel.as_ref().filter(|_| self.sealer.is_none() && !self.is_over);
        kernel.is_some_and(|kernel| {
            kernel.sealable < SEALED_UNASKED && !self.owes_key_update && !kernel.is_used_up
        })
    }

    /// Goes by the count of the kernel. A key that is used up is renewed, or, in TLS 1.2, which does not
    /// know that, takes nothing more.
    pub(super) fn recount(&mut self, sealed: u64) {
        let Some(kernel) = &mut self.in_kernel else { return };
        kernel.sealable = kernel.limit.saturating_sub(sealed);
        if kernel.sealable >= SEALED_UNASKED {
            return;
        }
        // What was taken still goes out: there is room for more than that.
        kernel.is_used_up = self.secrets.version() == Version::Tls12;
        self.owes_key_update = !kernel.is_used_up;
    }
}

#[cfg(test)]
#[path = "offload_tests.rs"]
mod tests;
