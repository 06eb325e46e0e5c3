//! Generated messages and services of the Open Inference Protocol; nothing here is written by hand. The definitions,
//! with their documentation, are in `proto/`.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated; which of these apply is the generator's business"
)]
pub mod inference {
    tonic::include_proto!("inference");

    /// The compiled definitions, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
}
