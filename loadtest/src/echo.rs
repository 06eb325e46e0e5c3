use crate::Result;
use sconce_proto::inference::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer,
};
use sconce_proto::inference::model_infer_response::InferOutputTensor;
use sconce_proto::inference::*;
use std::io::Write as _;
use std::net::SocketAddr;
use std::thread::available_parallelism;
use tokio::runtime;
use tonic::transport::server::{Server, TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

/// Serves until the process is killed.
pub(crate) fn serve(listen: SocketAddr) -> Result<()> {
    let mut builder = match available_parallelism() {
        Ok(cores) if cores.get() > 1 => runtime::Builder::new_multi_thread(),
        _ => runtime::Builder::new_current_thread(),
    };
    builder.enable_all().build()?.block_on(async {
        let incoming = TcpIncoming::bind(listen)?.with_nodelay(Some(true));
        println!("listening on {}", incoming.local_addr()?);
        std::io::stdout().flush()?;
        Ok(Server::builder()
            .add_service(GrpcInferenceServiceServer::new(Echo))
            .serve_with_incoming(incoming)
            .await?)
    })
}

struct Echo;

fn echo(request: ModelInferRequest) -> ModelInferResponse {
    let outputs = request.inputs.into_iter().map(|input| InferOutputTensor {
        name: input.name,
        datatype: input.datatype,
        shape: input.shape,
        ..Default::default()
    });
    ModelInferResponse {
        model_name: request.model_name,
        model_version: request.model_version,
        id: request.id,
        outputs: outputs.collect(),
        raw_output_contents: request.raw_input_contents,
        ..Default::default()
    }
}

/// The service with every call but `ModelInfer` answering UNIMPLEMENTED.
macro_rules! echo_service {
    ($($call:ident($request:ty) -> $response:ty;)*) => {
        #[tonic::async_trait]
        impl GrpcInferenceService for Echo {
            type ModelStreamInferStream = futures_util::stream::Empty<Result<ModelStreamInferResponse, Status>>;

            async fn model_infer(
                &self,
                request: Request<ModelInferRequest>,
            ) -> Result<Response<ModelInferResponse>, Status> {
                Ok(Response::new(echo(request.into_inner())))
            }

            async fn model_stream_infer(
                &self,
                _: Request<Streaming<ModelInferRequest>>,
            ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
                Err(Status::unimplemented("an echo server"))
            }

            $(async fn $call(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                Err(Status::unimplemented("an echo server"))
            })*
        }
    };
}

echo_service! {
    server_live(ServerLiveRequest) -> ServerLiveResponse;
    server_ready(ServerReadyRequest) -> ServerReadyResponse;
    model_ready(ModelReadyRequest) -> ModelReadyResponse;
    server_metadata(ServerMetadataRequest) -> ServerMetadataResponse;
    model_metadata(ModelMetadataRequest) -> ModelMetadataResponse;
    model_config(ModelConfigRequest) -> ModelConfigResponse;
    model_statistics(ModelStatisticsRequest) -> ModelStatisticsResponse;
    repository_index(RepositoryIndexRequest) -> RepositoryIndexResponse;
    repository_model_load(RepositoryModelLoadRequest) -> RepositoryModelLoadResponse;
    repository_model_unload(RepositoryModelUnloadRequest) -> RepositoryModelUnloadResponse;
    system_shared_memory_status(SystemSharedMemoryStatusRequest) -> SystemSharedMemoryStatusResponse;
    system_shared_memory_register(SystemSharedMemoryRegisterRequest) -> SystemSharedMemoryRegisterResponse;
    system_shared_memory_unregister(SystemSharedMemoryUnregisterRequest) -> SystemSharedMemoryUnregisterResponse;
    cuda_shared_memory_status(CudaSharedMemoryStatusRequest) -> CudaSharedMemoryStatusResponse;
    cuda_shared_memory_register(CudaSharedMemoryRegisterRequest) -> CudaSharedMemoryRegisterResponse;
    cuda_shared_memory_unregister(CudaSharedMemoryUnregisterRequest) -> CudaSharedMemoryUnregisterResponse;
    trace_setting(TraceSettingRequest) -> TraceSettingResponse;
    log_settings(LogSettingsRequest) -> LogSettingsResponse;
}
