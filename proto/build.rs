//! Compiles the protos in pure Rust: no installed protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/federation.proto",
        "proto/enrol.proto",
        "proto/workload.proto",
        "proto/spire/types.proto",
        "proto/spire/trustdomain.proto",
        "proto/spire/bundle.proto",
        "proto/spire/entry.proto",
        "proto/spire/localauthority.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
