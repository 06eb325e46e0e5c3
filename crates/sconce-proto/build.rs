//! Compiles `proto/` without an external compiler.

use prost::Message as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptors = protox::compile(
        [
            "inference/inference.proto",
            "sconce/v1/experiment.proto",
            "sconce/v1/feedback.proto",
            "sconce/v1/health.proto",
            "sconce/v1/monitor.proto",
            "sconce/v1/registry.proto",
            "sconce/v1/review.proto",
            "sconce/v1/traffic.proto",
        ],
        [root],
    )?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Ordered maps: empty ones, the common case, cost nothing, and answers are the same every time.
        .btree_map(".")
        // Tensor bytes stay slices of the received message.
        .bytes(".inference.ModelInferRequest.raw_input_contents")
        .bytes(".inference.ModelInferResponse.raw_output_contents")
        .bytes(".inference.InferTensorContents.bytes_contents")
        .compile_fds(descriptors)?;
    Ok(())
}
