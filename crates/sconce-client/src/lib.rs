//! Typed client of the Open Inference Protocol over gRPC, and of Sconce's registry of models, its traffic and
//! its feedback.
//!
//! ```no_run
//! # async fn example() -> sconce_client::Result<()> {
//! use sconce_client::{Client, InferRequest, Options, tensor};
//!
//! let client = Client::connect("127.0.0.1:8001", Options::default()).await?;
//! let request = InferRequest::new("tiny").input("features", tensor::fp32(&[1, 4], &[5.1, 3.5, 1.4, 0.2])?);
//! let answer = client.infer(request).await?;
//! let probabilities: Option<Vec<f32>> = answer.output("probabilities").map(|t| t.f32_values().collect());
//! # let _ = probabilities;
//! # Ok(())
//! # }
//! ```

mod caller;
mod client;
pub mod contents;
mod error;
mod feedback;
mod health;
mod monitor;
mod registry;
mod request;
mod response;
mod review;
mod stream;
pub mod tensor;
mod traffic;
mod upload;

pub use client::{Client, LogSetting, Options};
pub use error::{Error, Result};
pub use feedback::FeedbackClient;
pub use health::HealthClient;
pub use monitor::MonitorClient;
pub use registry::{Items, RegistryClient};
pub use request::InferRequest;
pub use response::{InferResponse, Parameter};
pub use review::ReviewClient;
pub use sconce_core::{DataType, Tensor};
pub use sconce_proto::inference as proto;
pub use sconce_proto::sconce as control_proto;
pub use stream::{InferStream, StreamReply};
pub use tonic::Code;
pub use traffic::TrafficClient;
pub use upload::Progress;
