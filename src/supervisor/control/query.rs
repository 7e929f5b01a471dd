//! The part of a URL behind the question mark: pairs, with `%41` and `+` read as browsers write them.

/// Pairs in their order; a key may stand several times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let split = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
            (decode(key), decode(value))
        };
        Query(pairs.map(split).collect())
    }

    /// Adds a pair.
    pub fn with(mut self, key: &str, value: impl ToString) -> Query {
        self.0.push((key.to_owned(), value.to_string()));
        self
    }

    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).next()
    }

    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    pub fn is_set(&self, key: &str) -> bool {
        self.value(key).is_some_and(|value| value != "false" && value != "0")
    }
}

impl std::fmt::Display for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (key, value)) in self.0.iter().enumerate() {
            let joint = if at == 0 { "" } else { "&" };
            write!(f, "{joint}{}={}", encode(key), encode(value))?;
        }
        Ok(())
    }
}

fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = hex.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (first, _) => {
                bytes.push(if first == b'+' { b' ' } else { first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let query = Query::default().with("name", "a b&c=d%+ä").with("name", "e").with("tail", 5);
        assert_eq!(Query::parse(&query.to_string()), query);
        assert_eq!(query.values("name").collect::<Vec<_>>(), ["a b&c=d%+ä", "e"]);
    }

    #[test]
    fn anything_can_be_read() {
        let query = Query::parse("a&b=false&c=%zz%4&&=x&d=1+2&e=%ff");
        assert!(query.is_set("a") && !query.is_set("b") && !query.is_set("nothing"));
        assert_eq!(
            (query.value("c"), query.value("d"), query.value("e")),
            (Some("%zz%4"), Some("1 2"), Some("\u{fffd}"))
        );
    }
}
