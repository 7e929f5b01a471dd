//! Mends the `:authority` of clients before etcd 3.5, which put a whole URL there: `http://127.0.0.1:2379`.
//!
//! Their Maintenance calls (`etcdctl endpoint status`) dial an endpoint as it was typed, scheme included. The h2 library
//! resets a stream whose authority is not host and port, before anything of ours could see it. So the opening of a
//! connection, up to its first HEADERS frame, is looked through, and the scheme's `://` becomes `B--`: letters that
//! an authority may hold, of the same length plain and Huffman coded, so that frame lengths and both sides' HPACK
//! tables stay as they are. Later requests of the connection name the mended entry of that table.

/// Bytes in front of a frame's payload (RFC 9113, 4.1).
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x08;
const FLAG_PRIORITY: u8 = 0x20;

/// A longer frame of headers is passed on as it is: nobody may have us hold back more.
const HEADERS_BYTES_MAX: usize = 16 * 1024;

/// `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;

/// Codes of the letters at hand and their lengths in bits (RFC 7541, appendix B).
const H: (u64, u32) = (0x27, 6);
const T: (u64, u32) = (0x09, 5);
const P: (u64, u32) = (0x2b, 6);
const S: (u64, u32) = (0x08, 5);
const COLON: (u64, u32) = (0x5c, 7);
const SLASH: (u64, u32) = (0x18, 6);
const BIG_B: (u64, u32) = (0x5d, 7);
const DASH: (u64, u32) = (0x16, 6);

/// What is replaced by what, plain.
const PLAIN: [(&[u8], &[u8]); 2] = [(b"http://", b"httpB--"), (b"https://", b"httpsB--")];

/// The same in Huffman codes, at the upper end of `WINDOW` bytes, with the bits that count.
const CODED: [(u64, u64, u64); 2] = [
    coded([H, T, T, P, COLON, SLASH, SLASH, (0, 0)], [H, T, T, P, BIG_B, DASH, DASH, (0, 0)]),
    coded([H, T, T, P, S, COLON, SLASH, SLASH], [H, T, T, P, S, BIG_B, DASH, DASH]),
];
const WINDOW: usize = 6;

const fn coded(from: [(u64, u32); 8], to: [(u64, u32); 8]) -> (u64, u64, u64) {
    let (from, bits) = packed(from);
    let (to, to_bits) = packed(to);
    assert!(bits == to_bits && bits as usize <= WINDOW * 8, "a replacement is as long");
    let shift = WINDOW as u32 * 8 - bits;
    (from << shift, to << shift, ((1 << bits) - 1) << shift)
}

const fn packed(letters: [(u64, u32); 8]) -> (u64, u32) {
    let (mut code, mut bits, mut at) = (0, 0, 0);
    while at < letters.len() {
        code = code << letters[at].1 | letters[at].0;
        bits += letters[at].1;
        at += 1;
    }
    (code, bits)
}

/// The opening of an HTTP/2 connection behind its preface.
#[derive(Debug, Default)]
pub struct Opening {
    /// The beginning of a frame that is not complete.
    held: Vec<u8>,
    /// Bytes of the frame at hand that pass unseen.
    passing: usize,
}

impl Opening {
    /// Takes what came and adds what may go on to `out`. True once the first headers went: all else passes unseen.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        self.held.extend_from_slice(bytes);
        loop {
            let passing = self.passing.min(self.held.len());
            out.extend(self.held.drain(..passing));
            self.passing -= passing;
            let [high, middle, low, kind, flags, ..] = self.held[..] else { return false };
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if kind != HEADERS {
                self.passing = FRAME_HEADER + length;
                continue;
            }
            if length <= HEADERS_BYTES_MAX {
                if self.held.len() < FRAME_HEADER + length {
                    return false;
                }
                // Without a sound value there is nothing to mend; what is wrong is h2's to answer.
                let _ = mend(flags, &mut self.held[FRAME_HEADER..FRAME_HEADER + length]);
            }
            out.append(&mut self.held);
            return true;
        }
    }

    /// The other side closed: what is held back goes as it is.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }
}

/// Mends the authority in the payload of a HEADERS frame. `None` if it has none in full.
fn mend(flags: u8, payload: &mut [u8]) -> Option<()> {
    let padding = usize::from(flags & FLAG_PADDED != 0);
    let mut at = padding + if flags & FLAG_PRIORITY != 0 { 5 } else { 0 };
    loop {
        let first = *payload.get(at)?;
        if first & 0x80 != 0 {
            integer(payload, &mut at, 7)?;
            continue;
        }
        if first & 0xe0 == 0x20 {
            integer(payload, &mut at, 5)?;
            continue;
        }
        let name = integer(payload, &mut at, if first & 0x40 != 0 { 6 } else { 4 })?;
        if name == 0 {
            let length = integer(payload, &mut at, 7)?;
            at = at.checked_add(length)?;
        }
        let is_coded = *payload.get(at)? & 0x80 != 0;
        let length = integer(payload, &mut at, 7)?;
        let end = at.checked_add(length)?;
        let value = payload.get_mut(at..end)?;
        if name == AUTHORITY {
            mend_value(is_coded, value);
            return Some(());
        }
        at = end;
    }
}

fn mend_value(is_coded: bool, value: &mut [u8]) {
    if !is_coded {
        if let Some((from, to)) = PLAIN.iter().find(|(from, _)| value.starts_with(from)) {
            value[..from.len()].copy_from_slice(to);
        }
        return;
    }
    let Some(window) = value.first_chunk_mut::<WINDOW>() else { return };
    let bits = window.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
    if let Some((from, to, mask)) = CODED.iter().find(|(from, _, mask)| bits & mask == *from) {
        debug_assert!(from & !mask == 0, "only bits that count are compared");
        let mended = (bits & !mask | to).to_be_bytes();
        window.copy_from_slice(&mended[mended.len() - WINDOW..]);
    }
}

/// HPACK's integer with a prefix of so many bits (RFC 7541, 5.1). `None` if it does not end or is too large.
fn integer(bytes: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(*bytes.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// What an opening lets through that gets `bytes` in pieces of `size`.
    fn through(bytes: &[u8], size: usize) -> Vec<u8> {
        let (mut opening, mut out) = (Opening::default(), Vec::new());
        let mut is_done = false;
        for piece in bytes.chunks(size) {
            if is_done {
                out.extend_from_slice(piece);
            } else {
                is_done = opening.take(piece, &mut out);
            }
        }
        opening.end(&mut out);
        out
    }

    /// A connection whose first request has this authority, as an HPACK string.
    fn connection(authority: &[u8]) -> Vec<u8> {
        let settings = frame(4, 0, &[0, 3, 0, 0, 0, 100]);
        // POST, http, a path with a name of its own, the authority, and a field behind it.
        let head = [&[0x83, 0x86, 0x44, 2][..], b"/x", &[0x41], authority, &[0x40, 2], b"te", &[1], b"y"].concat();
        let data = frame(0, 0, b"\x41http://no");
        [settings, frame(HEADERS, 4, &head), data].concat()
    }

    fn check(authority: &[u8], mended: &[u8]) {
        for size in [1, 3, 7, 4096] {
            assert_eq!(through(&connection(authority), size), connection(mended), "pieces of {size}");
        }
    }

    #[test]
    fn urls_become_authorities_of_the_same_length() {
        check(b"\x10http://localhost", b"\x10httpB--localhost");
        check(b"\x0bhttps://a:1", b"\x0bhttpsB--a:1");
        check(b"\x0blocalhost:1", b"\x0blocalhost:1");
        check(b"\x07http:80", b"\x07http:80");
        check(b"\x03foo", b"\x03foo");
    }

    #[test]
    fn coded_urls_do_as_well() {
        // "http://" and "https://", each with a "0" and padding behind it, and their replacements.
        check(b"\x86\x9d\x29\xae\xe3\x0c\x03", b"\x86\x9d\x29\xae\xea\xcb\x03");
        let (from, to, _) = CODED[1];
        let string = |bits: u64| [&[0x87], &bits.to_be_bytes()[2..], &[0x07]].concat();
        check(&string(from), &string(to));
        check(b"\x86\x9d\x29\xae\xe3\x0d\x03", b"\x86\x9d\x29\xae\xe3\x0d\x03");
    }

    #[test]
    fn padding_and_priority_are_stepped_over() {
        let payload = |authority: &[u8]| [&[2, 0, 0, 0, 0, 9, 0x41, 8], authority, &[0, 0]].concat();
        let flags = FLAG_PADDED | FLAG_PRIORITY;
        let expected = frame(HEADERS, flags, &payload(b"httpB--a"));
        assert_eq!(through(&frame(HEADERS, flags, &payload(b"http://a")), 5), expected);
    }

    #[test]
    fn nothing_else_is_changed_and_nothing_panics() {
        let mut seed = 1_u64;
        let mut byte = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        for _ in 0..20_000 {
            let payload: Vec<u8> = (0..usize::from(byte() % 40)).map(|_| byte()).collect();
            let kind = byte() % 2;
            let mut sent = frame(kind, byte(), &payload);
            sent.truncate(sent.len() - usize::from(byte() % 5));
            assert_eq!(through(&sent, 1 + usize::from(byte() % 50)), sent);
        }
    }
}
