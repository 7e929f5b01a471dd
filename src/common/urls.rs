//! URLs of listeners and members, read as etcd reads them: scheme, host and port, nothing behind.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// How a URL is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }
}

/// One URL. `Display` gives it back as written: it is hashed into member ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    text: String,
    scheme: Scheme,
    /// `host:port` for http and https; the first part of the file name for unix.
    authority: String,
    path: String,
}

/// Where a URL points a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host without brackets. Empty means every interface.
    Tcp {
        host: String,
        port: String,
    },
    Unix(PathBuf),
}

/// Sorted by text, duplicates kept, never empty when parsed. etcd sorts every URL list.
pub type Urls = Vec<Url>;

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Url {
    /// Reads one URL; blanks around it are dropped. Errors carry etcd's texts (server.md 9.3).
    pub fn parse(text: &str) -> Result<Url, String> {
        let text = text.trim();
        let (scheme, authority, path) = split(text)?;
        let scheme = match scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(format!("URL scheme must be http, https, unix, or unixs: {text}")),
        };
        if matches!(scheme, Scheme::Http | Scheme::Https) {
            if split_host_port(&authority).is_none() {
                return Err(format!("URL address does not have the form \"host:port\": {text}"));
            }
            if !path.is_empty() {
                return Err(format!("URL must not contain a path: {text}"));
            }
        }
        Ok(Url { text: text.to_owned(), scheme, authority, path })
    }

    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// `host:port` as written; for unix sockets the file.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Host without brackets; empty for unix sockets and for `http://:2379`.
    pub fn host(&self) -> &str {
        match self.scheme {
            Scheme::Http | Scheme::Https => split_host_port(&self.authority).map_or("", |(host, _)| host),
            Scheme::Unix | Scheme::Unixs => "",
        }
    }

    /// The port as written; empty for unix sockets.
    pub fn port(&self) -> &str {
        match self.scheme {
            Scheme::Http | Scheme::Https => split_host_port(&self.authority).map_or("", |(_, port)| port),
            Scheme::Unix | Scheme::Unixs => "",
        }
    }

    pub fn address(&self) -> Address {
        match self.scheme {
            Scheme::Http | Scheme::Https => Address::Tcp { host: self.host().to_owned(), port: self.port().to_owned() },
            Scheme::Unix | Scheme::Unixs => Address::Unix(PathBuf::from(format!("{}{}", self.authority, self.path))),
        }
    }

    /// The same URL with another host.
    pub fn with_host(&self, host: &str) -> Url {
        let authority = match host.contains(':') {
            true => format!("[{host}]:{}", self.port()),
            false => format!("{host}:{}", self.port()),
        };
        let text = format!("{}://{authority}", self.scheme.as_str());
        Url { text, scheme: self.scheme, authority, path: String::new() }
    }

    /// Whether a listener may bind to it: an IP address, `localhost` or a unix socket (server.md 9.2).
    pub fn is_bindable(&self) -> bool {
        match self.scheme {
            Scheme::Unix | Scheme::Unixs => true,
            Scheme::Http | Scheme::Https => {
                let host = self.host().split('%').next().unwrap_or("");
                host == "localhost" || host.parse::<IpAddr>().is_ok()
            }
        }
    }
}

/// Reads URLs, sorts them. An empty list is an error, as in etcd.
pub fn parse_all<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Urls, String> {
    let mut urls = texts.into_iter().map(Url::parse).collect::<Result<Urls, String>>()?;
    if urls.is_empty() {
        return Err("no valid URLs given".to_owned());
    }
    urls.sort();
    Ok(urls)
}

/// Reads a comma list.
pub fn parse_list(text: &str) -> Result<Urls, String> {
    parse_all(text.split(','))
}

/// Writes a comma list.
pub fn join(urls: &[Url]) -> String {
    strings(urls).join(",")
}

pub fn strings(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

/// Splits `host:port` and `[v6]:port` as Go's net.SplitHostPort does; the port may be empty.
pub fn split_host_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').filter(|host| !host.contains(['[', ']'])).map(|host| (host, port)),
        None => (!host.contains([':', '[', ']']) && !port.contains(['[', ']'])).then_some((host, port)),
    }
}

/// Scheme, authority and path, with the errors of Go's url.Parse for what is not even a URL.
fn split(text: &str) -> Result<(String, String, String), String> {
    let wrong = |why: &str| format!("parse \"{}\": {why}", text.escape_default());
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return Err(wrong("net/url: invalid control character in URL"));
    }
    let (scheme, rest) = match text.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c)) {
        Some(0) if text.starts_with(':') => return Err(wrong("missing protocol scheme")),
        Some(end) if end > 0 && text[end..].starts_with(':') && text.as_bytes()[0].is_ascii_alphabetic() => {
            (text[..end].to_ascii_lowercase(), &text[end + 1..])
        }
        _ => (String::new(), text),
    };
    let first_segment = rest.split('/').next().unwrap_or("");
    if scheme.is_empty() && first_segment.contains(':') {
        return Err(wrong("first path segment in URL cannot contain colon"));
    }
    let Some(rest) = rest.strip_prefix("//") else {
        return Ok((scheme, String::new(), rest.to_owned()));
    };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let path = path.split(['?', '#']).next().unwrap_or("");
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    check_authority(authority).map_err(|why| wrong(&why))?;
    Ok((scheme, authority.to_owned(), path.to_owned()))
}

fn check_authority(authority: &str) -> Result<(), String> {
    if authority.contains(' ') {
        return Err("invalid character \" \" in host name".to_owned());
    }
    let colon = match authority.rfind(']') {
        Some(bracket) => authority[bracket..].find(':').map(|at| bracket + at),
        None if authority.starts_with('[') => return Err("missing ']' in host".to_owned()),
        None => authority.rfind(':'),
    };
    match colon {
        Some(at) if !authority[at + 1..].bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("invalid port \"{}\" after host", &authority[at..]))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_accepted_as_etcd_does() {
        let check = |text: &str, host: &str, port: &str| {
            let url = Url::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((url.host(), url.port(), url.to_string().as_str()), (host, port, text.trim()));
        };
        check("http://127.0.0.1:2379", "127.0.0.1", "2379");
        check(" https://example.com:2380 ", "example.com", "2380");
        check("http://:2379", "", "2379");
        check("http://[::1]:2379", "::1", "2379");
        check("unix://sock:1", "", "");
        assert_eq!(
            Url::parse("unix:///tmp/a.sock").map(|url| url.address()),
            Ok(Address::Unix(PathBuf::from("/tmp/a.sock")))
        );
    }

    #[test]
    fn wrong_urls_get_etcds_texts() {
        let check = |text: &str, error: &str| assert_eq!(Url::parse(text).map(|_| ()), Err(error.to_owned()), "{text}");
        check("", "URL scheme must be http, https, unix, or unixs: ");
        check("ftp://h:1", "URL scheme must be http, https, unix, or unixs: ftp://h:1");
        check("localhost:2379", "URL scheme must be http, https, unix, or unixs: localhost:2379");
        check("http://h:1/", "URL must not contain a path: http://h:1/");
        check("http://h", "URL address does not have the form \"host:port\": http://h");
        check("http://::1:2379", "URL address does not have the form \"host:port\": http://::1:2379");
        check("127.0.0.1:2379", "parse \"127.0.0.1:2379\": first path segment in URL cannot contain colon");
        check("://x", "parse \"://x\": missing protocol scheme");
        check("http://h:x", "parse \"http://h:x\": invalid port \":x\" after host");
        check("http://[::1", "parse \"http://[::1\": missing ']' in host");
    }

    #[test]
    fn lists_are_sorted_and_keep_duplicates() {
        let urls = parse_list("http://b:1,http://a:1,http://b:1").expect("valid");
        assert_eq!(join(&urls), "http://a:1,http://b:1,http://b:1");
        assert_eq!(parse_all([]), Err("no valid URLs given".to_owned()));
    }

    #[test]
    fn only_addresses_can_be_bound() {
        let check = |text: &str, bindable: bool| {
            assert_eq!(Url::parse(text).map(|url| url.is_bindable()), Ok(bindable), "{text}");
        };
        check("http://127.0.0.1:1", true);
        check("http://[::]:1", true);
        check("http://localhost:1", true);
        check("unix://x:1", true);
        check("http://example.com:1", false);
        check("http://:1", false);
    }

    #[test]
    fn the_host_can_be_replaced() {
        let url = Url::parse("http://0.0.0.0:2379").expect("valid");
        assert_eq!(url.with_host("10.0.0.7").to_string(), "http://10.0.0.7:2379");
        assert_eq!(url.with_host("fe80::1").to_string(), "http://[fe80::1]:2379");
    }

    proptest::proptest! {
        /// A URL comes from a command line, from a peer's member list or from the log (reliability.md 4.5, F12).
        #[test]
        fn no_text_panics_and_what_is_read_is_given_back(text in "(http|https|unix|x)?:?/{0,2}[a-z0-9\\[\\]:./@% é-]{0,20}") {
            if let Ok(url) = Url::parse(&text) {
                let (again, address) = (Url::parse(&url.to_string()), url.address());
                proptest::prop_assert_eq!(again.map(|again| again.address()), Ok(address));
                let _ = (url.is_bindable(), url.host().len(), url.port().len());
            }
        }
    }
}
