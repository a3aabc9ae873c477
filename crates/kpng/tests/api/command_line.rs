//! What a person who types wrong things is told about the API, before anything is started.

use crate::process::{Folder, Kpng, fails, kpng};

#[test]
fn wrong_flags_say_what_to_do() {
    let folder = Folder::new();
    let input = format!("--input={}", folder.write_state(&[]).display());
    let to_api = |flags: &[&str], words: &[&str]| {
        fails(&[&["file", &input, "to-api", "--listen=tcp://127.0.0.1:0"], flags].concat(), words);
    };
    fails(&["file", &input, "to-api", "--listen=:1"], &["--listen", "tcp://HOST:PORT"]);
    fails(&["local", "--api=host", "to-json"], &["--api", "the port is missing"]);
    fails(&["local", "--api=http://a:1", "to-json"], &["http://a:1", "HOST:PORT"]);
    to_api(&["--listen-tls-key=/k"], &["/k", "No such file"]);
    to_api(&["--listen-tls-ca=/c"], &["TLS"]);
    to_api(&["--authorize-node-name"], &["--authorize-node-name", "--listen-tls-ca"]);
    to_api(&["--authorize-global=a"], &["--authorize-node-name"]);
    to_api(&["--max-connections=0"], &["1000000"]);
    to_api(&["--globalv1-api=false", "--local-api=false"], &["nothing to serve"]);
    fails(&["local", "--api-client-tls-ca=/c", "to-json"], &["/c", "No such file"]);
    fails(&["watch", "local", "--once", "--api-client-tls-crt=/c"], &["/c", "No such file"]);
    fails(
        &["file", &input, "to-local", "to-json", "--also-listen=unix:///no/such/folder/s"],
        &["cannot listen on unix:///no/such/folder/s"],
    );
}

#[test]
fn an_address_in_use_is_an_error() {
    let folder = Folder::new();
    let state = folder.write_state(&[]);
    let (input, api) = (format!("--input={}", state.display()), folder.socket("api.sock"));
    let server = Kpng::serve(&state, "tcp://127.0.0.1:0");
    let address = server.address();
    fails(&["file", &input, "to-api", "--listen", &address], &["cannot listen on", &address]);
    let _server = Kpng::serve(&state, &api);
    fails(&["file", &input, "to-api", "--listen", &api], &["cannot listen on", &api]);
}

#[test]
fn help_names_what_there_is() {
    for (arguments, words) in [
        (&["--help"][..], &["api", "local", "watch", "kpng kube to-api"][..]),
        (&["kube", "--help"], &["to-api", "to-file", "to-local"]),
        (&["kube", "to-api", "--help"], &["--listen ", "--listen-tls-ca", "--authorize-node-name"]),
        (&["file", "to-file", "--help"], &["--output", "--once", "global-state.yaml"]),
        (&["local", "--help"], &["--api ", "--api-client-tls-crt", "127.0.0.1:12090", "to-nft"]),
        (&["watch", "--help"], &["--json", "--once", "global"]),
        (&["kube", "to-local", "to-nft", "--help"], &["--also-listen"]),
    ] {
        let help = String::from_utf8(kpng(arguments).stdout).unwrap();
        words.iter().for_each(|word| assert!(help.contains(word), "{arguments:?}: {word}\n{help}"));
    }
}
