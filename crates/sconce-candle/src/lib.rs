//! Models on Candle: package → signature → loaded model → instances.
//!
//! A [`Package`] is a folder `NAME/VERSION/` with weights in safetensors and, optionally, a `model.toml`.
//! [`Package::open`] checks it whole without loading weights; [`Package::load`] makes the
//! [`LoadedModel`](sconce_core::LoadedModel) the scheduler runs. Every file is treated as hostile: sizes are
//! bounded, nothing outside of the folder is read, and weights are read, never mapped.

mod arch;
mod backend;
mod device;
mod discover;
mod files;
mod keys;
mod package;
mod process;
mod settings;
mod weights;

pub use arch::{Remote, builtin};
pub use device::check_device;
pub use discover::{Discovery, Found, discover};
pub use package::steps_of;
pub use package::{Package, PackageError};
pub use settings::{Family, ModelSettings, Precision};

pub(crate) use package::Problems;
