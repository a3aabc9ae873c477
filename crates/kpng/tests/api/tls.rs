//! Certificates: who is believed, and what one may see.

use std::fs;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

use crate::process::{Folder, Kpng, QUIET, example, fails, kpng, output};

/// Signs certificates, and puts them into a folder.
struct Ca<'a> {
    issuer: Issuer<'static, KeyPair>,
    folder: &'a Folder,
}

impl<'a> Ca<'a> {
    /// Its own certificate is NAME.ca.
    fn new(folder: &'a Folder, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path(&format!("{name}.ca")), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), folder }
    }

    /// FILE.key and FILE.crt.
    fn sign(&self, file: &str, common_name: &str) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.folder.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
        fs::write(self.folder.path(&format!("{file}.crt")), certificate.pem()).unwrap();
    }
}

fn flags(folder: &Folder, prefix: &str, file: &str, ca: &str) -> Vec<String> {
    vec![
        folder.flag(&format!("--{prefix}-key"), &format!("{file}.key")),
        folder.flag(&format!("--{prefix}-crt"), &format!("{file}.crt")),
        folder.flag(&format!("--{prefix}-ca"), &format!("{ca}.ca")),
    ]
}

fn serve(folder: &Folder, more: &[&str]) -> Kpng {
    let input = format!("--input={}", example("state.yaml").display());
    let tls = flags(folder, "listen-tls", "server", "good");
    let tls: Vec<_> = tls.iter().map(String::as_str).collect();
    let listen = ["file", &input, "to-api", "--listen=tcp://localhost:0"];
    Kpng::start(&[&listen[..], &QUIET, &tls, more].concat())
}

/// The address by the name that is in the certificate.
fn by_name(server: &Kpng) -> String {
    format!("localhost:{}", server.address().rsplit_once(':').unwrap().1)
}

#[test]
fn both_ends_show_certificates() {
    let folder = Folder::new();
    let (good, bad) = (Ca::new(&folder, "good"), Ca::new(&folder, "bad"));
    good.sign("server", "server");
    good.sign("client", "anybody");
    bad.sign("stranger", "anybody");
    let server = serve(&folder, &[]);
    let api = by_name(&server);
    let watch = |flags: &[String]| {
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let fixed = ["watch", "global", "--once", "--json", "--api", &api];
        kpng(&[&fixed[..], &flags].concat())
    };
    let client = |file, ca| flags(&folder, "api-client-tls", file, ca);
    let seen = watch(&client("client", "good"));
    let errors = String::from_utf8_lossy(&seen.stderr);
    assert!(seen.status.success(), "{errors}");
    assert!(String::from_utf8_lossy(&seen.stdout).contains("172.30.0.53"));

    for (what, flags) in [
        ("no TLS", Vec::new()),
        ("no certificate of the client", client("client", "good")[2..].to_vec()),
        ("a CA that did not sign the server's", client("client", "bad")),
        ("a client that another CA signed", client("stranger", "good")),
    ] {
        let seen = watch(&flags);
        assert!(!seen.status.success() && seen.stdout.is_empty(), "{what}");
    }
    let wrong = [client("client", "good"), vec!["--api-client-tls-server-name=other".to_owned()]];
    assert!(!watch(&wrong.concat()).status.success(), "the name must fit");

    // A whole node.
    let tls = client("client", "good");
    let tls: Vec<_> = tls.iter().map(String::as_str).collect();
    let flags = ["to-nft", "--dry-run", "--node-name=node-a"];
    let input = format!("--input={}", example("state.yaml").display());
    assert_eq!(
        output(&[&["local", "--api", &api], &tls[..], &flags].concat()),
        output(&[&["file", &input, "to-local"][..], &flags].concat()),
    );
}

#[test]
fn a_node_sees_itself_only() {
    let folder = Folder::new();
    let ca = Ca::new(&folder, "good");
    ca.sign("server", "server");
    ca.sign("node-a", "system:node:node-a");
    ca.sign("relay", "relay");
    let server = serve(&folder, &["--authorize-node-name", "--authorize-global=observer,relay"]);
    let api = by_name(&server);
    let arguments = |file: &str, what: &[&str]| {
        let fixed = ["watch", "--once", "--json", "--api", &api].map(str::to_owned);
        let mut all = fixed.to_vec();
        all.extend(what.iter().map(|&argument| argument.to_owned()));
        all.extend(flags(&folder, "api-client-tls", file, "good"));
        all
    };
    let sees = |file, what: &[&str]| {
        let all = arguments(file, what);
        let text = output(&all.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(text.contains("172.30.0.53"), "{text}");
    };
    let sees_not = |file, what: &[&str], words: &[&str]| {
        let all = arguments(file, what);
        fails(&all.iter().map(String::as_str).collect::<Vec<_>>(), words);
    };
    sees("node-a", &["local", "--node-name=node-a"]);
    sees_not("node-a", &["local", "--node-name=node-b"], &["node-a", "node-b", "not allow"]);
    sees_not("node-a", &["global"], &["global", "--authorize-global"]);
    sees("relay", &["global"]);
    sees("relay", &["local", "--node-name=node-b"]);
}

#[test]
fn what_is_served_beside_a_backend_is_secure_too() {
    let folder = Folder::new();
    let ca = Ca::new(&folder, "good");
    ca.sign("server", "server");
    ca.sign("client", "anybody");
    let input = format!("--input={}", folder.write_state(&[("a", "10.0.0.1")]).display());
    let listen = ["file", &input, "to-local", "to-json", "--also-listen=tcp://localhost:0"];
    let tls = flags(&folder, "listen-tls", "server", "good");
    let server =
        Kpng::start(&[&listen[..], &tls.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    let api = by_name(&server);
    let ask = ["watch", "local", "--once", "--json", "--api", &api];
    let tls = flags(&folder, "api-client-tls", "client", "good");
    let seen = output(&[&ask[..], &tls.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    assert!(seen.contains("10.0.0.1"), "{seen}");
    fails(&ask, &[&api]);
}
