//! Experiments, among the calls of `sconce.v1.Traffic`.

use crate::door::Door;
use crate::feedback::experiments::{Evaluation, KIND, Move, Stored, evaluate, is_whole};
use crate::feedback::now_ms;
use crate::grpc::control::{Answer, answer, name, refused};
use crate::rollout;
use crate::traffic;
use sconce_core::ModelName;
use sconce_proto::sconce as pb;
use sconce_registry::{By, Document, RegistryError, Together};
use sconce_traffic::experiment::{Experiment, ExperimentSpec};
use sconce_traffic::route::RouteSpec;
use tonic::Status;

/// How far an arm's weight may be from what the route gives its variant, as a share of all: else units cannot come out as planned.
const WEIGHT_TOLERANCE: f64 = 0.005;
/// Moves of a bandit that are told, the latest.
const MAX_TOLD: usize = 100;

/// Starts an experiment on the route of a model, in the place of one that has stopped.
pub(super) async fn start(
    door: &Door,
    request: pb::StartExperimentRequest,
    actor: String,
) -> Answer<pb::Experiment> {
    let pb::StartExperimentRequest { model, spec_json, reason } = request;
    let name = name(&model)?;
    let invalid =
        |problem: &dyn std::fmt::Display| Status::invalid_argument(format!("experiment: {problem}"));
    let spec: ExperimentSpec = serde_json::from_str(&spec_json).map_err(|error| invalid(&error))?;
    // Checks it.
    Experiment::new(spec.clone()).map_err(|problems| invalid(&problems))?;
    let of = name.clone();
    let read = move |registry: &sconce_registry::Registry| {
        registry.model(&of)?;
        // A rollout moves shares, which are to stay as they are.
        rollout::refuse_by_hand(registry, &of, None)?;
        Ok((registry.document(&of, traffic::KIND)?, registry.document(&of, KIND)?))
    };
    let (route, present) = door.models.read(read).await.map_err(refused)?;
    let precondition = |problem: String| Status::failed_precondition(format!("model `{name}`: {problem}"));
    let route =
        route.ok_or_else(|| precondition("it has no route: an experiment needs variants".to_owned()))?;
    let route = traffic::parse(&route).map_err(refused)?;
    check_arms(&spec, route.spec()).map_err(precondition)?;
    if let Some(present) = &present
        && stored(present)?.stopped_ms.is_none()
    {
        return Err(precondition("an experiment runs already: stop it first".to_owned()));
    }
    let (value, by) = (Stored::new(spec, now_ms()), By::new(actor, reason));
    write(door, &name, present.map(|present| present.revision), &value, by.clone()).await?;
    if let Some(experiments) = &door.experiments {
        experiments.started(&name, &value, &by);
    }
    get(door, name.as_str()).await
}

/// Stops the experiment of a model: what comes later does not count.
pub(super) async fn stop(
    door: &Door,
    request: pb::StopExperimentRequest,
    actor: String,
) -> Answer<pb::Experiment> {
    let pb::StopExperimentRequest { model, reason } = request;
    let name = name(&model)?;
    let document = document(door, &name).await?;
    let mut value = stored(&document)?;
    if value.stopped_ms.is_none() {
        value.stopped_ms = Some(now_ms());
        let by = By::new(actor, reason);
        write(door, &name, Some(document.revision), &value, by.clone()).await?;
        if let Some(experiments) = &door.experiments {
            experiments.stopped(&name, &value, &by);
        }
    }
    get(door, name.as_str()).await
}

/// What the experiment of a model comes to so far.
pub(super) async fn get(door: &Door, model: &str) -> Answer<pb::Experiment> {
    let name = name(model)?;
    let document = document(door, &name).await?;
    let value = stored(&document)?;
    let (of, stored) = (name.clone(), value.clone());
    let read = move |registry: &sconce_registry::Registry| {
        let journal = registry.journal();
        Ok((evaluate(journal, &of, &stored, now_ms())?, is_whole(journal, &of, &stored, now_ms())?))
    };
    let (Evaluation { report, moved, cut, .. }, whole) = door.models.read(read).await.map_err(refused)?;
    let unprintable = |error: serde_json::Error| Status::internal(format!("experiment: {error}"));
    answer(pb::Experiment {
        model: name.to_string(),
        revision: document.revision,
        running: value.stopped_ms.is_none(),
        started_ms: value.started_ms,
        stopped_ms: value.stopped_ms.unwrap_or(0),
        spec_json: serde_json::to_string(&value.spec).map_err(unprintable)?,
        report_json: serde_json::to_string(&report).map_err(unprintable)?,
        moved_units: moved,
        incomplete: cut || !whole,
        stopped_because: value.stopped_because.clone().unwrap_or_default(),
        moves: value.moves.iter().rev().take(MAX_TOLD).rev().map(moved_message).collect(),
    })
}

/// Whether the arms are variants of the route, with weights that are its shares.
fn check_arms(spec: &ExperimentSpec, route: &RouteSpec) -> Result<(), String> {
    let share =
        |variant: &str| route.splits.iter().find(|split| split.variant == variant).map(|it| it.percent);
    let mut shares = Vec::new();
    for (at, arm) in spec.arms.iter().enumerate() {
        let share = share(&arm.variant).filter(|percent| *percent > 0.0);
        shares.push(share.ok_or_else(|| format!("arms[{at}].variant: no requests go to `{}`", arm.variant))?);
    }
    let (weights, all): (f64, f64) = (spec.arms.iter().map(|arm| arm.weight).sum(), shares.iter().sum());
    for ((at, arm), percent) in spec.arms.iter().enumerate().zip(shares) {
        if (arm.weight / weights - percent / all).abs() > WEIGHT_TOLERANCE {
            let expected = percent / all * weights;
            return Err(format!(
                "arms[{at}].weight: the route gives it {expected:.4} of {weights}, got {}",
                arm.weight
            ));
        }
    }
    Ok(())
}

async fn document(door: &Door, name: &ModelName) -> Result<Document, Status> {
    let of = name.clone();
    let read = move |registry: &sconce_registry::Registry| {
        let none = || RegistryError::NotFound(format!("model `{of}` has no experiment"));
        registry.document(&of, KIND)?.ok_or_else(none)
    };
    door.models.read(read).await.map_err(refused)
}

fn stored(document: &Document) -> Result<Stored, Status> {
    Stored::parse(document).map_err(|error| refused(error.into()))
}

fn moved_message(moved: &Move) -> pb::SharesMoved {
    pb::SharesMoved { at_ms: moved.at_ms, percents: moved.percents.clone() }
}

async fn write(
    door: &Door,
    name: &ModelName,
    expected: Option<u64>,
    stored: &Stored,
    by: By,
) -> Result<(), Status> {
    let change = stored.change(expected).map_err(|error| refused(error.into()))?;
    let together = Together { documents: vec![change], alias: None };
    let of = name.clone();
    let check = move |registry: &sconce_registry::Registry| rollout::refuse_by_hand(registry, &of, None);
    let change = door.models.change_together(name, Vec::new(), together, by, check);
    change.await.map_err(refused)?;
    Ok(())
}
