//! `watch`, for people and for programs.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::process::{Folder, Kpng, example, fails, output};

fn json_lines(arguments: &[&str]) -> Vec<Value> {
    let text = output(arguments);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How many values of each set there are.
fn count(lines: &[Value]) -> BTreeMap<&str, usize> {
    let mut sets = BTreeMap::new();
    for set in lines.iter().filter(|line| line["op"] == "set") {
        assert!(set["value"].is_object(), "{set}");
        *sets.entry(set["set"].as_str().unwrap()).or_default() += 1;
    }
    sets
}

#[test]
fn programs_get_every_value_as_json() {
    let folder = Folder::new();
    let api = folder.socket("api.sock");
    let _server = Kpng::serve(&example("state.yaml"), &api);
    let lines =
        json_lines(&["watch", "local", "--api", &api, "--once", "--json", "--node-name", "node-a"]);
    assert_eq!(lines[0]["op"], "reset");
    assert_eq!(lines.last().unwrap()["op"], "sync");
    let sets = count(&lines);
    assert_eq!((sets["ServicesSet"], sets["LocalNodesSet"]), (7, 1), "{sets:?}");
    assert!(sets["EndpointsSet"] > 7, "{sets:?}");
    let dns = lines.iter().find(|line| line["path"] == "kube-system/dns").unwrap();
    assert_eq!(dns["value"]["Ports"][0]["Protocol"], "UDP", "{dns}");
    assert_eq!(dns["value"]["IPs"]["ClusterIPs"]["V4"][0], "172.30.0.53", "{dns}");

    let lines = json_lines(&["watch", "global", "--api", &api, "--once", "--json"]);
    let sets = count(&lines);
    assert_eq!((sets["GlobalServiceInfos"], sets["GlobalNodeInfos"]), (7, 1), "{sets:?}");
    assert!(sets["GlobalEndpointInfos"] > 7, "{sets:?}");
}

#[test]
fn an_empty_state_is_a_state() {
    let folder = Folder::new();
    let api = folder.socket("api.sock");
    let _server = Kpng::serve(&folder.write_state(&[]), &api);
    for what in ["local", "global"] {
        let text = output(&["watch", what, "--api", &api, "--once", "--json"]);
        let ops: Vec<_> = text.lines().map(|line| line.contains("\"sync\"")).collect();
        assert_eq!(ops, [false, true], "{text}");
    }
}

#[test]
fn people_see_changes_and_lost_servers() {
    let folder = Folder::new();
    let state = folder.write_state(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
    let api = folder.socket("api.sock");
    let server = Kpng::serve(&state, &api);
    let watch = Kpng::start(&["watch", "local", "--node-name=node-a", "--api", &api]);
    let next = |begin: &[&str]| {
        for begin in begin {
            let line = watch.line();
            assert!(line.starts_with(begin), "{begin:?} does not begin {line:?}");
        }
    };
    next(&["< req local node-a from unix:///", "< recv at 20"]);
    next(&["+ ServicesSet ns/a -> {Namespace: ns", "+ ServicesSet ns/b -> ", "> sync after "]);
    folder.write_state(&[("b", "10.0.0.3")]);
    next(&["< recv at 20"]);
    let mut changes = [watch.line(), watch.line()];
    changes.sort();
    assert_eq!(changes[0], "- ServicesSet ns/a");
    assert!(changes[1].starts_with("~ ServicesSet ns/b -> ") && changes[1].contains("10.0.0.3"));
    next(&["> sync after "]);

    server.kill();
    watch.wait_for_log("trying again");
    folder.write_state(&[("b", "10.0.0.3"), ("c", "10.0.0.4")]);
    let _server = Kpng::serve(&state, &api);
    next(&["< req local", "< recv", "+ ServicesSet ns/c -> ", "> sync after "]);
    watch.no_line();
}

#[test]
fn nobody_there_is_an_error_once_only() {
    let folder = Folder::new();
    let api = folder.socket("nobody.sock");
    fails(&["watch", "global", "--once", "--api", &api], &["cannot connect", &api]);
    fails(&["watch", "global", "--once", "--api=127.0.0.1:1"], &["127.0.0.1:1", "refused"]);
    let watch = Kpng::start(&["watch", "global", "--api", &api]);
    watch.wait_for_log("cannot connect");
    let _server = Kpng::serve(&folder.write_state(&[]), &api);
    assert!(watch.line().starts_with("< req global"));
}

#[test]
fn who_stops_reading_ends_it_quietly() {
    let folder = Folder::new();
    let state = folder.write_state(&[("a", "10.0.0.1")]);
    let api = folder.socket("api.sock");
    let _server = Kpng::serve(&state, &api);
    let mut child = Command::new(env!("CARGO_BIN_EXE_kpng"))
        .args(["watch", "local", "--json", "--api", &api])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    folder.write_state(&[("a", "10.0.0.2")]);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{}: {errors}", output.status);
}
