//! `to-file`, from every source.

use std::fs;
use std::path::Path;

use crate::process::{Folder, Kpng, example, fails, output, within};

fn to_file(source: &[&str], output_file: &Path) -> String {
    let output_flag = format!("--output={}", output_file.display());
    output(&[source, &["to-file", "--once", &output_flag]].concat());
    fs::read_to_string(output_file).unwrap()
}

#[test]
fn a_file_comes_back_as_the_same_bytes_by_whatever_way() {
    let folder = Folder::new();
    for file in ["cluster.yaml", "state.yaml"] {
        let input = format!("--input={}", example(file).display());
        let first = to_file(&["file", &input], &folder.path("first.yaml"));
        assert!(first.contains("timeoutseconds"), "affinity is part of {file}\n{first}");
        let input = folder.flag("--input", "first.yaml");
        assert_eq!(to_file(&["file", &input], &folder.path("second.yaml")), first);

        let api = folder.socket(&format!("{file}.sock"));
        let _server = Kpng::serve(&example(file), &api);
        assert_eq!(to_file(&["api", "--api", &api], &folder.path("third.yaml")), first);
    }
}

#[test]
fn a_file_follows_its_source() {
    let folder = Folder::new();
    let input = format!("--input={}", folder.write_state(&[("a", "10.0.0.1")]).display());
    let output_flag = folder.flag("-o", "out.yaml").replace("-o=", "--output=");
    let kpng = Kpng::start(&["file", &input, "to-file", &output_flag]);
    let content = || fs::read_to_string(folder.path("out.yaml")).unwrap_or_default();
    assert!(within(|| content().contains("10.0.0.1")), "{}", kpng.log());
    folder.write_state(&[("a", "10.0.0.2")]);
    assert!(within(|| content().contains("10.0.0.2") && !content().contains("10.0.0.1")));
    folder.write_state(&[]);
    assert!(within(|| !content().contains("10.0.0.2")), "{}", content());
    kpng.terminate();
    let names = fs::read_dir(folder.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["out.yaml", "state.yaml"], "nothing else is left");
}

#[test]
fn what_cannot_be_written_is_said_at_once() {
    let folder = Folder::new();
    let input = format!("--input={}", folder.write_state(&[]).display());
    let to = |output_file: &str, words: &[&str]| {
        fails(&["file", &input, "to-file", "--output", output_file], words);
    };
    to("/no/such/folder/state.yaml", &["cannot write /no/such/folder/state.yaml", "No such file"]);
    to("/", &["cannot write /", "directory"]);
    let same = folder.path("state.yaml");
    to(same.to_str().unwrap(), &["same file", "--output"]);
}
