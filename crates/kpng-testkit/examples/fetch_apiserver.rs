//! Finds or builds what the tests against a real API server need, and prints where it is.

use std::process::ExitCode;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for scripts")]
fn main() -> ExitCode {
    match kpng_testkit::apiserver::binaries() {
        Ok(binaries) => {
            println!("etcd {}", binaries.etcd.display());
            println!("kube-apiserver {}", binaries.kube_apiserver.display());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}
