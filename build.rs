//! Generates the protobuf and gRPC code from `proto/` without `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

const PROTOS: [&str; 3] = [
    "proto/sessiond/v1/session_service.proto",
    "proto/sessiond/v1/lease_service.proto",
    "proto/sessiond/v1/error_reason.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let has_feature = |name| env::var_os(format!("CARGO_FEATURE_{name}")).is_some();
    if !has_feature("GRPC") {
        return Ok(());
    }
    let mut compiler = protox::Compiler::new(["proto"])?;
    // Comments become the documentation of the generated types. With the imports, reflection can describe every type.
    compiler.include_source_info(true).include_imports(true).open_files(PROTOS)?;
    let descriptor_set = PathBuf::from(env::var("OUT_DIR")?).join("sessiond.bin");
    fs::write(descriptor_set, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_client(has_feature("CLIENT"))
        .build_server(has_feature("SERVER"))
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
