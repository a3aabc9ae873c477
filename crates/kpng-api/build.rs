//! Generates the messages from `proto/`, without a `protoc`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(["localv1/api.proto", "globalv1/api.proto"])?;
    let out = std::env::var("OUT_DIR")?;
    // With comments: reflection shows them.
    compiler.include_source_info(true);
    std::fs::write(Path::new(&out).join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        // Deterministic bytes: hashes and comparisons depend on them.
        .btree_map(".")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
