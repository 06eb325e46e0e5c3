//! What the machine's GPUs say of themselves, by NVML: NVIDIA's management library, which comes with the driver and is looked for
//! when the program runs. Asking a GPU may take long, and for ever where its driver hangs, so a thread of its own does, every few
//! seconds, and whoever scrapes gets what it found last.

use crate::metrics::GpuSample;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// What is older says nothing of now.
const STALE: Duration = Duration::from_secs(30);

/// The machine's GPUs. Where there is none, or the program was built without the feature `nvml`, there is nothing to say of them.
#[derive(Debug, Default)]
pub struct Gpus {
    latest: Latest,
    /// Ends the thread when it is dropped.
    _stop: Option<mpsc::Sender<()>>,
}

/// What was found last, and when.
type Latest = Arc<Mutex<Option<(Instant, Vec<GpuSample>)>>>;

impl Gpus {
    /// Begins to ask them. Waits for nothing.
    pub fn start() -> Self {
        #[cfg(feature = "nvml")]
        return Self::asking(|| nvml::Library::open(None));
        #[cfg(not(feature = "nvml"))]
        Self::default()
    }

    /// What they said last; nothing where that was long ago.
    pub fn sample(&self) -> Vec<GpuSample> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |(at, _): &&(Instant, Vec<GpuSample>)| at.elapsed() < STALE;
        latest.as_ref().filter(is_fresh).map_or_else(Vec::new, |(_, gpus)| gpus.clone())
    }

    /// Asks what `open` gives, on a thread of its own.
    #[cfg(feature = "nvml")]
    fn asking(open: impl FnOnce() -> Result<nvml::Library, String> + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let latest = Latest::default();
        let found = Arc::clone(&latest);
        let thread = std::thread::Builder::new().name("sconce-gpus".to_owned());
        let started = thread.spawn(move || match open() {
            Ok(library) => library.ask(&found, &stopped),
            Err(reason) => tracing::info!(reason, "there are no metrics of GPUs"),
        });
        if let Err(error) = started {
            tracing::warn!(error = &error as &dyn std::error::Error, "there are no metrics of GPUs");
        }
        Self { latest, _stop: Some(stop) }
    }
}

#[cfg(feature = "nvml")]
mod nvml {
    use super::{GpuSample, Latest};
    use nvml_wrapper::Nvml;
    use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
    use nvml_wrapper::error::NvmlError;
    use std::ffi::OsStr;
    use std::sync::PoisonError;
    use std::sync::mpsc::{Receiver, RecvTimeoutError};
    use std::time::{Duration, Instant};

    /// GPUs that are told of.
    const MAX_GPUS: u32 = 64;
    /// How often they are asked.
    const PERIOD: Duration = Duration::from_secs(5);

    /// The library, with a GPU at least.
    #[derive(Debug)]
    pub(super) struct Library {
        nvml: Nvml,
        count: u32,
    }

    impl Library {
        /// The one at `path`, or where the system has it.
        ///
        /// # Errors
        /// Why there is nothing to ask.
        pub(super) fn open(path: Option<&OsStr>) -> Result<Self, String> {
            let mut builder = Nvml::builder();
            if let Some(path) = path {
                builder.lib_path(path);
            }
            let nvml = builder.init().map_err(|error| error.to_string())?;
            match nvml.device_count().map_err(|error| error.to_string())? {
                0 => Err("the driver shows no GPU".to_owned()),
                count => Ok(Self { nvml, count: count.min(MAX_GPUS) }),
            }
        }

        /// Asks until whoever holds the other end of `stopped` lets go of it.
        pub(super) fn ask(&self, latest: &Latest, stopped: &Receiver<()>) {
            loop {
                let gpus = self.read();
                *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), gpus));
                if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        }

        /// What each GPU says now. One that does not say who it is is left out.
        fn read(&self) -> Vec<GpuSample> {
            (0..self.count).filter_map(|index| self.gpu(index).ok()).collect()
        }

        fn gpu(&self, index: u32) -> Result<GpuSample, NvmlError> {
            let gpu = self.nvml.device_by_index(index)?;
            let memory = gpu.memory_info().ok();
            Ok(GpuSample {
                index,
                uuid: gpu.uuid()?,
                name: gpu.name()?,
                // In percent, °C and milliwatts.
                utilization: gpu.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
                memory_bytes: memory.map(|memory| (memory.used, memory.total)),
                temperature_celsius: gpu.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
                power_watts: gpu.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_long_ago_is_not_said_again() {
        let gpus = Gpus::default();
        let said = vec![GpuSample { utilization: Some(0.5), ..GpuSample::default() }];
        let say = |at: Instant| *gpus.latest.lock().unwrap() = Some((at, said.clone()));
        assert!(gpus.sample().is_empty());
        say(Instant::now());
        assert_eq!(gpus.sample(), said);
        // A machine that has just started knows no such time.
        if let Some(before) = Instant::now().checked_sub(STALE) {
            say(before);
            assert!(gpus.sample().is_empty());
        }
    }

    /// By a library that says it has two GPUs, the second of which knows little and one of which is lost.
    #[cfg(feature = "nvml")]
    #[test]
    fn a_library_is_asked_and_what_a_gpu_does_not_tell_is_left_out() {
        const LIBRARY: &str = r#"
            #include <string.h>
            typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
            typedef struct { unsigned gpu, memory; } rates;
            int nvmlInit_v2(void) { return 0; }
            int nvmlShutdown(void) { return 0; }
            int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
            int nvmlDeviceGetHandleByIndex_v2(unsigned index, long *gpu) { *gpu = index; return index == 2 ? 15 : 0; }
            int nvmlDeviceGetUUID(long gpu, char *text, unsigned size) { strncpy(text, gpu ? "GPU-b" : "GPU-a", size); return 0; }
            int nvmlDeviceGetName(long gpu, char *text, unsigned size) { strncpy(text, "H100", size); return 0; }
            int nvmlDeviceGetUtilizationRates(long gpu, rates *out) { out->gpu = 40; out->memory = 7; return gpu ? 3 : 0; }
            int nvmlDeviceGetMemoryInfo_v2(long gpu, memory *out) { out->used = 5; out->total = 80; return gpu ? 3 : 0; }
            int nvmlDeviceGetTemperature(long gpu, int sensor, unsigned *out) { *out = 61; return sensor; }
            int nvmlDeviceGetPowerUsage(long gpu, unsigned *out) { *out = 250500; return gpu ? 3 : 0; }
        "#;
        let dir = tempfile::tempdir().unwrap();
        let (source, library) = (dir.path().join("nvml.c"), dir.path().join("libnvidia-ml.so.1"));
        std::fs::write(&source, LIBRARY).unwrap();
        let mut compiler = std::process::Command::new("cc");
        assert!(
            compiler
                .args(["-shared", "-fPIC", "-w", "-o"])
                .args([&library, &source])
                .status()
                .unwrap()
                .success()
        );

        let gpus = Gpus::asking(move || nvml::Library::open(Some(library.as_os_str())));
        while gpus.sample().is_empty() {
            std::thread::yield_now();
        }
        let all = GpuSample {
            index: 0,
            uuid: "GPU-a".to_owned(),
            name: "H100".to_owned(),
            utilization: Some(0.4),
            memory_bytes: Some((5, 80)),
            temperature_celsius: Some(61.0),
            power_watts: Some(250.5),
        };
        let little = GpuSample {
            index: 1,
            uuid: "GPU-b".to_owned(),
            utilization: None,
            memory_bytes: None,
            power_watts: None,
            ..all.clone()
        };
        assert_eq!(gpus.sample(), [all, little]);
        let nowhere = dir.path().join("nowhere");
        let reason = nvml::Library::open(Some(nowhere.as_os_str())).unwrap_err();
        assert!(reason.contains("nowhere"), "{reason}");
    }
}
