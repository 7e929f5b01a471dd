//! Handshakes between our two sides: who is believed, what is said of a refusal, what changes with the files.

use std::net::IpAddr;

use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;

use super::suites::Version;
use super::testing::Authority;
use super::testing::Pair;
use super::testing::Wanted;
use super::testing::write;
use super::*;

const VERSIONS: [&str; 2] = ["TLS1.2", "TLS1.3"];

/// What both sides say in the end: `Ok` is the version that they speak.
type Outcome = (Result<Version, String>, Result<(), String>);

/// A handshake, a byte each way, and what the listener looks at afterwards.
async fn shake(server: &Settings, client: &Settings, host: &str) -> Outcome {
    let server = ServerSide::new(server, &[b"h2"], false).expect("usable files");
    let client = ClientSide::new(client, &[b"h2"]).expect("usable files");
    shake_sides(&server, &client, host).await
}

async fn shake_sides(server: &ServerSide, client: &ClientSide, host: &str) -> Outcome {
    let (near, far) = tokio::io::duplex(64 << 10);
    let serving = async {
        let terms = server.terms()?;
        let stream = TlsAcceptor::from(terms.config.clone()).accept(far).await;
        let mut stream = stream.map_err(|error| terms.refusal().unwrap_or_else(|| words::of_io(&error)))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        server.check(&chain, Some(IpAddr::from([127, 0, 0, 1])))?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|error| words::of_io(&error))?;
        stream.write_all(&byte).await.map_err(|error| words::of_io(&error))?;
        let version = stream.get_ref().1.protocol_version();
        Ok(if version == Some(rustls::ProtocolVersion::TLSv1_3) { Version::Tls13 } else { Version::Tls12 })
    };
    let dialing = async {
        let mut stream = client.connect(near, host).await?;
        let mut byte = [7];
        // A refusal of TLS 1.3 comes behind a handshake that looked done: with the first read.
        let _ = stream.write_all(&byte).await;
        stream.read_exact(&mut byte).await.map(drop).map_err(|error| words::of_io(&error))
    };
    tokio::join!(serving, dialing)
}

struct Files {
    dir: TempDir,
    ours: Authority,
    server: Pair,
}

impl Files {
    fn new() -> Files {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = Authority::new(dir.path(), "ours");
        let server = ours.issue("server", &Wanted::default());
        Files { dir, ours, server }
    }

    fn server(&self) -> Settings {
        let Pair { cert, key } = self.server.clone();
        Settings { cert_file: cert, key_file: key, ..Settings::default() }
    }

    fn demanding(&self) -> Settings {
        Settings { trusted_ca_file: self.ours.bundle.clone(), ..self.server() }
    }

    fn client(&self) -> Settings {
        Settings { trusted_ca_file: self.ours.bundle.clone(), ..Settings::default() }
    }

    fn client_with(&self, pair: Pair) -> Settings {
        Settings { cert_file: pair.cert, key_file: pair.key, ..self.client() }
    }
}

fn only(settings: &Settings, version: &str) -> Settings {
    let (offer, _) = Offer::read(version, version, &[]).expect("a version");
    Settings { offer, ..settings.clone() }
}

fn said(text: &str) -> Result<(), String> {
    Err(text.to_owned())
}

#[tokio::test]
async fn each_version_is_spoken_and_a_foreign_one_refused() {
    let files = Files::new();
    let (server, client) = (files.server(), files.client());
    assert_eq!(shake(&server, &client, "127.0.0.1").await, (Ok(Version::Tls13), Ok(())));
    assert_eq!(shake(&only(&server, "TLS1.2"), &client, "localhost").await, (Ok(Version::Tls12), Ok(())));
    assert_eq!(shake(&server, &only(&client, "TLS1.2"), "127.0.0.1").await, (Ok(Version::Tls12), Ok(())));
    let (server, client) = shake(&only(&server, "TLS1.3"), &only(&client, "TLS1.2"), "127.0.0.1").await;
    assert_eq!(server.map(drop), said("tls: client offered only unsupported versions"));
    assert_eq!(client, said("remote error: tls: protocol version not supported"));
}

#[tokio::test]
async fn suites_are_those_that_were_asked_for() {
    let files = Files::new();
    let of = |suite: &str| Offer::read("", "TLS1.2", &[suite.to_owned()]).expect("a suite").0;
    // The certificate has an elliptic key.
    let rsa = Settings { offer: of("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"), ..files.server() };
    let (server, client) = shake(&rsa, &files.client(), "127.0.0.1").await;
    assert_eq!(server.map(drop), said("tls: no cipher suite supported by both client and server"));
    assert_eq!(client, said("remote error: tls: handshake failure"));
    let ecdsa = Settings { offer: of("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"), ..files.server() };
    assert_eq!(shake(&ecdsa, &files.client(), "127.0.0.1").await, (Ok(Version::Tls12), Ok(())));
}

#[tokio::test]
async fn servers_are_believed_only_with_the_right_certificate() {
    let files = Files::new();
    let foreign = Authority::new(files.dir.path(), "foreign");
    let check = async |authority: &Authority, wanted: Wanted, host: &str, text: &str| {
        let Pair { cert, key } = authority.issue("judged", &wanted);
        let server = Settings { cert_file: cert, key_file: key, ..Settings::default() };
        for version in VERSIONS {
            let (_, outcome) = shake(&only(&server, version), &files.client(), host).await;
            let error = outcome.expect_err(text);
            let told = error.strip_prefix("tls: failed to verify certificate: x509: ").unwrap_or(&error);
            // The time of day is not ours to know.
            let told = told.split_once("current time ").map_or(told.to_owned(), |(head, tail)| {
                let (_, order) = tail.split_once(" is ").expect("two times");
                format!("{head}{order}")
            });
            assert_eq!(told, text, "{version}");
        }
    };
    let good = Wanted::default;
    check(&foreign, good(), "127.0.0.1", "certificate signed by unknown authority").await;
    let expired = Wanted { years: (2000, 2001), ..good() };
    let time = "certificate has expired or is not yet valid: ";
    check(&files.ours, expired, "127.0.0.1", &format!("{time}after 2001-01-01T00:00:00Z")).await;
    let early = Wanted { years: (2099, 2100), ..good() };
    check(&files.ours, early, "127.0.0.1", &format!("{time}before 2099-01-01T00:00:00Z")).await;
    let other = Wanted { hosts: vec!["other.example".to_owned()], ..good() };
    check(&files.ours, other.clone(), "localhost", "certificate is valid for other.example, not localhost").await;
    let none = "cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs";
    check(&files.ours, other, "127.0.0.1", none).await;
    let client_only = Wanted { by_server: false, ..good() };
    check(&files.ours, client_only, "127.0.0.1", "certificate specifies an incompatible key usage").await;
    let skips = Settings { insecure_skip_verify: true, ..Settings::default() };
    assert_eq!(shake(&files.server(), &skips, "other.example").await.1, Ok(()));
}

#[tokio::test]
async fn clients_are_let_in_only_with_the_right_certificate() {
    let files = Files::new();
    let foreign = Authority::new(files.dir.path(), "foreign");
    let check = async |client: Settings, refusal: &str, alerts: [&str; 2]| {
        for (version, alert) in VERSIONS.into_iter().zip(alerts) {
            let (server, client) = shake(&only(&files.demanding(), version), &client, "127.0.0.1").await;
            let error = server.expect_err(refusal);
            assert!(error.contains(refusal), "{version}: {error}");
            assert_eq!(client, said(&format!("remote error: tls: {alert}")), "{version}: {refusal}");
        }
    };
    let good = Wanted::default;
    let pair = |wanted: Wanted| files.client_with(files.ours.issue("judged", &wanted));
    assert_eq!(shake(&files.demanding(), &pair(good()), "127.0.0.1").await, (Ok(Version::Tls13), Ok(())));
    let none = "tls: client didn't provide a certificate";
    check(files.client(), none, ["certificate required", "certificate required"]).await;
    let unknown = "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    let stranger = files.client_with(foreign.issue("stranger", &good()));
    check(stranger, unknown, ["unknown certificate authority"; 2]).await;
    let expired = "x509: certificate has expired or is not yet valid";
    check(pair(Wanted { years: (2000, 2001), ..good() }), expired, ["expired certificate"; 2]).await;
    check(pair(Wanted { years: (2099, 2100), ..good() }), expired, ["expired certificate"; 2]).await;
    let usage = "x509: certificate specifies an incompatible key usage";
    check(pair(Wanted { by_client: false, ..good() }), usage, ["bad certificate"; 2]).await;
    // Demanded without a bundle: the system's authorities count, and ours is none of them.
    let system = Settings { client_cert_auth: true, ..files.server() };
    assert!(shake(&system, &pair(good()), "127.0.0.1").await.0.is_err());
}

#[tokio::test]
async fn names_are_allowed_by_list() {
    let files = Files::new();
    let client = files.client_with(files.ours.issue("client", &Wanted { common_name: "alice", ..Wanted::default() }));
    let check = async |server: Settings, is_good: bool| {
        let (outcome, _) = shake(&server, &client, "127.0.0.1").await;
        let text = "client certificate authentication failed".to_owned();
        assert_eq!(outcome.map(drop), if is_good { Ok(()) } else { Err(text) });
    };
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    check(Settings { allowed_cns: list(&["bob", "alice"]), ..files.demanding() }, true).await;
    check(Settings { allowed_cns: list(&["bob", "alic"]), ..files.demanding() }, false).await;
    check(Settings { allowed_hostnames: list(&["x", "localhost"]), ..files.demanding() }, true).await;
    check(Settings { allowed_hostnames: list(&["alice"]), ..files.demanding() }, false).await;
    let both = Settings { allowed_cns: list(&["a"]), allowed_hostnames: list(&["b"]), ..files.demanding() };
    let text = "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\"a\"], hostnames=[\"b\"])";
    assert_eq!(ServerSide::new(&both, &[], false).map(drop), said(text));
}

#[tokio::test]
async fn files_are_read_for_every_handshake() {
    let files = Files::new();
    let crl = files.ours.revoke("list", &[1]);
    let settings = Settings { crl_file: crl, ..files.demanding() };
    let server = ServerSide::new(&settings, &[b"h2"], false).expect("usable files");
    let client = files.client_with(files.ours.issue("client", &Wanted { serial: 0x2a, ..Wanted::default() }));
    let client = ClientSide::new(&client, &[b"h2"]).expect("usable files");
    let shake = async || shake_sides(&server, &client, "127.0.0.1").await;
    assert_eq!(shake().await, (Ok(Version::Tls13), Ok(())));
    // Revoked now.
    files.ours.revoke("list", &[1, 0x2a]);
    assert_eq!(shake().await.0, Err("transport: certificate serial 2a revoked".to_owned()));
    files.ours.revoke("list", &[1]);
    assert!(shake().await.0.is_ok());
    // The server's certificate is another one, then a file that cannot be read, then good again.
    files.ours.issue("server", &Wanted { hosts: vec!["moved.example".to_owned()], ..Wanted::default() });
    assert!(shake().await.1.is_err_and(|error| error.contains("doesn't contain any IP SANs")));
    write(&files.dir.path().join("server.crt"), b"nonsense");
    let text = "tls: failed to find any PEM data in certificate input";
    assert_eq!(shake().await.0, Err(text.to_owned()));
    files.ours.issue("server", &Wanted::default());
    assert!(shake().await.0.is_ok());
    // Another authority takes over, on both sides.
    let next = Authority::new(files.dir.path(), "ours");
    assert!(shake().await.0.is_err());
    next.issue("server", &Wanted::default());
    next.issue("client", &Wanted::default());
    assert_eq!(shake().await, (Ok(Version::Tls13), Ok(())));
    // A bundle that cannot be read any more keeps its last content.
    std::fs::remove_file(&next.bundle).expect("removed");
    assert_eq!(shake().await, (Ok(Version::Tls13), Ok(())));
}

#[tokio::test]
async fn a_certificate_in_the_bundle_is_believed_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = generate::self_signed(dir.path(), &["127.0.0.1".to_owned(), "localhost".to_owned()], 1).expect("made");
    let client = Settings { trusted_ca_file: made.cert_file.clone(), ..Settings::default() };
    assert_eq!(shake(&made, &client, "127.0.0.1").await, (Ok(Version::Tls13), Ok(())));
    assert!(shake(&made, &client, "127.0.0.2").await.1.is_err());
    // Kept as it is.
    let before = std::fs::read(&made.cert_file).expect("readable");
    assert_eq!(generate::self_signed(dir.path(), &[], 1), Ok(made.clone()));
    assert_eq!(std::fs::read(&made.cert_file).expect("readable"), before);
    // One that we cannot use makes room.
    write(&dir.path().join("key.pem"), b"nonsense");
    assert_eq!(generate::self_signed(dir.path(), &["localhost".to_owned()], 1), Ok(made.clone()));
    assert!(dir.path().join("cert.pem.unusable").exists());
    let text = "selfSignedCertValidity is invalid,it should be greater than 0";
    assert_eq!(generate::self_signed(dir.path(), &[], 0), Err(text.to_owned()));
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&made.key_file).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn wrong_files_get_gos_texts() {
    let files = Files::new();
    let path = |name: &str| files.dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (cert, key) = (files.server.cert.clone(), files.server.key.clone());
    let other = files.ours.issue("other", &Wanted::default());
    write(&files.dir.path().join("empty"), b"");
    let check = |cert: &str, key: &str, ca: &str, text: &str| {
        let (cert_file, key_file, trusted_ca_file) = (cert.to_owned(), key.to_owned(), ca.to_owned());
        let settings = Settings { cert_file, key_file, trusted_ca_file, ..Settings::default() };
        assert_eq!(ClientSide::new(&settings, &[]).map(drop), said(text));
    };
    check(&cert, "", "", &format!("KeyFile and CertFile must both be present[key: , cert: {cert}]"));
    check("", &key, "", &format!("KeyFile and CertFile must both be present[key: {key}, cert: ]"));
    check("/nonexistent", &key, "", "open /nonexistent: no such file or directory");
    check(&cert, "/nonexistent", "", "open /nonexistent: no such file or directory");
    check(&cert, &other.key, "", "tls: private key does not match public key");
    check(&cert, &path("empty"), "", "tls: failed to find any PEM data in key input");
    check(&path("empty"), &key, "", "tls: failed to find any PEM data in certificate input");
    let swapped = "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the \
                   following types: [PRIVATE KEY]";
    check(&key, &cert, "", swapped);
    let certificate = "tls: found a certificate rather than a key in the PEM for the private key";
    check(&cert, &cert, "", certificate);
    check("", "", "/nonexistent", "open /nonexistent: no such file or directory");
    check("", "", &key, "x509: malformed tbs certificate");
    let none = Settings { trusted_ca_file: path("empty"), ..Settings::default() };
    assert!(ClientSide::new(&none, &[]).is_ok(), "a bundle without certificates believes nobody");
    let half = Settings { client_cert_file: cert.clone(), ..files.server() };
    let text = format!("ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: {cert}]");
    assert_eq!(ServerSide::new(&half, &[], false).map(drop), said(&text));
}
