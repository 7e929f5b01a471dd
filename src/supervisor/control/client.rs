//! The asking side: one call on one connection, and Go's words for what can go wrong.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::net::ToSocketAddrs;

use crate::common::os_reason::os_reason;
use crate::supervisor::control::Verb;
use crate::supervisor::control::gob;

/// Calls a running supervisor: its text, or an error's text. `verb` is judged only after a connection, as goreman does.
pub fn call(address: &str, verb: Option<Verb>, names: &[String]) -> Result<String, String> {
    let mut socket = dial(address)?;
    let verb = verb.ok_or_else(|| "unknown command".to_owned())?;
    let io_error = |error: io::Error| format!("{address}: {}", os_reason(&error));
    socket.write_all(&gob::encode_request(verb.method(), names)).map_err(io_error)?;
    let mut buffer = Vec::new();
    let header = gob::header(&read_value(&mut socket, &mut buffer)?).map_err(|error| error.to_string())?;
    let body = read_value(&mut socket, &mut buffer)?;
    if !header.error.is_empty() {
        return Err(header.error);
    }
    gob::string(&body).map_err(|error| error.to_string())
}

fn dial(address: &str) -> Result<TcpStream, String> {
    if address.is_empty() {
        return Err("dial tcp: missing address".to_owned());
    }
    let Some((_, port)) = address.rsplit_once(':') else {
        return Err(format!("dial tcp: address {address}: missing port in address"));
    };
    if port.parse::<u16>().is_err() {
        return Err(format!("dial tcp: address {port}: invalid port"));
    }
    let addresses = address.to_socket_addrs().map_err(|error| format!("dial tcp: {}", os_reason(&error)))?;
    let mut last = format!("dial tcp: {address}: no such host");
    for candidate in addresses {
        match TcpStream::connect(candidate) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = format!("dial tcp {candidate}: connect: {}", os_reason(&error)),
        }
    }
    Err(last)
}

/// The next frame that is no type definition.
fn read_value(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Vec<u8>, String> {
    loop {
        while let Some(frame) = gob::take_frame(buffer).map_err(|error| error.to_string())? {
            if !gob::is_type(&frame).map_err(|error| error.to_string())? {
                return Ok(frame);
            }
        }
        let mut chunk = [0; 4096];
        match socket.read(&mut chunk) {
            Ok(0) | Err(_) => return Err("unexpected EOF".to_owned()),
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_be_dialled_are_named_in_gos_words() {
        let check = |address: &str, text: &str| assert_eq!(call(address, None, &[]), Err(text.to_owned()));
        check("", "dial tcp: missing address");
        check("127.0.0.1", "dial tcp: address 127.0.0.1: missing port in address");
        check("127.0.0.1:70000", "dial tcp: address 70000: invalid port");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        check(&free.to_string(), &format!("dial tcp {free}: connect: connection refused"));
    }
}
