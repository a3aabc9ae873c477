//! The kept object is what the sources give.

#![expect(clippy::disallowed_methods, reason = "clang, the program, is what makes the object")]

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn the_object_is_what_clang_makes_of_the_sources() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf");
    let made = tempfile::NamedTempFile::new().expect("there is room for a file");
    let version = Command::new("clang").arg("--version").output();
    let version = version.expect("clang is installed (apt-get install clang)").stdout;
    let version = String::from_utf8_lossy(&version);
    let output = Command::new(folder.join("build.sh")).arg(made.path()).output();
    let output = output.expect("the script starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let kept = fs::read(folder.join("kpng.bpf.o")).expect("the object is kept");
    let same = fs::read(made.path()).expect("clang wrote it") == kept;
    assert!(
        same,
        "kpng.bpf.o was made from other sources, or by another clang than 14 (here: {}); run \
         bpf/build.sh",
        version.lines().next().unwrap_or_default()
    );
}
