//! Tests of TLS, with authorities of their own.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use expect_test::expect;
use rcgen::string::PrintableString;
use rcgen::{BasicConstraints, CertificateParams, DnType, DnValue, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_rustls::TlsConnector;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Who signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(crate) pem: String,
}

/// A certificate and its key, in PEM.
pub(crate) struct Credentials {
    pub(crate) key: String,
    pub(crate) cert: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `name`, as a common name and in the DNS, and for `localhost`, that is valid
    /// from a day before `end` to `end`.
    pub(crate) fn issue(&self, name: &str, end: SystemTime) -> Credentials {
        let names = [name.replace(':', "-"), "localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = (end - 30 * DAY).into();
        params.not_after = end.into();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Credentials { key: key.serialize_pem(), cert }
    }

    /// The same, valid now and for some days.
    pub(crate) fn issue_valid(&self, name: &str) -> Credentials {
        self.issue(name, SystemTime::now() + 20 * DAY)
    }
}

/// TLS files of one party.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Writes the files that are given, over those before.
    pub(crate) fn files(&self, own: Option<&Credentials>, ca: Option<&Authority>) -> TlsFiles {
        TlsFiles {
            key: own.map(|own| self.write("key.pem", &own.key)),
            cert: own.map(|own| self.write("cert.pem", &own.cert)),
            ca: ca.map(|ca| self.write("ca.pem", &ca.pem)),
        }
    }
}

/// A handshake and a byte in both directions; who the server thinks the client is.
async fn converse(
    server: &ServerTls,
    client: &TlsFiles,
) -> Result<Option<PeerCertificate>, String> {
    let (one, other) = duplex(1 << 16);
    let config = client_config(client).unwrap();
    let serve = async {
        let mut stream = server.acceptor().accept(one).await?;
        let peer = stream.get_ref().1.peer_certificates().map(|chain| chain[0].clone());
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        std::io::Result::Ok(peer)
    };
    let ask = async {
        let name = "localhost".try_into().unwrap();
        let mut stream = TlsConnector::from(config).connect(name, other).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    let (peer, byte) = tokio::join!(serve, ask);
    let peer = peer.map_err(|error| format!("server: {error}"))?;
    assert_eq!(byte.map_err(|error| format!("client: {error}"))?, 7);
    Ok(peer.map(|peer| PeerCertificate::of(&peer).unwrap()))
}

#[tokio::test]
async fn who_may_talk_to_whom() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (folder, of_client) = (Folder::new(), Folder::new());
    let server = ours.issue_valid("server");
    let client = ours.issue_valid("system:node:a");
    let stranger = theirs.issue_valid("system:node:a");
    let late = ours.issue("system:node:a", SystemTime::now() - DAY);

    let mut shown = String::new();
    for server_ca in [None, Some(&ours)] {
        let server = ServerTls::load(&folder.files(Some(&server), server_ca)).unwrap();
        for (who, own, ca) in [
            ("nobody", None, &ours),
            ("client", Some(&client), &ours),
            ("stranger", Some(&stranger), &ours),
            ("late", Some(&late), &ours),
            ("client of another server", Some(&client), &theirs),
        ] {
            let outcome = converse(&server, &of_client.files(own, Some(ca))).await;
            let outcome = match outcome {
                Ok(peer) => format!("{:?}", peer.and_then(|peer| peer.common_name)),
                // What follows is the time.
                Err(error) => error.split(": verification").next().unwrap().to_owned(),
            };
            let mode = if server_ca.is_some() { "mutual" } else { "simple" };
            shown += &format!("{mode}, {who}: {outcome}\n");
        }
    }
    expect![[r#"
        simple, nobody: None
        simple, client: None
        simple, stranger: None
        simple, late: None
        simple, client of another server: server: received fatal alert: UnknownCA
        mutual, nobody: server: peer sent no certificates
        mutual, client: Some("system:node:a")
        mutual, stranger: server: invalid peer certificate: UnknownIssuer
        mutual, late: server: invalid peer certificate: certificate expired
        mutual, client of another server: server: received fatal alert: UnknownCA
    "#]]
    .assert_eq(&shown);
}

#[test]
fn bad_files_are_named() {
    let (authority, folder) = (Authority::new("ours"), Folder::new());
    let (own, other) = (authority.issue_valid("a"), authority.issue_valid("b"));
    let key = || Some(folder.write("a.key", &own.key));
    let cert = || Some(folder.write("a.crt", &own.cert));
    let ca = || Some(folder.write("ca.crt", &authority.pem));
    let missing = || Some(folder.path("missing"));
    let empty = || Some(folder.write("empty", ""));
    let half = || Some(folder.write("half", &own.cert[..own.cert.len() / 2]));
    let garbage = || {
        let text = "-----BEGIN CERTIFICATE-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE-----\n";
        Some(folder.write("garbage", text))
    };
    let other_key = Some(folder.write("b.key", &other.key));

    let cases = [
        TlsFiles { key: key(), cert: None, ca: ca() },
        TlsFiles { key: None, cert: cert(), ca: None },
        TlsFiles { key: missing(), cert: cert(), ca: None },
        TlsFiles { key: key(), cert: missing(), ca: None },
        TlsFiles { key: key(), cert: cert(), ca: missing() },
        TlsFiles { key: empty(), cert: cert(), ca: None },
        TlsFiles { key: key(), cert: empty(), ca: None },
        TlsFiles { key: key(), cert: cert(), ca: empty() },
        TlsFiles { key: key(), cert: key(), ca: None },
        TlsFiles { key: key(), cert: half(), ca: ca() },
        TlsFiles { key: key(), cert: garbage(), ca: ca() },
        TlsFiles { key: key(), cert: cert(), ca: garbage() },
        TlsFiles { key: other_key, cert: cert(), ca: ca() },
    ];
    let mut shown = String::new();
    for files in cases {
        assert!(files.is_set());
        let error = ServerTls::load(&files).unwrap_err().to_string();
        if files.ca.is_some() {
            // A client says the same.
            assert_eq!(client_config(&files).unwrap_err().to_string(), error);
        }
        shown += &error.replace(folder.0.path().to_str().unwrap(), "DIR");
        shown += "\n";
    }
    shown +=
        &format!("server without files: {}", ServerTls::load(&TlsFiles::default()).unwrap_err());
    assert!(!TlsFiles::default().is_set());
    expect![[r#"
        there is no TLS certificate: give its file
        there is no TLS key: give its file
        cannot read the TLS key DIR/missing: No such file or directory (os error 2)
        cannot read the TLS certificate DIR/missing: No such file or directory (os error 2)
        cannot read the TLS CA DIR/missing: No such file or directory (os error 2)
        there is no usable TLS key in DIR/empty: nothing of that kind is in it
        there is no usable TLS certificate in DIR/empty: nothing of that kind is in it
        there is no usable TLS CA in DIR/empty: nothing of that kind is in it
        there is no usable TLS certificate in DIR/a.key: nothing of that kind is in it
        there is no usable TLS certificate in DIR/half: it ends in the middle
        cannot use the TLS key DIR/a.key with the TLS certificate DIR/garbage: invalid peer certificate: BadEncoding
        cannot use the TLS CA in DIR/garbage: invalid peer certificate: BadEncoding
        cannot use the TLS key DIR/b.key with the TLS certificate DIR/a.crt: keys may not be consistent: KeyMismatch
        server without files: there is no TLS certificate: give its file"#]].assert_eq(&shown);
}

/// The end of the certificate that a server shows.
async fn shown_end(server: &ServerTls, client: &TlsFiles) -> SystemTime {
    let (one, other) = duplex(1 << 16);
    let config = client_config(client).unwrap();
    let accept = server.acceptor().accept(one);
    let connect = TlsConnector::from(config).connect("localhost".try_into().unwrap(), other);
    let (accepted, connected) = tokio::join!(accept, connect);
    accepted.unwrap();
    let connected = connected.unwrap();
    PeerCertificate::of(&connected.get_ref().1.peer_certificates().unwrap()[0]).unwrap().not_after
}

#[tokio::test]
async fn renewed_files_are_used_and_broken_ones_are_not() {
    let authority = Authority::new("ours");
    let (folder, of_client) = (Folder::new(), Folder::new());
    let client = of_client.files(None, Some(&authority));
    let end = |days: u32| {
        // Certificates know no fractions of seconds.
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + days * DAY
    };
    let (first, second) = (end(10), end(20));
    let files = folder.files(Some(&authority.issue("server", first)), None);
    let server = ServerTls::load_every(Duration::from_millis(5), &files).unwrap();
    let scenario = async {
        assert_eq!(shown_end(&server, &client).await, first);

        // Half of a renewal: the certificate is not that of the key.
        let renewed = authority.issue("server", second);
        folder.write("cert.pem", &renewed.cert);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(shown_end(&server, &client).await, first);

        std::fs::remove_file(folder.path("cert.pem")).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(shown_end(&server, &client).await, first);

        folder.files(Some(&renewed), None);
        while shown_end(&server, &client).await == first {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(shown_end(&server, &client).await, second);
    };
    tokio::select! {
        never = server.follow() => match never {},
        result = tokio::time::timeout(Duration::from_secs(5), scenario) => result.unwrap(),
    }
}

#[test]
fn a_peer_is_named_by_its_last_common_name() {
    let name_of = |values: Vec<DnValue>| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        for (at, value) in values.into_iter().enumerate() {
            // The same attribute twice needs two types here.
            let kind =
                if at == 0 { DnType::CommonName } else { DnType::CustomDnType(vec![2, 5, 4, 3]) };
            params.distinguished_name.push(kind, value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        PeerCertificate::of(certificate.der()).unwrap().common_name
    };
    let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
    assert_eq!(name_of(vec![]), None);
    assert_eq!(name_of(vec![utf8("system:node:a")]).as_deref(), Some("system:node:a"));
    assert_eq!(
        name_of(vec![DnValue::PrintableString(PrintableString::try_from("node-a").unwrap())])
            .as_deref(),
        Some("node-a"),
    );
    assert_eq!(name_of(vec![utf8("a"), utf8("b")]).as_deref(), Some("b"));
    assert!(PeerCertificate::of(&b"garbage"[..].into()).is_err());
}
