//! Compiles the protos in pure Rust: no installed protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/enrol.proto",
        "proto/workload.proto",
        "proto/spire/types.proto",
        "proto/spire/trustdomain.proto",
        "proto/spire/bundle.proto",
        "proto/spire/entry.proto",
        "proto/spire/localauthority.proto",
        "proto/xds/discovery.proto",
        "proto/xds/resources.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    // What peers send is counted before anything is built of it.
    tonic_prost_build::configure()
        .codec_path("crate::bounded::Codec")
        .compile_fds(protox::compile(["proto/federation.proto"], ["proto"])?)?;
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // Equal resources are equal bytes, and are handed to many clients without a copy.
        .btree_map(".entente.xds")
        .btree_map(".envoy.service.discovery.v3")
        .bytes(".envoy.service.discovery.v3.Packed")
        .compile_fds(descriptors)?;
    Ok(())
}
