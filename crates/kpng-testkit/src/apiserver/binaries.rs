//! Finds etcd and Kubernetes' programs, and builds the latter when there are none.
//!
//! Looked for in `KUBEBUILDER_ASSETS`, then `PATH`, then `.testbin` of the workspace. Building takes
//! the Go module `k8s.io/kubernetes`, a Go toolchain and some minutes, once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::process::run;

/// The version that is built.
const KUBERNETES_VERSION: &str = "v1.36.2";

/// The programs of a control plane.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `etcd`.
    pub etcd: PathBuf,
    /// `kube-apiserver`.
    pub kube_apiserver: PathBuf,
}

/// Finds the programs, or builds what can be built. An error says what to do.
pub fn binaries() -> Result<Binaries, String> {
    let etcd = find("etcd").ok_or("etcd is missing: `apt-get install etcd-server`, or name a folder that has it in KUBEBUILDER_ASSETS")?;
    Ok(Binaries { etcd, kube_apiserver: find_or_build("kube-apiserver")? })
}

/// Finds kube-proxy, a peer to compare with, or builds it. An error says what to do.
pub fn kube_proxy() -> Result<PathBuf, String> {
    find_or_build("kube-proxy")
}

fn find_or_build(program: &str) -> Result<PathBuf, String> {
    find(program).map_or_else(|| build(program), Ok)
}

fn find(program: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<_> = std::env::split_paths(&path).collect();
    let folders = assets.into_iter().chain(path).chain([cache()]);
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.testbin")
}

/// Builds under a lock: tests run in parallel, in one process and in several.
fn build(program: &str) -> Result<PathBuf, String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("cannot build {program}: {what}: {error}")
    };
    let module = cache().join("build");
    fs::create_dir_all(&module).map_err(failed("create .testbin/build"))?;
    let lock = File::create(cache().join("lock")).map_err(failed("create .testbin/lock"))?;
    lock.lock().map_err(failed("lock .testbin/lock"))?;
    let target = cache().join(program);
    if target.is_file() {
        return Ok(target);
    }
    fs::write(module.join("go.mod"), go_mod(&staging_modules(&module)?))
        .map_err(failed("write go.mod"))?;
    let version = "-X k8s.io/component-base/version.git";
    let (major, minor) = major_minor(KUBERNETES_VERSION);
    let flags = format!(
        "-s -w {version}Version={KUBERNETES_VERSION} {version}Major={major} {version}Minor={minor}"
    );
    let unfinished = cache().join(format!("{program}.unfinished"));
    let output = unfinished.display().to_string();
    let package = format!("k8s.io/kubernetes/cmd/{program}");
    let build = ["build", "-trimpath", "-ldflags", &flags, "-o", &output, &package];
    go(&build, &module)?;
    fs::rename(&unfinished, &target).map_err(failed("rename the result"))?;
    Ok(target)
}

/// `v1.36.2` is `("1", "36")`.
fn major_minor(version: &str) -> (&str, &str) {
    let mut numbers = version.trim_start_matches('v').split('.');
    let mut next = || numbers.next().expect("the version has three numbers");
    (next(), next())
}

/// The modules that live in the main module's `staging` folder there, and are published on their
/// own with the version's leading 1 turned into a 0.
fn staging_modules(dir: &Path) -> Result<Vec<String>, String> {
    let module = format!("k8s.io/kubernetes@{KUBERNETES_VERSION}");
    let printed = go(&["mod", "download", "-json", &module], Path::new("/"))?;
    let printed: serde_json::Value = serde_json::from_str(&printed)
        .map_err(|error| format!("cannot read `go mod download -json`: {error}"))?;
    let path = printed["GoMod"].as_str().ok_or("`go mod download -json` names no go.mod")?;
    let go_mod = fs::read_to_string(dir.join(path))
        .map_err(|error| format!("cannot read the go.mod of {module}: {error}"))?;
    let staged = |line: &str| {
        let (module, _) = line.trim().split_once(" => ./staging/")?;
        Some(module.to_owned())
    };
    Ok(go_mod.lines().filter_map(staged).collect())
}

fn go_mod(staging: &[String]) -> String {
    let staged_version = KUBERNETES_VERSION.replacen("v1.", "v0.", 1);
    let replace = staging.iter().map(|module| format!("\t{module} => {module} {staged_version}\n"));
    let replace: String = replace.collect();
    format!(
        "module kpng.test/kube-apiserver\n\ngo 1.26.0\n\n\
         require k8s.io/kubernetes {KUBERNETES_VERSION}\n\nreplace (\n{replace})\n"
    )
}

fn go(arguments: &[&str], dir: &Path) -> Result<String, String> {
    let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    run(Path::new("go"), &arguments, dir, &[("GOFLAGS", "-mod=mod")])
        .map_err(|error| format!("a program of Kubernetes is missing and does not build: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_modules_have_versions_of_their_own() {
        let text = go_mod(&["k8s.io/api".to_owned(), "k8s.io/client-go".to_owned()]);
        expect_test::expect![[r#"
            module kpng.test/kube-apiserver

            go 1.26.0

            require k8s.io/kubernetes v1.36.2

            replace (
            	k8s.io/api => k8s.io/api v0.36.2
            	k8s.io/client-go => k8s.io/client-go v0.36.2
            )
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn the_version_is_split() {
        assert_eq!(major_minor("v1.36.2"), ("1", "36"));
    }
}
