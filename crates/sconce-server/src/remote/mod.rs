//! Models that another server of the protocol answers: a second kind of target beside the scheduler, with a queue of its own, a
//! deadline for each call, retries where that is safe, and a breaker.

mod breaker;

use crate::dispatch::{self, Request};
use breaker::Breaker;
use sconce_candle::{ModelSettings, Remote};
use sconce_client::{Client, Code, InferRequest, InferResponse, Options};
use sconce_core::{
    DataType, Error, ErrorCode, InferOutput, Reservation, Result, Signature, TensorSpec, abbreviate,
    display_shape,
};
use sconce_proto::inference::ModelMetadataResponse;
use sconce_proto::inference::model_metadata_response::TensorMetadata;
use sconce_telemetry::metrics::RemoteSample;
use sconce_telemetry::traces::{Observed, RemoteCall, RequestTrace};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_util::sync::DropGuard;

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A caller in more of a hurry than this says nothing about the server.
const PATIENCE: Duration = Duration::from_secs(1);
/// Calls for each retry: where a server fails for everybody, retries would only add to it.
const CALLS_A_RETRY: u64 = 10;
/// Retries that may be made at once before any call has earned them.
const FIRST_RETRIES: u64 = 10;

/// A remote model that was asked what it takes and gives.
pub(crate) struct RemoteModel {
    remote: Remote,
    signature: Signature,
    /// What the server calls the signature's inputs and outputs.
    inputs_there: Box<[String]>,
    outputs_there: Box<[String]>,
    options: Options,
    clients: Mutex<Box<[Client]>>,
    next_client: AtomicUsize,
    /// Places among the calls at once.
    places: Semaphore,
    waiting: AtomicUsize,
    queue_depth: usize,
    breaker: Mutex<Breaker>,
    calls: AtomicU64,
    retries: AtomicU64,
    refused: AtomicU64,
    /// Tells who waits for it when the last request has let go of it.
    _gone: DropGuard,
}

impl RemoteModel {
    /// Connects, and asks the server what the model takes and gives, if `model.toml` does not say it.
    ///
    /// # Errors
    /// `Unavailable` when the server cannot be reached or its model is not ready, `FailedPrecondition` when what it says of the model
    /// cannot be served.
    pub(crate) async fn connect(
        remote: Remote,
        settings: &ModelSettings,
        max_message_bytes: usize,
        gone: DropGuard,
    ) -> Result<Self> {
        let options = Options {
            max_message_bytes,
            connect_timeout: CONNECT_LIMIT,
            timeout: Some(remote.timeout.max(CONNECT_LIMIT)),
            certificates: remote.certificates.clone(),
        };
        let at = |error: sconce_client::Error| of_client(&error, &remote);
        let client = Client::connect(&remote.url(), options.clone()).await.map_err(at)?;
        if !client.model_ready(&remote.model, &remote.version).await.map_err(at)? {
            let message = format!("{}: model `{}` is not ready there", remote.authority, remote.model);
            return Err(Error::new(ErrorCode::Unavailable, message));
        }
        let signature = match &remote.signature {
            Some(signature) => signature.clone(),
            None => {
                let metadata = client.model_metadata(&remote.model, &remote.version).await.map_err(at)?;
                signature_of(&metadata, &remote, settings.max_batch_size).map_err(|problem| {
                    let message = format!(
                        "{}: {problem}: say what model `{}` takes and gives in `[[inputs]]` and `[[outputs]]`",
                        remote.authority, remote.model
                    );
                    Error::new(ErrorCode::FailedPrecondition, message)
                })?
            }
        };
        let clients = clients(&remote, &options)?;
        Ok(Self {
            inputs_there: names_there(&signature.inputs, &remote.inputs_there),
            outputs_there: names_there(&signature.outputs, &remote.outputs_there),
            signature,
            options,
            clients: Mutex::new(clients),
            next_client: AtomicUsize::new(0),
            places: Semaphore::new(remote.max_concurrency),
            waiting: AtomicUsize::new(0),
            queue_depth: settings.queue_depth,
            breaker: Mutex::new(Breaker::new()),
            calls: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            remote,
            _gone: gone,
        })
    }

    pub(crate) fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Requests that wait for a place among the calls at once.
    pub(crate) fn queue_depth(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What is counted of it.
    pub(crate) fn sample(&self) -> RemoteSample {
        RemoteSample {
            is_open: self.breaker().is_open(),
            retries: self.retries.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Answers a request. Dropping it abandons the call. `observed` is told of the call.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many wait, `Unavailable` while the server does not answer, `DeadlineExceeded` when it took too
    /// long, `Internal` for an answer that does not fit the signature; else as the server says.
    pub(crate) async fn run(
        &self,
        mut request: Request,
        observed: &mut Observed,
    ) -> Result<(InferOutput, Reservation)> {
        let deadline = request.deadline;
        // What is sent is held beside what came, and the answer beside that.
        request.reservation.grow(request.inputs.bytes())?;
        request.reservation.grow_to(self.signature.answer_bytes(request.inputs.rows()))?;
        let rows = request.inputs.rows();
        let trace = observed.trace.child();
        let call = self.call(&mut request, &trace);
        let _place = dispatch::within(deadline, self.place()).await.flatten()?;
        let told = observed.call.insert(Box::new(RemoteCall {
            trace,
            server: self.remote.authority.as_str().into(),
            started_at: Instant::now(),
            ended_at: None,
            attempts: 0,
            code: None,
        }));
        let answer = self.call_with_retries(&call, deadline, &mut told.attempts).await;
        (told.ended_at, told.code) = (Some(Instant::now()), answer.as_ref().err().map(Error::code));
        let answer = answer?;
        let output = self.checked(answer, rows)?;
        let bytes = output.tensors.iter().map(|tensor| tensor.data().len()).sum();
        request.reservation.grow_to(bytes)?;
        request.reservation.settle(bytes);
        Ok((output, request.reservation))
    }

    /// Waits for a place among the calls at once.
    async fn place(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.queue_depth {
            let message = format!("{before} requests wait for {} already", self.remote.authority);
            return Err(Error::new(ErrorCode::ResourceExhausted, message).with_retry_after(PATIENCE));
        }
        let closed = |_| Error::new(ErrorCode::Unavailable, "the server is shutting down");
        self.places.acquire().await.map_err(closed)
    }

    /// The request as it goes out.
    fn call(&self, request: &mut Request, trace: &RequestTrace) -> InferRequest {
        let mut call = InferRequest::new(&self.remote.model).version(&self.remote.version);
        for (at, name) in self.inputs_there.iter().enumerate() {
            if let Some(tensor) = request.inputs.take(at) {
                call = call.input(name, tensor);
            }
        }
        for name in &self.outputs_there {
            call = call.output(name);
        }
        for (name, value) in trace.headers() {
            call = call.metadata(name, value);
        }
        call
    }

    async fn call_with_retries(
        &self,
        call: &InferRequest,
        deadline: Option<Instant>,
        attempts: &mut u64,
    ) -> Result<InferResponse> {
        let own = Instant::now() + self.remote.timeout;
        let until = deadline.map_or(own, |deadline| deadline.min(own));
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut attempt = 0;
        loop {
            let entered = self.breaker().enter(Instant::now());
            if let Err(left) = entered {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let message =
                    format!("{} does not answer; it is asked again in {left:.1?}", self.remote.authority);
                return Err(Error::new(ErrorCode::Unavailable, message).with_retry_after(left));
            }
            *attempts += 1;
            let started = Instant::now();
            let left = until.saturating_duration_since(started);
            let answered = tokio::time::timeout(left, self.client().infer(call.clone().deadline(left))).await;
            let error = match answered {
                Ok(Ok(answer)) => {
                    self.breaker().answered();
                    return Ok(answer);
                }
                Ok(Err(error)) => of_client(&error, &self.remote),
                Err(_) => Error::new(
                    ErrorCode::DeadlineExceeded,
                    format!("{} did not answer in time", self.remote.authority),
                ),
            };
            match error.code() {
                ErrorCode::Unavailable => self.note_failure(),
                // Whether the server is slow, or the caller was in a hurry.
                ErrorCode::DeadlineExceeded if started.elapsed() >= PATIENCE.min(self.remote.timeout) => {
                    self.note_failure()
                }
                ErrorCode::DeadlineExceeded => {}
                _ => self.breaker().answered(),
            }
            // An inference changes nothing over there, so one that found no server may be made again.
            let again =
                error.code() == ErrorCode::Unavailable && attempt < self.remote.retries && self.may_retry();
            if !again || until <= Instant::now() {
                return Err(error);
            }
            attempt += 1;
        }
    }

    /// Whether retries are few among calls; then this is one.
    fn may_retry(&self) -> bool {
        let earned = FIRST_RETRIES + self.calls.load(Ordering::Relaxed) / CALLS_A_RETRY;
        let one_more = |retries| (retries < earned).then_some(retries + 1);
        self.retries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    fn note_failure(&self) {
        if self.breaker().failed(Instant::now()) {
            tracing::warn!(
                server = self.remote.authority,
                model = self.remote.model,
                "a remote model does not answer: no calls for a while"
            );
            // What hangs may be the connections.
            if let Ok(fresh) = clients(&self.remote, &self.options) {
                *self.clients.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
            }
        }
    }

    /// A connection, in turn.
    fn client(&self) -> Client {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.next_client.fetch_add(1, Ordering::Relaxed);
        clients[next % clients.len()].clone()
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer's tensors in the signature's order, if they are what it says.
    fn checked(&self, mut answer: InferResponse, rows: usize) -> Result<InferOutput> {
        let output = |(spec, theirs): (&TensorSpec, &String)| {
            let garbage = |problem: String| {
                Error::internal(format!("{}: output `{theirs}`: {problem}", self.remote.authority))
            };
            let at = answer.outputs.iter().position(|(name, _)| name == theirs);
            let at = at.ok_or_else(|| garbage("it is missing from the answer".to_owned()))?;
            let (_, tensor) = answer.outputs.swap_remove(at);
            // Many a server computes in FP64 whatever it is asked in: that much of a difference is no garbage.
            let tensor = match tensor.datatype() == spec.datatype {
                true => tensor,
                false => tensor.to_float(spec.datatype).unwrap_or(tensor),
            };
            if tensor.datatype() != spec.datatype || !spec.accepts(tensor.shape()) || tensor.rows() != rows {
                return Err(garbage(format!(
                    "expected {} {} with {rows} rows, got {} {:?}",
                    spec.datatype,
                    display_shape(&spec.shape),
                    tensor.datatype(),
                    tensor.shape()
                )));
            }
            Ok(tensor)
        };
        let outputs = self.signature.outputs.iter().zip(&self.outputs_there);
        Ok(InferOutput { tensors: outputs.map(output).collect::<Result<_>>()? })
    }
}

fn clients(remote: &Remote, options: &Options) -> Result<Box<[Client]>> {
    let client =
        |_| Client::connect_lazily(&remote.url(), options).map_err(|error| of_client(&error, remote));
    (0..remote.connections).map(client).collect()
}

/// What the other server said, as our own failure: what is wrong with the request is the caller's, what is wrong with the
/// arrangement is ours.
fn of_client(error: &sconce_client::Error, remote: &Remote) -> Error {
    let code = match error.code() {
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
        // It was there when it was loaded.
        Code::Unavailable | Code::NotFound => ErrorCode::Unavailable,
        Code::ResourceExhausted => ErrorCode::ResourceExhausted,
        Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        Code::Cancelled => ErrorCode::Unavailable,
        Code::FailedPrecondition => ErrorCode::FailedPrecondition,
        _ => ErrorCode::Internal,
    };
    let said = abbreviate(error.message());
    let ours = Error::new(code, format!("{}: {said}", remote.authority));
    if code == ErrorCode::ResourceExhausted { ours.with_retry_after(PATIENCE) } else { ours }
}

/// What the server calls the tensors of `specs`.
fn names_there(specs: &[TensorSpec], there: &BTreeMap<String, String>) -> Box<[String]> {
    specs.iter().map(|spec| there.get(&spec.name).unwrap_or(&spec.name).clone()).collect()
}

/// What a server says a model takes and gives, by our names.
fn signature_of(
    metadata: &ModelMetadataResponse,
    remote: &Remote,
    max_batch_size: usize,
) -> Result<Signature, String> {
    let specs = |kind: &str, tensors: &[TensorMetadata], there: &BTreeMap<String, String>| {
        if tensors.is_empty() {
            return Err(format!("it names no {kind}s"));
        }
        let mut specs = tensors.iter().map(|tensor| spec_of(kind, tensor)).collect::<Result<Vec<_>, _>>()?;
        let renamed = there.iter().map(|(ours, theirs)| {
            let at = tensors.iter().position(|tensor| tensor.name == *theirs);
            at.map(|at| (at, ours)).ok_or_else(|| format!("it names no {kind} `{}`", abbreviate(theirs)))
        });
        for (at, ours) in renamed.collect::<Result<Vec<_>, _>>()? {
            specs[at].name.clone_from(ours);
        }
        let mut names: Vec<_> = specs.iter().map(|spec| &*spec.name).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("{kind} `{}` would be there twice", abbreviate(pair[0]))),
            None => Ok(specs),
        }
    };
    let inputs = specs("input", &metadata.inputs, &remote.inputs_there)?;
    let outputs = specs("output", &metadata.outputs, &remote.outputs_there)?;
    Ok(Signature { inputs, outputs, max_batch_size })
}

fn spec_of(kind: &str, tensor: &TensorMetadata) -> Result<TensorSpec, String> {
    let named = |problem: String| format!("{kind} `{}`: {problem}", abbreviate(&tensor.name));
    let datatype = DataType::from_name(&tensor.datatype)
        .ok_or_else(|| named(format!("unknown datatype {:?}", abbreviate(&tensor.datatype))))?;
    let dimension = |dim: &i64| match *dim {
        -1 => Ok(None),
        dim => usize::try_from(dim).ok().filter(|dim| *dim > 0).map(Some).ok_or(()),
    };
    let shape: Result<Vec<_>, ()> = tensor.shape.iter().map(dimension).collect();
    match shape {
        // It says itself whether NaN may stand in it.
        Ok(shape) if shape.first() == Some(&None) => {
            Ok(TensorSpec { allow_nan: true, ..TensorSpec::new(&tensor.name, datatype, &shape) })
        }
        _ => {
            Err(named(format!("expected a shape that begins with -1, for the rows, got {:?}", tensor.shape)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(inputs: &[(&str, &str, &[i64])]) -> ModelMetadataResponse {
        let tensor = |(name, datatype, shape): &(&str, &str, &[i64])| TensorMetadata {
            name: (*name).to_owned(),
            datatype: (*datatype).to_owned(),
            shape: shape.to_vec(),
        };
        let inputs: Vec<_> = inputs.iter().map(tensor).collect();
        ModelMetadataResponse { outputs: inputs.clone(), inputs, ..ModelMetadataResponse::default() }
    }

    fn remote(there: &[(&str, &str)]) -> Remote {
        let there = there.iter().map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned())).collect();
        Remote {
            tls: false,
            authority: "h:1".to_owned(),
            model: "m".to_owned(),
            version: String::new(),
            connections: 1,
            max_concurrency: 1,
            timeout: PATIENCE,
            retries: 0,
            certificates: Vec::new(),
            signature: None,
            inputs_there: there,
            outputs_there: BTreeMap::new(),
        }
    }

    #[test]
    fn what_a_server_says_of_its_model_is_taken_up_or_refused_by_name() {
        let signature_of = |metadata, there| signature_of(&metadata, &remote(there), 8);
        let said = signature_of(metadata(&[("x", "FP32", &[-1, 4]), ("t", "BYTES", &[-1])]), &[]).unwrap();
        assert_eq!((said.inputs[0].shape.clone(), said.max_batch_size), (vec![None, Some(4)], 8));
        assert_eq!((said.outputs[1].datatype, said.outputs[1].allow_nan), (DataType::Bytes, true));
        for (tensors, expected) in [
            (&[][..], "it names no inputs"),
            (&[("x", "FP32", &[4][..])], "input `x`: expected a shape that begins with -1"),
            (&[("x", "FP32", &[])], "got []"),
            (&[("x", "FP32", &[-1, 0])], "got [-1, 0]"),
            (&[("x", "FP32", &[-1, -7])], "got [-1, -7]"),
            (&[("x", "TYPE_FP32", &[-1])], "unknown datatype \"TYPE_FP32\""),
        ] {
            let problem = signature_of(metadata(tensors), &[]).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
        // By our names, where they are not the same.
        let both = || metadata(&[("x", "FP32", &[-1]), ("y", "FP32", &[-1])]);
        let said = signature_of(both(), &[("y", "x"), ("x", "y")]).unwrap();
        assert_eq!((&*said.inputs[0].name, &*said.inputs[1].name, &*said.outputs[0].name), ("y", "x", "x"));
        for (there, expected) in
            [(&[("a", "z")][..], "it names no input `z`"), (&[("y", "x")], "input `y` would be there twice")]
        {
            let problem = signature_of(both(), there).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
