//! A small blocking REST client for one API server: JSON over HTTP/1.1 over TLS.
//!
//! Blocking and without a runtime, so that it works from any thread in any network namespace.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// What the server answered.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status code.
    pub status: u16,
    /// The body; null when it is no JSON.
    pub body: Value,
}

type Stream = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// A client that keeps one connection. The methods with an object's verb panic unless the server
/// agrees.
#[derive(Debug)]
pub struct Rest {
    port: u16,
    token: String,
    tls: Arc<ClientConfig>,
    idle: Mutex<Option<Stream>>,
}

impl Rest {
    /// A client of `https://127.0.0.1:port` that trusts `ca` and shows `token`.
    ///
    /// # Panics
    /// When `ca` is no PEM certificate.
    pub fn new(port: u16, ca: &Path, token: &str) -> Self {
        let pem = fs::read(ca).expect("the authority's certificate was written");
        let certificate = CertificateDer::from_pem_slice(&pem).expect("it is PEM");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("openssl makes good certificates");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { port, token: token.to_owned(), tls: Arc::new(tls), idle: Mutex::new(None) }
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Value {
        self.must("GET", path, None)
    }

    /// `POST path`: creates an object in the collection `path`.
    #[expect(clippy::needless_pass_by_value, reason = "callers pass `json!(…)`")]
    pub fn create(&self, path: &str, object: Value) -> Value {
        self.must("POST", path, Some(&object))
    }

    /// `PUT path`.
    #[expect(clippy::needless_pass_by_value, reason = "callers pass `json!(…)`")]
    pub fn replace(&self, path: &str, object: Value) -> Value {
        self.must("PUT", path, Some(&object))
    }

    /// `PATCH path` by a JSON merge patch.
    #[expect(clippy::needless_pass_by_value, reason = "callers pass `json!(…)`")]
    pub fn patch(&self, path: &str, change: Value) -> Value {
        self.must("PATCH", path, Some(&change))
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Value {
        self.must("DELETE", path, None)
    }

    /// `GET path` answers 200.
    pub fn has(&self, path: &str) -> bool {
        self.try_request("GET", path, None).is_ok_and(|response| response.status == 200)
    }

    /// Any request. A refusal is a [`Response`] too.
    ///
    /// # Panics
    /// When the server cannot be reached.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        self.try_request(method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let response = self.request(method, path, body);
        assert!(response.status < 300, "{method} {path}: {response:?}");
        response.body
    }

    fn try_request(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Response> {
        let idle = self.idle.lock().expect("no holder panics").take();
        if let Some(stream) = idle
            && let Ok(response) = self.exchange(stream, method, path, body)
        {
            return Ok(response);
        }
        // The kept connection may have died with a stopped server.
        self.exchange(self.connect()?, method, path, body)
    }

    fn connect(&self) -> io::Result<Stream> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(Duration::from_secs(30)))?;
        let name = ServerName::try_from("127.0.0.1").expect("an IP address is a server name");
        let tls = ClientConnection::new(Arc::clone(&self.tls), name).map_err(io::Error::other)?;
        Ok(BufReader::new(StreamOwned::new(tls, tcp)))
    }

    fn exchange(
        &self,
        mut stream: Stream,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<Response> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind =
            if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\n\
             Accept: application/json\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            self.token,
            body.len(),
        );
        stream.get_mut().write_all(request.as_bytes())?;
        stream.get_mut().flush()?;
        let (status, body) = read_response(&mut stream)?;
        *self.idle.lock().expect("no holder panics") = Some(stream);
        Ok(Response { status, body: serde_json::from_slice(&body).unwrap_or_default() })
    }
}

fn read_response(stream: &mut impl BufRead) -> io::Result<(u16, Vec<u8>)> {
    let status_line = read_line(stream)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| malformed(&status_line))?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = read_line(stream)?.to_ascii_lowercase();
        match header.split_once(": ") {
            None => break,
            Some(("content-length", value)) => {
                length = value.parse().map_err(|_| malformed(&header))?;
            }
            Some(("transfer-encoding", "chunked")) => chunked = true,
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    while chunked {
        let size = read_line(stream)?;
        let size = usize::from_str_radix(&size, 16).map_err(|_| malformed(&size))?;
        stream.take(size as u64).read_to_end(&mut body)?;
        read_line(stream)?;
        chunked = size > 0;
    }
    Ok((status, body))
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// `POST path` over HTTP without TLS.
///
/// # Panics
/// Unless the server agrees.
pub(super) fn post_plainly(port: u16, path: &str, body: &str) {
    let exchange = || {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port))?);
        write!(
            stream.get_mut(),
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        read_response(&mut stream)
    };
    let (status, answer) = exchange().unwrap_or_else(|error| panic!("POST {path}: {error}"));
    assert_eq!(status, 200, "POST {path}: {}", String::from_utf8_lossy(&answer));
}

/// RFC 4648, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for piece in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=piece.len()].copy_from_slice(piece);
        let bits = u32::from_be_bytes(padded);
        for at in 0..4 {
            let digit = (bits >> (18 - 6 * at)) as usize % 64;
            text.push(if at <= piece.len() { char::from(ALPHABET[digit]) } else { '=' });
        }
    }
    text
}

fn malformed(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP: {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &str, status: u16, body: &str) {
        let read = read_response(&mut answer.as_bytes()).unwrap();
        assert_eq!(read, (status, body.as_bytes().to_vec()));
    }

    #[test]
    fn bodies_with_a_length_and_in_chunks() {
        check("HTTP/1.1 204 No Content\r\n\r\n", 204, "");
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", 200, "abc");
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            200,
            "abc",
        );
    }

    #[test]
    fn base64_of_every_length() {
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let encoded = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(texts.map(|text| base64(text.as_bytes())), encoded);
    }

    #[test]
    fn a_cut_answer_is_an_error() {
        assert!(
            read_response(&mut "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab".as_bytes())
                .is_err()
        );
        assert!(read_response(&mut "".as_bytes()).is_err());
    }
}
