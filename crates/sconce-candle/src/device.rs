use crate::Precision;
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
pub(crate) fn open(device: DeviceId) -> Result<Device, String> {
    check_device(device).map_err(|e| e.to_string())?;
    match device {
        DeviceId::Cpu => Ok(Device::Cpu),
        DeviceId::Cuda(ordinal) => {
            Device::new_cuda(ordinal).map_err(|e| format!("device {device}: cannot open: {e}"))
        }
    }
}

pub(crate) fn dtype(precision: Precision) -> DType {
    match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
        Precision::F16 => DType::F16,
    }
}
