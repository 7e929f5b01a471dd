//! An operating system's reason as Go spells it: lower case at the start, without Rust's `(os error 2)`.

use std::io;

/// `connection refused`, `no such file or directory`.
pub fn os_reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_lose_their_number_and_their_capital() {
        assert_eq!(os_reason(&io::Error::from_raw_os_error(2)), "no such file or directory");
        assert_eq!(os_reason(&io::Error::from_raw_os_error(111)), "connection refused");
        let ours = io::Error::new(io::ErrorKind::InvalidInput, "invalid port");
        assert_eq!(os_reason(&ours), "invalid port");
        assert_eq!(os_reason(&io::Error::other("Said by US")), "said by US");
        assert_eq!(os_reason(&io::Error::other("")), "");
    }
}
