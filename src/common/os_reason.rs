//! An operating system's reason as Go spells it: lower case at the start, without Rust's `(os error 2)`.

use std::io;

/// `connection refused`, `no such file or directory`.
pub fn os_reason(error: &io::Error) -> String {
    if error.raw_os_error().is_none() && error.kind() == io::ErrorKind::InvalidInput {
        // A zero byte in a name or word, which the library does not even hand over.
        return "invalid argument".to_owned();
    }
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
        let zero = std::fs::File::open("a\0b").unwrap_err();
        assert_eq!(os_reason(&zero), "invalid argument");
        assert_eq!(os_reason(&io::Error::other("Said by US")), "said by US");
        assert_eq!(os_reason(&io::Error::other("")), "");
    }
}
