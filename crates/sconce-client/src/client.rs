use crate::proto::grpc_inference_service_client::GrpcInferenceServiceClient;
use crate::proto::log_settings_request::SettingValue;
use crate::proto::log_settings_request::setting_value::ParameterChoice as NewSetting;
use crate::proto::log_settings_response::setting_value::ParameterChoice as CurrentSetting;
use crate::proto::repository_index_response::ModelIndex;
use crate::proto::{
    LogSettingsRequest, ModelConfig, ModelConfigRequest, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelStatistics, ModelStatisticsRequest, RepositoryIndexRequest,
    RepositoryModelLoadRequest, RepositoryModelUnloadRequest, ServerLiveRequest, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest,
};
use crate::{Error, InferRequest, InferResponse, InferStream, Result};
use futures_util::{Stream, StreamExt as _};
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request};

/// How a client connects.
#[derive(Debug, Clone)]
pub struct Options {
    /// The largest message to send or to accept, in bytes. Default 64 MiB.
    pub max_message_bytes: usize,
    /// How long connecting may take. Default 10 s.
    pub connect_timeout: Duration,
    /// How long any one call may take, streams aside. Default: as long as it takes.
    pub timeout: Option<Duration>,
    /// For an address that begins with `https://`: the certificates in PEM that the server is trusted by; empty: the system's.
    /// Default empty.
    pub certificates: Vec<u8>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_message_bytes: 64 << 20,
            connect_timeout: Duration::from_secs(10),
            timeout: None,
            certificates: Vec::new(),
        }
    }
}

/// One setting of the server's log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the protocol's three kinds of value")]
pub enum LogSetting {
    Bool(bool),
    Uint32(u32),
    String(String),
}

/// A connection to a server. Clones share it, and it reconnects by itself.
#[derive(Debug, Clone)]
pub struct Client {
    grpc: GrpcInferenceServiceClient<Channel>,
    timeout: Option<Duration>,
}

/// Every call fails with the server's status, with `Unavailable` when the server cannot be reached, and with
/// `DeadlineExceeded` when it took too long.
impl Client {
    /// Connects to `addr`, `host:port` with or without `http://` or `https://` before it.
    ///
    /// # Errors
    /// `InvalidArgument` when `addr` is none, `Unavailable` when nobody answers there.
    pub async fn connect(addr: &str, options: Options) -> Result<Self> {
        Ok(Self::over(channel(addr, &options).await?, &options))
    }

    /// As [`connect`](Self::connect), but the first call connects, and so does the next one after a failure. To be called in a
    /// tokio runtime.
    ///
    /// # Errors
    /// `InvalidArgument` when `addr` is none.
    pub fn connect_lazily(addr: &str, options: &Options) -> Result<Self> {
        Ok(Self::over(endpoint(addr, options)?.connect_lazy(), options))
    }

    fn over(channel: Channel, options: &Options) -> Self {
        let grpc = GrpcInferenceServiceClient::new(channel)
            .max_decoding_message_size(options.max_message_bytes)
            .max_encoding_message_size(options.max_message_bytes);
        Self { grpc, timeout: options.timeout }
    }

    /// Whether the process answers at all.
    pub async fn server_live(&self) -> Result<bool> {
        Ok(self.grpc().server_live(self.call(ServerLiveRequest {})).await?.into_inner().live)
    }

    /// Whether the server takes inference requests.
    pub async fn server_ready(&self) -> Result<bool> {
        Ok(self.grpc().server_ready(self.call(ServerReadyRequest {})).await?.into_inner().ready)
    }

    /// The server's name, version and extensions.
    pub async fn server_metadata(&self) -> Result<ServerMetadataResponse> {
        Ok(self.grpc().server_metadata(self.call(ServerMetadataRequest {})).await?.into_inner())
    }

    /// Whether `model` takes inference requests. In every call an empty `version` is the one that a request without a
    /// version would get.
    pub async fn model_ready(&self, model: &str, version: &str) -> Result<bool> {
        let request = ModelReadyRequest { name: model.into(), version: version.into() };
        Ok(self.grpc().model_ready(self.call(request)).await?.into_inner().ready)
    }

    /// A model's inputs and outputs.
    pub async fn model_metadata(&self, model: &str, version: &str) -> Result<ModelMetadataResponse> {
        let request = ModelMetadataRequest { name: model.into(), version: version.into() };
        Ok(self.grpc().model_metadata(self.call(request)).await?.into_inner())
    }

    /// How a model is batched and placed.
    pub async fn model_config(&self, model: &str, version: &str) -> Result<ModelConfig> {
        let request = ModelConfigRequest { name: model.into(), version: version.into() };
        let config = self.grpc().model_config(self.call(request)).await?.into_inner().config;
        config.ok_or_else(|| Error::malformed("the answer carries no configuration"))
    }

    /// Counters since the models were loaded; an empty `model` is every model, an empty `version` every version.
    pub async fn model_statistics(&self, model: &str, version: &str) -> Result<Vec<ModelStatistics>> {
        let request = ModelStatisticsRequest { name: model.into(), version: version.into() };
        Ok(self.grpc().model_statistics(self.call(request)).await?.into_inner().model_stats)
    }

    /// Every model version that the server knows, or with `ready_only` those that are ready.
    pub async fn repository_index(&self, ready_only: bool) -> Result<Vec<ModelIndex>> {
        let request = RepositoryIndexRequest { ready: ready_only, ..Default::default() };
        Ok(self.grpc().repository_index(self.call(request)).await?.into_inner().models)
    }

    /// Loads, or loads again, a model. Control listener only.
    pub async fn repository_load(&self, model: &str) -> Result<()> {
        let request = RepositoryModelLoadRequest { model_name: model.into(), ..Default::default() };
        self.grpc().repository_model_load(self.call(request)).await?;
        Ok(())
    }

    /// Drains and unloads a model. Control listener only.
    pub async fn repository_unload(&self, model: &str) -> Result<()> {
        let request = RepositoryModelUnloadRequest { model_name: model.into(), ..Default::default() };
        self.grpc().repository_model_unload(self.call(request)).await?;
        Ok(())
    }

    /// Changes the given settings of the server's log, none when empty, and returns all. Control listener only.
    pub async fn log_settings(
        &self,
        changes: BTreeMap<String, LogSetting>,
    ) -> Result<BTreeMap<String, LogSetting>> {
        let settings = changes.into_iter().map(|(name, value)| (name, value.into_message())).collect();
        let answer = self.grpc().log_settings(self.call(LogSettingsRequest { settings })).await?.into_inner();
        let settings = answer.settings.into_iter();
        Ok(settings.filter_map(|(name, value)| Some((name, value.parameter_choice?.into()))).collect())
    }

    /// One prediction.
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse> {
        let (message, deadline, metadata) = request.into_parts();
        let mut call = with_timeout(message, deadline.or(self.timeout));
        for (name, value) in metadata {
            let wrong = |_| Error::new(Code::InvalidArgument, format!("metadata `{name}`: {value:?}"));
            let key = AsciiMetadataKey::from_bytes(name.as_bytes()).map_err(|_| wrong(()))?;
            let value = AsciiMetadataValue::try_from(value.as_str()).map_err(|_| wrong(()))?;
            call.metadata_mut().insert(key, value);
        }
        InferResponse::from_message(self.grpc().model_infer(call).await?.into_inner())
    }

    /// Predictions over one stream: each reply in its request's turn. The stream ends after `requests` does.
    pub async fn stream<S>(&self, requests: S) -> Result<InferStream>
    where
        S: Stream<Item = InferRequest> + Send + 'static,
    {
        let messages = requests.map(InferRequest::into_message);
        Ok(InferStream::new(self.grpc().model_stream_infer(messages).await?.into_inner()))
    }

    fn grpc(&self) -> GrpcInferenceServiceClient<Channel> {
        self.grpc.clone()
    }

    fn call<T>(&self, message: T) -> Request<T> {
        with_timeout(message, self.timeout)
    }
}

/// Connects, or says with `addr` why not.
pub(crate) async fn channel(addr: &str, options: &Options) -> Result<Channel> {
    endpoint(addr, options)?.connect().await.map_err(|error| Error::cannot_connect(addr, &error))
}

fn endpoint(addr: &str, options: &Options) -> Result<Endpoint> {
    let uri = if addr.contains("://") { addr.to_owned() } else { format!("http://{addr}") };
    let invalid = |message| Error::new(Code::InvalidArgument, message);
    let expected = || {
        invalid(format!(
            "server address: expected `host:port`, `http://host:port` or `https://host:port`, got {addr:?}"
        ))
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|_| expected())?;
    let endpoint = match endpoint.uri().scheme_str() {
        Some("http") => endpoint,
        Some("https") => {
            let tls = match &*options.certificates {
                [] => ClientTlsConfig::new().with_native_roots(),
                pem => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            };
            let unusable = |error| invalid(format!("{addr}: TLS cannot be set up: {error}"));
            endpoint.tls_config(tls).map_err(unusable)?
        }
        _ => return Err(expected()),
    };
    Ok(endpoint.connect_timeout(options.connect_timeout).tcp_nodelay(true))
}

pub(crate) fn with_timeout<T>(message: T, timeout: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    request
}

impl LogSetting {
    fn into_message(self) -> SettingValue {
        let choice = match self {
            Self::Bool(value) => NewSetting::BoolParam(value),
            Self::Uint32(value) => NewSetting::Uint32Param(value),
            Self::String(value) => NewSetting::StringParam(value),
        };
        SettingValue { parameter_choice: Some(choice) }
    }
}

impl From<CurrentSetting> for LogSetting {
    fn from(value: CurrentSetting) -> Self {
        match value {
            CurrentSetting::BoolParam(value) => Self::Bool(value),
            CurrentSetting::Uint32Param(value) => Self::Uint32(value),
            CurrentSetting::StringParam(value) => Self::String(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn code(addr: &str) -> Code {
        Client::connect(addr, Options::default()).await.unwrap_err().code()
    }

    #[tokio::test]
    async fn an_address_is_checked_and_a_missing_server_is_unavailable() {
        for bad in ["", "ftp://127.0.0.1:1", "a b:1"] {
            assert_eq!(code(bad).await, Code::InvalidArgument, "{bad:?}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = Client::connect(&addr, Options::default()).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains(&addr) && error.message().contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_a_deadline_exceeded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let client = Client::connect(&addr, Options::default()).await.unwrap();
        let request = InferRequest::new("x").deadline(Duration::from_millis(20));
        assert_eq!(client.infer(request).await.unwrap_err().code(), Code::DeadlineExceeded);
    }
}
