//! The small part of Go's gob and net/rpc that goreman's control port speaks (supervisor.md 1.13).
//!
//! A frame is a length and a message; a message starts with a type id: negative ids define a type and are passed over,
//! positive ones carry a value. Type ids differ between Go releases, so they are read, never compared.

/// Longest frame that is read. Requests are lists of process names.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Type messages that stand in front of the first value of a kind on a connection.
const REQUEST_TYPE: &[u8] = b"\x2f\xff\x81\x03\x01\x01\x07Request\x01\xff\x82\x00\x01\x02\x01\x0dServiceMethod\x01\x0c\x00\x01\x03Seq\x01\x06\x00\x00\x00";
const RESPONSE_TYPE: &[u8] = b"\x3a\xff\x81\x03\x01\x01\x08Response\x01\xff\x82\x00\x01\x03\x01\x0dServiceMethod\x01\x0c\x00\x01\x03Seq\x01\x06\x00\x01\x05Error\x01\x0c\x00\x00\x00";
const LIST_TYPE: &[u8] = b"\x0c\xff\x83\x02\x01\x02\xff\x84\x00\x01\x0c\x00\x00";
const EMPTY_STRUCT_TYPE: &[u8] = b"\x0a\xff\x83\x03\x01\x02\xff\x84\x00\x00\x00";
/// Ids that the type messages above define: the header (request or response), and the list or empty struct.
const HEADER_ID: i64 = 65;
const BODY_ID: i64 = 66;
/// gob's own id of a string.
const STRING_ID: i64 = 6;

/// What a header says: net/rpc's Request, or its Response when `error` may be set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub method: String,
    pub sequence: u64,
    pub error: String,
}

/// Bytes that are no gob, or more than we read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed control message: {0}")]
pub struct GobError(pub &'static str);

/// Takes the first whole frame off `buffer`. `None` when more bytes are needed.
pub fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>, GobError> {
    let mut rest = buffer.as_slice();
    let Some(length) = Decoder::try_uint(&mut rest)? else { return Ok(None) };
    let length = usize::try_from(length).map_err(|_| GobError("frame too long"))?;
    if length > FRAME_BYTES_MAX {
        return Err(GobError("frame too long"));
    }
    if rest.len() < length {
        return Ok(None);
    }
    let start = buffer.len() - rest.len();
    let frame = buffer[start..start + length].to_vec();
    buffer.drain(..start + length);
    Ok(Some(frame))
}

/// Whether a frame defines a type instead of carrying a value.
pub fn is_type(frame: &[u8]) -> Result<bool, GobError> {
    Ok(Decoder { rest: frame }.int()? < 0)
}

/// Reads a request's or a response's header.
pub fn header(frame: &[u8]) -> Result<Header, GobError> {
    let mut decoder = Decoder { rest: frame };
    decoder.int()?;
    let mut header = Header::default();
    let mut field = 0;
    loop {
        let delta = decoder.uint()?;
        if delta == 0 {
            return Ok(header);
        }
        field += delta;
        match field {
            1 => header.method = decoder.string()?,
            2 => header.sequence = decoder.uint()?,
            3 => header.error = decoder.string()?,
            _ => return Err(GobError("unknown field")),
        }
    }
}

/// Reads a list of strings.
pub fn list(frame: &[u8]) -> Result<Vec<String>, GobError> {
    let mut decoder = Decoder { rest: frame };
    decoder.int()?;
    decoder.zero()?;
    let count = decoder.uint()?;
    (0..count).map(|_| decoder.string()).collect()
}

/// Reads a string body.
pub fn string(frame: &[u8]) -> Result<String, GobError> {
    let mut decoder = Decoder { rest: frame };
    decoder.int()?;
    decoder.zero()?;
    decoder.string()
}

/// The bytes of one call on a new connection.
pub fn encode_request(method: &str, names: &[String]) -> Vec<u8> {
    let mut bytes = REQUEST_TYPE.to_vec();
    push_header(&mut bytes, &Header { method: method.to_owned(), ..Header::default() });
    bytes.extend_from_slice(LIST_TYPE);
    let mut body = Vec::new();
    push_int(&mut body, BODY_ID);
    body.push(0);
    push_uint(&mut body, names.len() as u64);
    for name in names {
        push_string(&mut body, name);
    }
    push_frame(&mut bytes, &body);
    bytes
}

/// Writes the answers of one connection: type messages go out once.
#[derive(Debug, Default)]
pub struct Responder {
    header_defined: bool,
    struct_defined: bool,
}

impl Responder {
    /// The bytes of one answer: a text, or an error's text.
    pub fn encode(&mut self, request: &Header, answer: &Result<String, String>) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.header_defined {
            bytes.extend_from_slice(RESPONSE_TYPE);
            self.header_defined = true;
        }
        let error = answer.as_ref().err().cloned().unwrap_or_default();
        push_header(&mut bytes, &Header { error, ..request.clone() });
        let mut body = Vec::new();
        match answer {
            Ok(text) => {
                push_int(&mut body, STRING_ID);
                body.push(0);
                push_string(&mut body, text);
            }
            Err(_) => {
                if !self.struct_defined {
                    bytes.extend_from_slice(EMPTY_STRUCT_TYPE);
                    self.struct_defined = true;
                }
                push_int(&mut body, BODY_ID);
                body.push(0);
            }
        }
        push_frame(&mut bytes, &body);
        bytes
    }
}

fn push_header(bytes: &mut Vec<u8>, header: &Header) {
    let mut body = Vec::new();
    push_int(&mut body, HEADER_ID);
    let mut last = 0;
    let mut field = |body: &mut Vec<u8>, number: u64| {
        push_uint(body, number - last);
        last = number;
    };
    if !header.method.is_empty() {
        field(&mut body, 1);
        push_string(&mut body, &header.method);
    }
    if header.sequence != 0 {
        field(&mut body, 2);
        push_uint(&mut body, header.sequence);
    }
    if !header.error.is_empty() {
        field(&mut body, 3);
        push_string(&mut body, &header.error);
    }
    body.push(0);
    push_frame(bytes, &body);
}

fn push_frame(bytes: &mut Vec<u8>, body: &[u8]) {
    push_uint(bytes, body.len() as u64);
    bytes.extend_from_slice(body);
}

/// Below 128 one byte; otherwise the negated number of bytes, then the number big-endian.
fn push_uint(bytes: &mut Vec<u8>, number: u64) {
    if number < 128 {
        bytes.push(number as u8);
        return;
    }
    let all = number.to_be_bytes();
    let used = &all[number.leading_zeros() as usize / 8..];
    bytes.push((used.len() as u8).wrapping_neg());
    bytes.extend_from_slice(used);
}

fn push_int(bytes: &mut Vec<u8>, number: i64) {
    let folded = if number < 0 { (!(number as u64) << 1) | 1 } else { (number as u64) << 1 };
    push_uint(bytes, folded);
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    push_uint(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

struct Decoder<'a> {
    rest: &'a [u8],
}

impl Decoder<'_> {
    /// A number at the front of `rest`; `None` when its bytes are not all there yet.
    fn try_uint(rest: &mut &[u8]) -> Result<Option<u64>, GobError> {
        let Some((&first, tail)) = rest.split_first() else { return Ok(None) };
        if first < 128 {
            *rest = tail;
            return Ok(Some(u64::from(first)));
        }
        let count = usize::from(first.wrapping_neg());
        if count > 8 {
            return Err(GobError("number too long"));
        }
        if tail.len() < count {
            return Ok(None);
        }
        let number = tail[..count].iter().fold(0, |number, byte| (number << 8) | u64::from(*byte));
        *rest = &tail[count..];
        Ok(Some(number))
    }

    fn uint(&mut self) -> Result<u64, GobError> {
        Decoder::try_uint(&mut self.rest)?.ok_or(GobError("it ends too early"))
    }

    fn int(&mut self) -> Result<i64, GobError> {
        let folded = self.uint()?;
        let number = (folded >> 1) as i64;
        Ok(if folded & 1 == 1 { !number } else { number })
    }

    /// The byte in front of a value that is no struct.
    fn zero(&mut self) -> Result<(), GobError> {
        if self.uint()? == 0 { Ok(()) } else { Err(GobError("not a plain value")) }
    }

    fn string(&mut self) -> Result<String, GobError> {
        let length = usize::try_from(self.uint()?).map_err(|_| GobError("string too long"))?;
        if self.rest.len() < length {
            return Err(GobError("it ends too early"));
        }
        let (text, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(mut bytes: Vec<u8>) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while let Some(frame) = take_frame(&mut bytes).unwrap() {
            found.push(frame);
        }
        assert!(bytes.is_empty());
        found
    }

    #[test]
    fn requests_are_goremans_bytes() {
        let bytes = encode_request("Goreman.List", &[]);
        let mut expected = REQUEST_TYPE.to_vec();
        expected.extend_from_slice(b"\x11\xff\x82\x01\x0cGoreman.List\x00");
        expected.extend_from_slice(LIST_TYPE);
        expected.extend_from_slice(b"\x04\xff\x84\x00\x00");
        assert_eq!(bytes, expected);
        let one = encode_request("Goreman.List", &["a".to_owned()]);
        assert!(one.ends_with(b"\x06\xff\x84\x00\x01\x01a"));
    }

    #[test]
    fn answers_are_goremans_bytes() {
        let request = Header { method: "Goreman.List".to_owned(), ..Header::default() };
        let good = Responder::default().encode(&request, &Ok("a\nb\n".to_owned()));
        let mut expected = RESPONSE_TYPE.to_vec();
        expected.extend_from_slice(b"\x11\xff\x82\x01\x0cGoreman.List\x00\x07\x0c\x00\x04a\nb\n");
        assert_eq!(good, expected);
        let bad = Responder::default().encode(&request, &Err("unknown proc: nosuch".to_owned()));
        assert!(bad.ends_with(
            b"\x02\x14unknown proc: nosuch\x00\x0a\xff\x83\x03\x01\x02\xff\x84\x00\x00\x00\x03\xff\x84\x00"
        ));
    }

    #[test]
    fn ids_of_another_go_release_are_read_too() {
        let mut bytes = b"\x2e\x7f\x03\x01\x01\x07Request\x01\xff\x80\x00\x01\x02\x01\x0dServiceMethod\x01\x0c\x00\x01\x03Seq\x01\x06\x00\x00\x00".to_vec();
        bytes.extend_from_slice(b"\x11\xff\x80\x01\x0cGoreman.List\x00\x0c\xff\x81\x02\x01\x02\xff\x82\x00\x01\x0c\x00\x00\x06\xff\x82\x00\x01\x01a");
        let frames = frames(bytes);
        assert_eq!(frames.iter().map(|frame| is_type(frame).unwrap()).collect::<Vec<_>>(), [true, false, true, false]);
        assert_eq!(header(&frames[1]).unwrap().method, "Goreman.List");
        assert_eq!(list(&frames[3]).unwrap(), ["a"]);
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        let mut seed = 7_u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let length = (seed >> 59) as usize;
            let mut bytes: Vec<u8> = (0..length).map(|at| (seed >> (at % 8 * 8)) as u8).collect();
            let whole = bytes.clone();
            let _ = take_frame(&mut bytes);
            let _ = (is_type(&whole), header(&whole), list(&whole), string(&whole));
        }
        assert_eq!(take_frame(&mut vec![0xf0]), Err(GobError("number too long")));
        assert_eq!(take_frame(&mut vec![0xfc, 0x7f, 0, 0, 0]), Err(GobError("frame too long")));
    }
}
