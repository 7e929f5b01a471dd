//! The word that whoever controls us over TCP must know: read from a file, compared in constant time.
//!
//! Over the project's socket the kernel says who asks; a TCP port is open to every user of the machine. So a port needs a
//! token, and it is a loopback address only: in the clear on a network a token would be everybody's (`ssh -L` reaches it
//! from elsewhere).

use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::common::os_reason::os_reason;

/// Shorter ones can be guessed.
const BYTES_MIN: usize = 16;
const BYTES_MAX: usize = 4096;
const SCHEME: &str = "Bearer ";

/// Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// The file's text without blanks around it. Others must not be able to read it.
    pub fn read(path: &Path) -> Result<Token, String> {
        let name = path.display();
        let failed = |error: std::io::Error| format!("{name}: {}", os_reason(&error));
        let file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(format!("{name} can be read by others (mode {mode:o}): chmod 600 {name}"));
        }
        let mut text = String::new();
        file.take(BYTES_MAX as u64).read_to_string(&mut text).map_err(failed)?;
        Token::of(text.trim()).map_err(|why| format!("{name}: {why}"))
    }

    fn of(text: &str) -> Result<Token, String> {
        if text.len() < BYTES_MIN {
            return Err(format!("a token has at least {BYTES_MIN} bytes"));
        }
        match text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Token(text.to_owned())),
            false => Err("a token is one word of ASCII letters, digits and signs".to_owned()),
        }
    }

    /// What a client sends as `Authorization`.
    pub fn header(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }

    /// Whether a request has it. How long this takes says nothing about what is right in a wrong one.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(AUTHORIZATION) else { return false };
        let Some(given) = value.as_bytes().strip_prefix(SCHEME.as_bytes()) else { return false };
        let own = self.0.as_bytes();
        // All of our own bytes are looked at, whatever was given; the length alone is no secret.
        let differing = own.iter().enumerate().fold(own.len() ^ given.len(), |found, (at, byte)| {
            found | usize::from(byte ^ given.get(at).copied().unwrap_or_default())
        });
        std::hint::black_box(differing) == 0
    }
}

/// A loopback address to listen on.
pub fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| format!("\"{text}\" is no address such as 127.0.0.1:8444"))?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => {
            Err("only a loopback address: what is said is not encrypted (ssh -L reaches it from elsewhere)".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let token = Token::of("0123456789abcdef").unwrap();
        let check = |value: Option<&str>, expected: bool| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(token.is_in(&headers), expected, "{value:?}");
        };
        check(Some(&token.header()), true);
        for wrong in
            ["Bearer 0123456789abcdeX", "Bearer X123456789abcdef", "Bearer 0123456789abcde", "Bearer ", "Basic x"]
        {
            check(Some(wrong), false);
        }
        check(Some("Bearer 0123456789abcdef0"), false);
        check(Some("0123456789abcdef"), false);
        check(None, false);
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn a_token_file_is_ours_alone_and_holds_one_long_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let check = |text: &str, mode: u32, expected: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let found = Token::read(&path).map(|token| token.0).unwrap_or_else(|why| why);
            assert!(found.ends_with(expected), "{found}");
        };
        check(" 0123456789abcdef\n", 0o600, "0123456789abcdef");
        check("0123456789abcdef", 0o640, &format!("mode 640): chmod 600 {}", path.display()));
        check("short", 0o600, "at least 16 bytes");
        check("0123456789 abcdef", 0o600, "one word of ASCII letters, digits and signs");
        assert!(Token::read(&dir.path().join("none")).unwrap_err().ends_with("no such file or directory"));
    }

    #[test]
    fn only_this_machine_listens() {
        assert!(loopback("127.0.0.1:1").is_ok() && loopback("[::1]:1").is_ok());
        assert!(loopback("0.0.0.0:1").is_err() && loopback("localhost:1").is_err() && loopback("8444").is_err());
    }
}
