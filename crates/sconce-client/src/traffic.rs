use crate::caller::Caller;
use crate::client::channel;
use crate::control_proto as pb;
use crate::{Items, Options, Result};
use tonic::transport::Channel;

/// A connection to the traffic of a server, on its control listener: which versions answer which requests, what shadows show, and how
/// rollouts go.
/// Clones share it, and it reconnects by itself.
///
/// The messages are those of [`control_proto`](crate::control_proto), where each field is explained.
#[derive(Debug, Clone)]
pub struct TrafficClient {
    grpc: pb::traffic_client::TrafficClient<Channel>,
    caller: Caller,
}

/// Every call fails with the server's status: `NotFound` for a model or a route that is not there, `InvalidArgument` with all that
/// is wrong with a route, `Aborted` when it was changed meanwhile; `Unavailable` when the server cannot be reached, and
/// `DeadlineExceeded` when it took too long.
impl TrafficClient {
    /// Connects to `addr`, `host:port` with or without `http://` before it. Streams have no timeout.
    ///
    /// # Errors
    /// `InvalidArgument` when `addr` is none, `Unavailable` when nobody answers there.
    pub async fn connect(addr: &str, options: Options) -> Result<Self> {
        let grpc = pb::traffic_client::TrafficClient::new(channel(addr, &options).await?)
            .max_decoding_message_size(options.max_message_bytes)
            .max_encoding_message_size(options.max_message_bytes);
        Ok(Self { grpc, caller: Caller::new(options.timeout) })
    }

    /// Says on each call who makes it; by default nothing is said.
    ///
    /// # Errors
    /// `InvalidArgument` when `actor` is not printable ASCII.
    pub fn actor(self, actor: &str) -> Result<Self> {
        Ok(Self { caller: self.caller.named(actor)?, ..self })
    }

    /// The route of a model.
    pub async fn get_route(&self, request: pb::GetRouteRequest) -> Result<pb::Route> {
        Ok(self.grpc.clone().get_route(self.caller.call(request)).await?.into_inner())
    }

    /// Replaces the route of a model, all of it or nothing.
    pub async fn set_route(&self, request: pb::SetRouteRequest) -> Result<pb::Route> {
        Ok(self.grpc.clone().set_route(self.caller.call(request)).await?.into_inner())
    }

    /// Takes the route of a model away.
    pub async fn clear_route(&self, request: pb::ClearRouteRequest) -> Result<pb::ClearRouteResponse> {
        Ok(self.grpc.clone().clear_route(self.caller.call(request)).await?.into_inner())
    }

    /// Starts an experiment on the route of a model.
    pub async fn start_experiment(&self, request: pb::StartExperimentRequest) -> Result<pb::Experiment> {
        Ok(self.grpc.clone().start_experiment(self.caller.call(request)).await?.into_inner())
    }

    /// What the experiment of a model comes to.
    pub async fn get_experiment(&self, request: pb::GetExperimentRequest) -> Result<pb::Experiment> {
        Ok(self.grpc.clone().get_experiment(self.caller.call(request)).await?.into_inner())
    }

    /// Stops the experiment of a model.
    pub async fn stop_experiment(&self, request: pb::StopExperimentRequest) -> Result<pb::Experiment> {
        Ok(self.grpc.clone().stop_experiment(self.caller.call(request)).await?.into_inner())
    }

    /// What the shadows of a model have shown so far.
    pub async fn shadow_report(&self, request: pb::ShadowReportRequest) -> Result<pb::ShadowReportResponse> {
        Ok(self.grpc.clone().shadow_report(self.caller.call(request)).await?.into_inner())
    }

    /// The same, again and again. It ends when the last shadow is gone, or the server stops.
    pub async fn watch_shadow(
        &self,
        request: pb::WatchShadowRequest,
    ) -> Result<Items<pb::ShadowReportResponse>> {
        Ok(Items::new(self.grpc.clone().watch_shadow(self.caller.untimed(request)).await?.into_inner()))
    }

    /// Begins a rollout, or says what would begin.
    pub async fn start_rollout(&self, request: pb::StartRolloutRequest) -> Result<pb::Rollout> {
        // The candidate may have to be loaded.
        Ok(self.grpc.clone().start_rollout(self.caller.untimed(request)).await?.into_inner())
    }

    /// A model's rollout, under way or the last.
    pub async fn get_rollout(&self, request: pb::GetRolloutRequest) -> Result<pb::Rollout> {
        Ok(self.grpc.clone().get_rollout(self.caller.call(request)).await?.into_inner())
    }

    /// The same, each time something changes. It ends with the rollout, or when the server stops.
    pub async fn watch_rollout(&self, request: pb::GetRolloutRequest) -> Result<Items<pb::Rollout>> {
        Ok(Items::new(self.grpc.clone().watch_rollout(self.caller.untimed(request)).await?.into_inner()))
    }

    /// Leaves a rollout's shares as they are.
    pub async fn pause_rollout(&self, request: pb::SteerRolloutRequest) -> Result<pb::Rollout> {
        Ok(self.grpc.clone().pause_rollout(self.caller.call(request)).await?.into_inner())
    }

    /// Lets a paused rollout go on.
    pub async fn resume_rollout(&self, request: pb::SteerRolloutRequest) -> Result<pb::Rollout> {
        Ok(self.grpc.clone().resume_rollout(self.caller.call(request)).await?.into_inner())
    }

    /// Lets the stage begin that waits for it.
    pub async fn approve_rollout(&self, request: pb::SteerRolloutRequest) -> Result<pb::Rollout> {
        Ok(self.grpc.clone().approve_rollout(self.caller.call(request)).await?.into_inner())
    }

    /// Gives all traffic back to the control.
    pub async fn abort_rollout(&self, request: pb::SteerRolloutRequest) -> Result<pb::Rollout> {
        Ok(self.grpc.clone().abort_rollout(self.caller.call(request)).await?.into_inner())
    }
}
