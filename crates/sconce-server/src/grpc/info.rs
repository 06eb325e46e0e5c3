//! Every RPC but inference: what the server and its models are, how they did, and the control calls.

use crate::door::{Change, Door};
use crate::ensemble::Assembly;
use crate::grpc::Role;
use crate::grpc::control::actor;
use crate::grpc::status;
use crate::grpc::trace_settings;
use crate::models::{Said, Served, State, Target};
use sconce_candle::ModelSettings;
use sconce_core::{
    DataType, DeviceId, FailReason, ModelStats, Signature, Step, TensorSpec, Total, abbreviate, display_shape,
};
use sconce_proto::inference as pb;
use sconce_proto::inference::grpc_inference_service_server::GrpcInferenceService;
use sconce_proto::inference::log_settings_request::setting_value::ParameterChoice;
use sconce_proto::inference::model_config::SchedulingChoice;
use sconce_registry::By;
use sconce_scheduler::Priority;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::{Request, Response, Status};
use tracing::level_filters::LevelFilter;

/// The protocol's extensions that are really served.
const EXTENSIONS: [&str; 9] = [
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
];

pub(crate) struct Info {
    pub(crate) door: Arc<Door>,
    pub(crate) role: Role,
}

impl Info {
    fn control_only(&self, call: &str) -> Result<(), Status> {
        super::control_only(&self.role, call)
    }

    /// A version whose signature is asked for: loaded, if it is not in memory.
    async fn serving(&self, name: &str, version: &str) -> Result<Arc<Served>, Status> {
        let routed = self.door.models.serving(name, version, None).await;
        routed.map(|routed| routed.served).map_err(|error| status::of(&error))
    }

    fn route(&self, name: &str, version: &str) -> Result<Arc<Served>, Status> {
        self.door.models.route(name, version).map_err(|error| status::of(&error))
    }
}

type Stream<T> = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl GrpcInferenceService for Info {
    type ModelStreamInferStream = Stream<pb::ModelStreamInferResponse>;

    async fn server_live(&self, _: Request<pb::ServerLiveRequest>) -> Answer<pb::ServerLiveResponse> {
        answer(pb::ServerLiveResponse { live: true })
    }

    async fn server_ready(&self, _: Request<pb::ServerReadyRequest>) -> Answer<pb::ServerReadyResponse> {
        answer(pb::ServerReadyResponse { ready: self.door.readiness().is_ok() })
    }

    async fn model_ready(&self, request: Request<pb::ModelReadyRequest>) -> Answer<pb::ModelReadyResponse> {
        let pb::ModelReadyRequest { name, version } = request.into_inner();
        match self.door.models.route(&name, &version) {
            Ok(_) => answer(pb::ModelReadyResponse { ready: true }),
            Err(error) if error.code() == sconce_core::ErrorCode::Unavailable => {
                answer(pb::ModelReadyResponse { ready: false })
            }
            Err(error) => Err(status::of(&error)),
        }
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Answer<pb::ServerMetadataResponse> {
        answer(pb::ServerMetadataResponse {
            name: "sconce".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        })
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Answer<pb::ModelMetadataResponse> {
        let pb::ModelMetadataRequest { name, version } = request.into_inner();
        let served = self.serving(&name, &version).await?;
        let signature = served.signature();
        let versions = self.door.models.ready_versions(&name);
        answer(pb::ModelMetadataResponse {
            name,
            versions: versions.iter().map(ToString::to_string).collect(),
            platform: platform(&served),
            inputs: first_form(signature).map(tensor_metadata).collect(),
            outputs: signature.outputs.iter().map(tensor_metadata).collect(),
        })
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Answer<pb::ModelConfigResponse> {
        let pb::ModelConfigRequest { name, version } = request.into_inner();
        let served = self.serving(&name, &version).await?;
        answer(pb::ModelConfigResponse { config: Some(model_config(&served)) })
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Answer<pb::ModelStatisticsResponse> {
        let pb::ModelStatisticsRequest { name, version } = request.into_inner();
        // An alias means one version, no version all of them.
        let meant = if name.is_empty() { None } else { Some(self.route(&name, &version)?) };
        let wanted = |served: &Arc<Served>| {
            meant.as_ref().is_none_or(|meant| {
                served.name == meant.name && (version.is_empty() || served.version == meant.version)
            })
        };
        let model_stats =
            self.door.models.ready().filter(wanted).map(|served| model_statistics(&served)).collect();
        answer(pb::ModelStatisticsResponse { model_stats })
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Answer<pb::RepositoryIndexResponse> {
        let pb::RepositoryIndexRequest { repository_name, ready } = request.into_inner();
        if !repository_name.is_empty() {
            let name = abbreviate(&repository_name);
            return Err(Status::not_found(format!(
                "unknown repository {name:?}: there is one, without a name"
            )));
        }
        let index = self.door.models.index().into_iter();
        let models = index.filter(|(_, _, state)| !ready || matches!(state, State::Ready(_)));
        let models = models.map(|(name, version, state)| {
            let (state, reason) = state.describe();
            pb::repository_index_response::ModelIndex {
                name: name.to_string(),
                version: version.to_string(),
                state: state.to_owned(),
                reason: reason.to_owned(),
            }
        });
        answer(pb::RepositoryIndexResponse { models: models.collect() })
    }

    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Answer<pb::RepositoryModelLoadResponse> {
        self.control_only("RepositoryModelLoad")?;
        let by = By::new(actor(&request)?, "RepositoryModelLoad");
        let pb::RepositoryModelLoadRequest { repository_name, model_name, parameters } = request.into_inner();
        let said = said(parameters)?;
        let model_name = target(repository_name, model_name)?;
        let change = Change::Load(model_name.clone(), said, by);
        self.door.change(change).await.map_err(|error| status::of(&error))?;
        answer(pb::RepositoryModelLoadResponse { model_name, is_loaded: true })
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Answer<pb::RepositoryModelUnloadResponse> {
        self.control_only("RepositoryModelUnload")?;
        let by = By::new(actor(&request)?, "RepositoryModelUnload");
        // `unload_dependents` is the one parameter clients send, and no model has dependents.
        let pb::RepositoryModelUnloadRequest { repository_name, model_name, .. } = request.into_inner();
        let model_name = target(repository_name, model_name)?;
        self.door.change(Change::Unload(model_name.clone(), by)).await.map_err(|error| status::of(&error))?;
        answer(pb::RepositoryModelUnloadResponse { model_name, is_unloaded: true })
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<pb::SystemSharedMemoryStatusRequest>,
    ) -> Answer<pb::SystemSharedMemoryStatusResponse> {
        no_region(&request.into_inner().name)?;
        answer(pb::SystemSharedMemoryStatusResponse::default())
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<pb::SystemSharedMemoryRegisterRequest>,
    ) -> Answer<pb::SystemSharedMemoryRegisterResponse> {
        Err(no_shared_memory())
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<pb::SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<pb::SystemSharedMemoryUnregisterResponse> {
        answer(pb::SystemSharedMemoryUnregisterResponse {})
    }

    async fn cuda_shared_memory_status(
        &self,
        request: Request<pb::CudaSharedMemoryStatusRequest>,
    ) -> Answer<pb::CudaSharedMemoryStatusResponse> {
        no_region(&request.into_inner().name)?;
        answer(pb::CudaSharedMemoryStatusResponse::default())
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<pb::CudaSharedMemoryRegisterRequest>,
    ) -> Answer<pb::CudaSharedMemoryRegisterResponse> {
        Err(no_shared_memory())
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<pb::CudaSharedMemoryUnregisterRequest>,
    ) -> Answer<pb::CudaSharedMemoryUnregisterResponse> {
        answer(pb::CudaSharedMemoryUnregisterResponse {})
    }

    async fn trace_setting(
        &self,
        request: Request<pb::TraceSettingRequest>,
    ) -> Answer<pb::TraceSettingResponse> {
        self.control_only("TraceSetting")?;
        let pb::TraceSettingRequest { settings, model_name } = request.into_inner();
        if !model_name.is_empty() {
            self.route(&model_name, "")?;
        }
        let recorder = &self.door.recorder;
        trace_settings::apply(recorder, &model_name, &settings).map_err(Status::invalid_argument)?;
        answer(trace_settings::describe(recorder))
    }

    async fn log_settings(
        &self,
        request: Request<pb::LogSettingsRequest>,
    ) -> Answer<pb::LogSettingsResponse> {
        self.control_only("LogSettings")?;
        let settings = request.into_inner().settings;
        if !settings.is_empty() {
            let level =
                log_level(sconce_telemetry::logs::level(), &settings).map_err(Status::invalid_argument)?;
            sconce_telemetry::logs::set_level(level);
            tracing::info!(%level, "the log level was changed");
        }
        answer(pb::LogSettingsResponse { settings: describe_log_level(sconce_telemetry::logs::level()) })
    }

    // The two inference calls never get here: `grpc::route` takes them first, to read their messages within bounds.

    async fn model_infer(&self, _: Request<pb::ModelInferRequest>) -> Answer<pb::ModelInferResponse> {
        Err(Status::internal("inference is routed elsewhere"))
    }

    async fn model_stream_infer(
        &self,
        _: Request<tonic::Streaming<pb::ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        Err(Status::internal("inference is routed elsewhere"))
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

/// The model a load or unload means, in either dialect of the protocol.
fn target(repository_name: String, model_name: String) -> Result<String, Status> {
    match (repository_name.is_empty(), model_name.is_empty()) {
        (true, false) => Ok(model_name),
        (false, true) => Ok(repository_name),
        (true, true) => Err(Status::invalid_argument("expected a model name, got none")),
        (false, false) => {
            let name = abbreviate(&repository_name);
            Err(Status::not_found(format!("unknown repository {name:?}: there is one, without a name")))
        }
    }
}

/// What a load call says in place of the folder: `config`, and files as `file:VERSION/NAME`.
fn said(parameters: BTreeMap<String, pb::ModelRepositoryParameter>) -> Result<Option<Said>, Status> {
    use pb::model_repository_parameter::ParameterChoice;
    if parameters.is_empty() {
        return Ok(None);
    }
    let mut said = Said::default();
    for (name, value) in parameters {
        match (name.strip_prefix("file:"), value.parameter_choice) {
            (Some(path), Some(ParameterChoice::BytesParam(content))) => {
                said.files.push((path.to_owned(), content))
            }
            (None, Some(ParameterChoice::StringParam(config))) if name == "config" => {
                said.config = Some(config)
            }
            _ => {
                return Err(Status::invalid_argument(format!(
                    "load parameter {:?}: expected `config` with a string, or `file:VERSION/NAME` with bytes",
                    abbreviate(&name)
                )));
            }
        }
    }
    Ok(Some(said))
}

fn no_region(name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Ok(());
    }
    Err(Status::not_found(format!("no shared memory region {:?} is registered", abbreviate(name))))
}

fn no_shared_memory() -> Status {
    Status::unimplemented("shared memory is not served: send tensors in the message")
}

fn platform(served: &Served) -> String {
    match served.target {
        Target::Model(_) => format!("candle_{}", served.settings.family),
        Target::Ensemble(_) => "ensemble".to_owned(),
        Target::Remote(_) => "remote".to_owned(),
    }
}

fn wire_shape(shape: &[Option<usize>]) -> Vec<i64> {
    shape.iter().map(|dim| dim.map_or(-1, |dim| i64::try_from(dim).unwrap_or(i64::MAX))).collect()
}

/// The inputs that clients are told of. Generic ones send every input they know: what the model takes instead stands in
/// the configuration's parameters.
fn first_form(signature: &Signature) -> impl Iterator<Item = &TensorSpec> {
    signature.inputs.iter().filter(|spec| spec.form == 0)
}

fn tensor_metadata(spec: &TensorSpec) -> pb::model_metadata_response::TensorMetadata {
    pb::model_metadata_response::TensorMetadata {
        name: spec.name.clone(),
        datatype: spec.datatype.name().to_owned(),
        shape: wire_shape(&spec.shape),
    }
}

fn model_config(served: &Served) -> pb::ModelConfig {
    let (settings, signature) = (&served.settings, served.signature());
    // The rows dimension is implied by `max_batch_size`.
    let dims = |spec: &TensorSpec| wire_shape(spec.shape.get(1..).unwrap_or_default());
    let parameter = |text: &str| pb::ModelParameter { string_value: text.to_owned() };
    let mut parameters = BTreeMap::new();
    let (backend, instance_group, scheduling) = match &served.target {
        Target::Model(_) => {
            parameters.insert("dtype".to_owned(), parameter(settings.precision.name()));
            let target_ms = settings.queue_target.as_secs_f64() * 1e3;
            parameters.insert("queue_target_ms".to_owned(), parameter(&target_ms.to_string()));
            if settings.pin_cores {
                let cores = served.instances.cores.as_deref().unwrap_or_default();
                parameters.insert("cores".to_owned(), parameter(cores));
            }
            (
                "candle",
                vec![instance_group(served)],
                Some(SchedulingChoice::DynamicBatching(batching(settings))),
            )
        }
        Target::Ensemble(assembly) => {
            // An alias is no number, which is what the steps' field holds.
            for (index, step) in assembly.steps().iter().enumerate().filter(|(_, step)| has_alias(step)) {
                parameters.insert(format!("steps[{index}].version"), parameter(&step.spec.version));
            }
            ("", vec![], Some(SchedulingChoice::EnsembleScheduling(ensembling(assembly))))
        }
        Target::Remote(_) => ("remote", vec![], None),
    };
    if !settings.description.is_empty() {
        parameters.insert("description".to_owned(), parameter(&settings.description));
    }
    for (name, value) in &settings.metrics {
        parameters.insert(format!("metrics.{name}"), parameter(&value.to_string()));
    }
    for spec in signature.inputs.iter().filter(|spec| spec.form > 0) {
        let optional = if spec.optional { " (optional)" } else { "" };
        let text = format!("{} {}{optional}", spec.datatype, display_shape(&spec.shape));
        parameters.insert(format!("input.{}", spec.name), parameter(&text));
    }
    pb::ModelConfig {
        name: served.name.to_string(),
        platform: platform(served),
        backend: backend.to_owned(),
        max_batch_size: i32::try_from(signature.max_batch_size).unwrap_or(i32::MAX),
        input: first_form(signature)
            .map(|spec| pb::ModelInput {
                name: spec.name.clone(),
                data_type: wire_datatype(spec.datatype).into(),
                dims: dims(spec),
                optional: spec.optional,
            })
            .collect(),
        output: signature
            .outputs
            .iter()
            .map(|spec| pb::ModelOutput {
                name: spec.name.clone(),
                data_type: wire_datatype(spec.datatype).into(),
                dims: dims(spec),
            })
            .collect(),
        instance_group,
        scheduling_choice: scheduling,
        parameters,
        model_transaction_policy: Some(pb::ModelTransactionPolicy { decoupled: false }),
        response_cache: served.cache.as_ref().map(|_| pb::ModelResponseCache { enable: true }),
    }
}

fn instance_group(served: &Served) -> pb::ModelInstanceGroup {
    let (kind, gpus) = match served.settings.device {
        DeviceId::Cpu => (pb::model_instance_group::Kind::Cpu, vec![]),
        DeviceId::Cuda(ordinal) => {
            (pb::model_instance_group::Kind::Gpu, vec![i32::try_from(ordinal).unwrap_or(i32::MAX)])
        }
    };
    pb::ModelInstanceGroup {
        name: served.settings.device.to_string(),
        count: i32::try_from(served.instances.count).unwrap_or(i32::MAX),
        gpus,
        kind: kind.into(),
    }
}

fn batching(settings: &ModelSettings) -> pb::ModelDynamicBatching {
    pb::ModelDynamicBatching {
        preferred_batch_size: Vec::new(),
        max_queue_delay_microseconds: u64::try_from(settings.max_queue_delay.as_micros()).unwrap_or(u64::MAX),
        preserve_ordering: false,
        priority_levels: Priority::LEVELS as u64,
        default_priority_level: Priority::default().level() as u64,
        default_queue_policy: Some(pb::ModelQueuePolicy {
            timeout_action: pb::model_queue_policy::TimeoutAction::Reject.into(),
            default_timeout_microseconds: settings
                .default_timeout
                .map_or(0, |timeout| u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX)),
            allow_timeout_override: true,
            max_queue_size: u32::try_from(settings.queue_depth).unwrap_or(u32::MAX),
        }),
    }
}

fn ensembling(assembly: &Assembly) -> pb::ModelEnsembling {
    let step = |step: &Step| pb::model_ensembling::Step {
        model_name: step.spec.model.to_string(),
        // As others write it, -1 is whatever answers.
        model_version: step.spec.version.parse().unwrap_or(-1),
        input_map: step.spec.inputs.clone(),
        output_map: step.spec.outputs.clone(),
        model_namespace: String::new(),
    };
    pb::ModelEnsembling { step: assembly.steps().iter().map(step).collect() }
}

fn has_alias(step: &Step) -> bool {
    !step.spec.version.is_empty() && step.spec.version.parse::<i64>().is_err()
}

fn wire_datatype(datatype: DataType) -> pb::DataType {
    match datatype {
        DataType::Bool => pb::DataType::TypeBool,
        DataType::Uint8 => pb::DataType::TypeUint8,
        DataType::Uint16 => pb::DataType::TypeUint16,
        DataType::Uint32 => pb::DataType::TypeUint32,
        DataType::Uint64 => pb::DataType::TypeUint64,
        DataType::Int8 => pb::DataType::TypeInt8,
        DataType::Int16 => pb::DataType::TypeInt16,
        DataType::Int32 => pb::DataType::TypeInt32,
        DataType::Int64 => pb::DataType::TypeInt64,
        DataType::Fp16 => pb::DataType::TypeFp16,
        DataType::Fp32 => pb::DataType::TypeFp32,
        DataType::Fp64 => pb::DataType::TypeFp64,
        DataType::Bf16 => pb::DataType::TypeBf16,
        DataType::Bytes => pb::DataType::TypeString,
    }
}

fn model_statistics(served: &Served) -> pb::ModelStatistics {
    let stats: ModelStats = served.stats();
    let wire = |total: Total| Some(pb::StatisticDuration { count: total.count, ns: nanos(total.time) });
    let fail = FailReason::ALL
        .iter()
        .filter_map(|reason| stats.fail.get(reason))
        .fold(Total::default(), |sum, one| Total { count: sum.count + one.count, time: sum.time + one.time });
    let since_epoch = stats.last_inference.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let (memory, id) = match served.settings.device {
        DeviceId::Cpu => ("CPU", 0),
        DeviceId::Cuda(ordinal) => ("GPU", i64::try_from(ordinal).unwrap_or(i64::MAX)),
    };
    pb::ModelStatistics {
        name: served.name.to_string(),
        version: served.version_text.clone(),
        last_inference: since_epoch.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        inference_count: stats.inference_count,
        execution_count: stats.execution_count,
        inference_stats: Some(pb::InferStatistics {
            success: wire(stats.success),
            fail: wire(fail),
            queue: wire(stats.queue),
            compute_input: wire(stats.compute_input),
            compute_infer: wire(stats.compute_infer),
            compute_output: wire(stats.compute_output),
            cache_hit: wire(stats.cache_hit),
            cache_miss: wire(stats.cache_miss),
        }),
        batch_stats: stats
            .batches
            .iter()
            .map(|(rows, size)| pb::InferBatchStatistics {
                batch_size: *rows as u64,
                compute_input: wire(size.compute_input),
                compute_infer: wire(size.compute_infer),
                compute_output: wire(size.compute_output),
            })
            .collect(),
        memory_usage: vec![pb::MemoryUsage {
            r#type: memory.to_owned(),
            id,
            byte_size: served.memory_bytes() as u64,
        }],
        response_stats: BTreeMap::new(),
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

type Settings = BTreeMap<String, pb::log_settings_request::SettingValue>;

/// The level that `settings` ask for, starting from the level in force.
fn log_level(now: LevelFilter, settings: &Settings) -> Result<LevelFilter, String> {
    let mut level = now;
    for (name, value) in settings {
        let wanted = match (name.as_str(), &value.parameter_choice) {
            ("log_error", Some(ParameterChoice::BoolParam(on))) => (LevelFilter::ERROR, *on),
            ("log_warning", Some(ParameterChoice::BoolParam(on))) => (LevelFilter::WARN, *on),
            ("log_info", Some(ParameterChoice::BoolParam(on))) => (LevelFilter::INFO, *on),
            ("log_verbose_level", Some(ParameterChoice::Uint32Param(verbose))) => {
                let wanted = if *verbose > 1 { LevelFilter::TRACE } else { LevelFilter::DEBUG };
                // It says how verbose, not how much at least.
                level = level.min(wanted);
                (wanted, *verbose > 0)
            }
            ("log_error" | "log_warning" | "log_info", _) => {
                return Err(format!("{name}: expected a boolean"));
            }
            ("log_verbose_level", _) => return Err(format!("{name}: expected an unsigned integer")),
            _ => {
                let known = "log_error, log_warning, log_info, log_verbose_level";
                return Err(format!("unknown log setting {:?}: expected one of {known}", abbreviate(name)));
            }
        };
        level = match wanted {
            (at_least, true) => level.max(at_least),
            (LevelFilter::ERROR, false) => LevelFilter::OFF,
            (LevelFilter::WARN, false) => level.min(LevelFilter::ERROR),
            (LevelFilter::INFO, false) => level.min(LevelFilter::WARN),
            (_, false) => level.min(LevelFilter::INFO),
        };
    }
    Ok(level)
}

fn describe_log_level(level: LevelFilter) -> BTreeMap<String, pb::log_settings_response::SettingValue> {
    use pb::log_settings_response::SettingValue;
    use pb::log_settings_response::setting_value::ParameterChoice;
    let on =
        |at: LevelFilter| SettingValue { parameter_choice: Some(ParameterChoice::BoolParam(level >= at)) };
    let verbose = u32::from(level >= LevelFilter::DEBUG) + u32::from(level >= LevelFilter::TRACE);
    let verbose = SettingValue { parameter_choice: Some(ParameterChoice::Uint32Param(verbose)) };
    BTreeMap::from([
        ("log_error".to_owned(), on(LevelFilter::ERROR)),
        ("log_warning".to_owned(), on(LevelFilter::WARN)),
        ("log_info".to_owned(), on(LevelFilter::INFO)),
        ("log_verbose_level".to_owned(), verbose),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_settings_move_one_level() {
        let set = |now, name: &str, choice| {
            let value = pb::log_settings_request::SettingValue { parameter_choice: Some(choice) };
            log_level(now, &BTreeMap::from([(name.to_owned(), value)]))
        };
        let info = LevelFilter::INFO;
        assert_eq!(set(info, "log_verbose_level", ParameterChoice::Uint32Param(1)), Ok(LevelFilter::DEBUG));
        assert_eq!(set(LevelFilter::TRACE, "log_verbose_level", ParameterChoice::Uint32Param(0)), Ok(info));
        let less = set(LevelFilter::TRACE, "log_verbose_level", ParameterChoice::Uint32Param(1));
        assert_eq!(less, Ok(LevelFilter::DEBUG));
        assert_eq!(set(info, "log_info", ParameterChoice::BoolParam(false)), Ok(LevelFilter::WARN));
        assert_eq!(set(info, "log_error", ParameterChoice::BoolParam(false)), Ok(LevelFilter::OFF));
        assert!(set(info, "log_info", ParameterChoice::Uint32Param(1)).is_err());
        assert!(set(info, "log_file", ParameterChoice::BoolParam(true)).is_err());
    }
}
