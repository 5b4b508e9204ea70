//! PEM files as people have them (RFC 7468): joined by `cat`, made on Windows, with the text that openssl writes around
//! blocks. All of a file is understood, or it is refused with the number of the line. Pure: bytes in, blocks out.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

/// A line of base64 text that is this long, in bytes, is no comment: lines of PEM have 64 or 76.
const STRAY_BASE64_BYTES: usize = 48;

/// A block between two markers.
pub(super) struct Block {
    /// As in `-----BEGIN label-----`.
    pub(super) label: String,
    /// What the text stands for; overwritten when it is dropped, as it may be a key.
    pub(super) der: Zeroizing<Vec<u8>>,
    /// Whether the key in it is encrypted in the way that came before PKCS#8 (RFC 1421 4.6.1.1).
    pub(super) is_encrypted: bool,
    /// The line of its first marker, from 1.
    pub(super) line: usize,
}

/// Why a file is not understood.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {says}")]
pub struct PemError {
    /// The line, from 1.
    pub line: usize,
    says: String,
}

impl PemError {
    pub(super) fn new(line: usize, says: impl Into<String>) -> Self {
        Self { line, says: says.into() }
    }
}

/// All blocks of a file, in their order.
pub(super) fn blocks(file: &[u8]) -> Result<Vec<Block>, PemError> {
    refuse_other_formats(file)?;
    let mut blocks = Vec::new();
    let mut open: Option<Open<'_>> = None;
    for (number, line) in (1..).zip(lines(file)) {
        open = match (open, Line::read(line)) {
            (_, Line::Damaged) => return Err(PemError::new(number, DAMAGED)),
            (None, Line::Begin(label)) => Some(Open::new(label, number, file.len())),
            (Some(open), Line::Begin(_)) => {
                let says = format!("a block begins before that of line {} has ended", open.line);
                return Err(PemError::new(number, says));
            }
            (Some(open), Line::End(label)) => {
                blocks.push(open.end(label, number)?);
                None
            }
            (None, Line::End(label)) => {
                let says = format!("-----END {label}----- has no -----BEGIN {label}----- before it");
                return Err(PemError::new(number, says));
            }
            (Some(mut open), Line::Text(text)) => {
                open.take(text, number)?;
                Some(open)
            }
            (None, Line::Text(text)) if is_stray(text) => return Err(PemError::new(number, STRAY)),
            (None, Line::Text(_)) => None,
        };
    }
    match open {
        None => Ok(blocks),
        Some(Open { label, line, .. }) => {
            let says = format!("-----BEGIN {label}----- has no -----END {label}-----: the file is cut");
            Err(PemError::new(line, says))
        }
    }
}

const DAMAGED: &str = "-----BEGIN ...----- and -----END ...----- each take a line of their own; files that are joined \
                       need a line end between them";
const STRAY: &str = "base64 text that no -----BEGIN ...----- precedes";
const UTF_16: &str = "the file is UTF-16 text, as Windows editors write it: `iconv -f UTF-16 -t UTF-8 FILE` has it in \
                      UTF-8";
const BINARY: &str = "the file is binary (DER), not PEM: `openssl x509 -inform DER -in FILE` writes a certificate as PEM, \
                      `openssl pkey -inform DER -in FILE` a key, `openssl pkcs12 -nodes -in FILE` what a .p12 or .pfx has";

fn refuse_other_formats(file: &[u8]) -> Result<(), PemError> {
    match file {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..] => Err(PemError::new(1, UTF_16)),
        // A SEQUENCE (X.690 8.9) with a length of more than one byte.
        [0x30, length, ..] if *length >= 0x80 => Err(PemError::new(1, BINARY)),
        _ => Ok(()),
    }
}

/// Lines that end as on Unix, Windows or an old Mac.
fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let unix = file.split(|byte| *byte == b'\n');
    unix.map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .flat_map(|line| line.split(|byte| *byte == b'\r'))
}

enum Line<'a> {
    Begin(&'a str),
    End(&'a str),
    /// Part of a marker, or more than one.
    Damaged,
    Text(&'a [u8]),
}

impl<'a> Line<'a> {
    fn read(line: &'a [u8]) -> Self {
        // Files that begin with a byte order mark may have been joined.
        let line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line).trim_ascii();
        if let Some(label) = label(line, b"-----BEGIN ") {
            return Self::Begin(label);
        }
        if let Some(label) = label(line, b"-----END ") {
            return Self::End(label);
        }
        let has = |part| memchr::memmem::find(line, part).is_some();
        let is_comment = line.starts_with(b"#");
        if !is_comment && (has(b"-BEGIN ") || has(b"-END ")) { Self::Damaged } else { Self::Text(line) }
    }
}

fn label<'a>(line: &'a [u8], marker: &[u8]) -> Option<&'a str> {
    let label = line.strip_prefix(marker)?.strip_suffix(b"-----")?;
    let is_plain = |byte: &u8| *byte == b' ' || byte.is_ascii_graphic() && *byte != b'-';
    std::str::from_utf8(label).ok().filter(|label| !label.is_empty() && label.as_bytes().iter().all(is_plain))
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// Whether it looks like the inside of a block. A digest in hexadecimal, and a line that is ruled, do not.
fn is_stray(text: &[u8]) -> bool {
    text.len() >= STRAY_BASE64_BYTES
        && text.iter().all(|byte| is_base64(*byte))
        && text.first() != Some(&b'=')
        && !text.iter().all(u8::is_ascii_hexdigit)
}

/// A block whose end has not come yet.
struct Open<'a> {
    label: &'a str,
    line: usize,
    text: Zeroizing<Vec<u8>>,
    is_encrypted: bool,
}

impl<'a> Open<'a> {
    /// `room`: bytes that its text can't exceed, so that no copy of a key is left behind when it grows.
    fn new(label: &'a str, line: usize, room: usize) -> Self {
        Self { label, line, text: Zeroizing::new(Vec::with_capacity(room)), is_encrypted: false }
    }

    fn take(&mut self, text: &[u8], number: usize) -> Result<(), PemError> {
        if self.text.is_empty() && text.starts_with(b"Proc-Type:") {
            self.is_encrypted = memchr::memmem::find(text, b"ENCRYPTED").is_some();
        }
        if self.is_encrypted {
            return Ok(());
        }
        let bytes = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace());
        for byte in bytes {
            if !is_base64(byte) {
                return Err(PemError::new(number, "a block has base64 text alone in it"));
            }
            self.text.push(byte);
        }
        Ok(())
    }

    fn end(self, label: &str, number: usize) -> Result<Block, PemError> {
        if label != self.label {
            let says =
                format!("-----END {label}----- ends -----BEGIN {}----- of line {}", self.label, self.line);
            return Err(PemError::new(number, says));
        }
        let mut der = Zeroizing::new(Vec::with_capacity(self.text.len()));
        BASE64_STANDARD
            .decode_vec(self.text.as_slice(), &mut der)
            .map_err(|error| PemError::new(self.line, format!("the block is damaged: {error}")))?;
        if der.is_empty() && !self.is_encrypted {
            return Err(PemError::new(self.line, "the block is empty"));
        }
        Ok(Block { label: label.to_owned(), der, is_encrypted: self.is_encrypted, line: self.line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two blocks, of which the second is `0x30` and more.
    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAAEC\nAwQ=\n-----END CERTIFICATE-----\n";
    const TWO: &str = "-----BEGIN EC PARAMETERS-----\nMAAA\n-----END EC PARAMETERS-----\n";

    type Read = Vec<(String, Vec<u8>, usize)>;

    fn read(file: &[u8]) -> Result<Read, String> {
        let blocks = blocks(file).map_err(|error| error.to_string())?;
        Ok(blocks.into_iter().map(|block| (block.label, block.der.to_vec(), block.line)).collect())
    }

    fn both(first: usize, second: usize) -> Read {
        vec![
            ("CERTIFICATE".to_owned(), vec![0, 1, 2, 3, 4], first),
            ("EC PARAMETERS".to_owned(), vec![0x30, 0, 0], second),
        ]
    }

    #[test]
    fn blocks_are_read_whatever_editor_wrote_them() {
        let plain = format!("{ONE}{TWO}");
        let dump = format!(
            "\u{feff}Bag Attributes\n    friendlyName: b\u{f6}b\nsubject=CN = a\n========================================\
             =========\n{ONE}\nCertificate:\n    Data:\n        Serial Number: 1 (0x1)\n# -----BEGIN CERTIFICATE-----\n\u{feff}{TWO}\n0"
        );
        for (file, lines) in [
            (plain.clone(), (1, 5)),
            (plain.replace('\n', "\r\n"), (1, 5)),
            (plain.replace('\n', "\r"), (1, 5)),
            (plain.replace('\n', " \t\n"), (1, 5)),
            (plain.replace("\nA", "\n  A").replace("\n-", "\n    -"), (1, 5)),
            (plain.replace("AAEC\n", "AA EC\n\n"), (1, 6)),
            (plain.trim_end().to_owned(), (1, 5)),
            (dump, (5, 14)),
        ] {
            assert_eq!(read(file.as_bytes()), Ok(both(lines.0, lines.1)), "{file}");
        }
        // Text in another encoding, as friendly names have it.
        let mut latin = b"friendlyName: b\xf6b\n".to_vec();
        latin.extend(plain.as_bytes());
        assert_eq!(read(&latin), Ok(both(2, 6)));
        assert_eq!(read(b""), Ok(Vec::new()));
    }

    #[test]
    fn what_would_lose_a_block_is_refused_with_its_line() {
        let body = "MIIB".repeat(16);
        for (file, told) in [
            (format!("{}{TWO}", ONE.trim_end()), "line 4: -----BEGIN ...----- and"),
            (format!("x{ONE}"), "line 1: -----BEGIN ...----- and"),
            (ONE.replace("--\nAAEC", "-- AAEC"), "line 1: -----BEGIN ...----- and"),
            (ONE.replace('\n', "\\n"), "line 1: -----BEGIN ...----- and"),
            (ONE.replacen("-----", "----", 1), "line 1: -----BEGIN ...----- and"),
            (ONE.replace("-----END", "----END"), "line 4: -----BEGIN ...----- and"),
            (format!("> {ONE}"), "line 1: -----BEGIN ...----- and"),
            (
                ONE.replace("AwQ=\n-----END CERTIFICATE-----\n", TWO),
                "line 3: a block begins before that of line 1 has ended",
            ),
            (ONE.replace("END C", "END X"), "line 4: -----END XERTIFICATE----- ends -----BEGIN CERTIFICATE"),
            (
                ONE.replace("-----END CERTIFICATE-----", ""),
                "line 1: -----BEGIN CERTIFICATE----- has no -----END",
            ),
            (
                format!("{ONE}-----END CERTIFICATE-----"),
                "line 5: -----END CERTIFICATE----- has no -----BEGIN",
            ),
            (format!("{ONE}\n{body}\n"), "line 6: base64 text that no"),
            (format!("{ONE}\n\u{2014}BEGIN CERTIFICATE\u{2014}\n{body}\n"), "line 7: base64 text that no"),
            (ONE.replace("AwQ=", "Aw*="), "line 3: a block has base64 text alone"),
            (ONE.replace("AwQ=", "AwQ"), "line 1: the block is damaged"),
            (ONE.replace("AAEC\nAwQ=\n", ""), "line 1: the block is empty"),
            ("0\u{0}".to_owned(), "line 1: the file is UTF-16"),
        ] {
            let error = read(file.as_bytes()).expect_err(&file);
            assert!(error.starts_with(told), "{file}: {error}");
        }
        let utf_16: Vec<u8> = ONE.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for mark in [&[][..], &[0xff, 0xfe]] {
            let error = read(&[mark, &utf_16].concat()).expect_err("UTF-16");
            assert!(error.contains("`iconv -f UTF-16"), "{error}");
        }
        assert!(read(&[0x30, 0x82, 1, 2]).expect_err("DER").contains("-inform DER"));
    }

    /// One byte is lost, doubled or turned into another, anywhere.
    #[test]
    fn no_slip_of_an_editor_loses_a_block_unnoticed() {
        let body = BASE64_STANDARD.encode((0..150).map(|byte| byte | 0x30).collect::<Vec<u8>>());
        let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
        let block = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
        let file = format!("{block}{block}").into_bytes();
        for at in 0..file.len() {
            for slip in [&b""[..], b" ", b"x", b"\n", b"\r", b"-", b"#", b"--", b"\n-", b"\xef\xbb\xbf"] {
                let text = [&file[..at], slip, &file[at + 1..]].concat();
                let found = blocks(&text).map(|blocks| blocks.len());
                assert!(matches!(found, Err(_) | Ok(2)), "{}", String::from_utf8_lossy(&text));
            }
        }
    }

    #[test]
    fn an_encrypted_key_of_the_old_kind_is_known_by_its_head() {
        let key = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAEC\n\
                   -----END RSA PRIVATE KEY-----\n";
        let blocks = blocks(key.as_bytes()).expect("blocks");
        assert!(blocks.len() == 1 && blocks[0].is_encrypted);
    }
}
