//! Generated messages and services of the Open Inference Protocol and of Sconce's own control calls; nothing here is written by hand. The definitions,
//! with their documentation, are in `proto/`.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated; which of these apply is the generator's business"
)]
pub mod inference {
    tonic::include_proto!("inference");
}

/// Sconce's own control calls, version 1.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated; which of these apply is the generator's business"
)]
pub mod sconce {
    tonic::include_proto!("sconce.v1");
}

/// The compiled definitions, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
