use crate::arch::Target;
use crate::{ModelSettings, Precision};
use candle_core::{DType, Device};
use sconce_core::{DeviceId, Error, ErrorCode, Result};

/// Whether this build can run models on `device`. Opens nothing: whether the GPU is there shows when a model
/// is loaded.
///
/// # Errors
/// `FailedPrecondition` for CUDA in a build without it.
pub fn check_device(device: DeviceId) -> Result<()> {
    if matches!(device, DeviceId::Cuda(_)) && !candle_core::utils::cuda_is_available() {
        return Err(Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "device {device}: this build has no CUDA support: build with `--features cuda`, or use `cpu`"
            ),
        ));
    }
    Ok(())
}

/// Opens `device`.
fn open(device: DeviceId) -> Result<Device, String> {
    check_device(device).map_err(|e| e.to_string())?;
    match device {
        DeviceId::Cpu => Ok(Device::Cpu),
        DeviceId::Cuda(ordinal) => {
            Device::new_cuda(ordinal).map_err(|e| format!("device {device}: cannot open: {e}"))
        }
    }
}

/// What computes a model.
pub(crate) enum Engine {
    /// Our kernels, on the CPU.
    Cpu(sconce_kernels::Precision),
    /// Candle's: on a GPU, and for what ours do not compute.
    Candle(Target),
}

impl Engine {
    /// The one for a model's device and precision; opens the device.
    pub(crate) fn of(settings: &ModelSettings) -> Result<Self, String> {
        use sconce_kernels::Precision as Kernels;
        let device = open(settings.device)?;
        let candle = |dtype| Self::Candle(Target { device: device.clone(), dtype });
        Ok(match (settings.device, settings.precision) {
            (DeviceId::Cpu, Precision::F32) => Self::Cpu(Kernels::F32),
            (DeviceId::Cpu, Precision::Bf16) => Self::Cpu(Kernels::Bf16),
            (DeviceId::Cpu, Precision::Int8) => Self::Cpu(Kernels::Int8),
            (_, Precision::F32) => candle(DType::F32),
            (_, Precision::Bf16) => candle(DType::BF16),
            (_, Precision::F16) => candle(DType::F16),
            (device, Precision::Int8) => {
                return Err(format!("dtype int8 runs on device `cpu` alone, this model's is `{device}`"));
            }
        })
    }
}
