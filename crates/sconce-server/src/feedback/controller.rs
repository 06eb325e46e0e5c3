//! Experiments under way: a guardrail that is shown to be broken stops one, and a bandit moves its shares. One task does both for all
//! models, and the data folder has one server, so nobody else does. What follows is stored as one transaction, the experiment and the
//! route that it asks for: whenever the server is killed, the two agree, and who starts again goes on from there.

use super::experiments::{Evaluation, KIND, Stored, evaluate};
use super::now_ms;
use crate::models::{Models, route_change};
use crate::rollout;
use crate::traffic;
use crate::webhooks::{self, Webhooks};
use sconce_core::{ErrorCode, ModelName, Result};
use sconce_registry::{By, Document, DocumentChange, Names, Registry, RegistryError, Together};
use sconce_traffic::experiment::reshare;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

/// Experiments that are followed at once.
const MAX_FOLLOWED: usize = 256;
/// How often it is looked whether something became known, or is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an experiment of which nothing becomes known waits to be looked at: units come all the same.
const PATIENCE: Duration = Duration::from_secs(60);
/// Reading an experiment takes no more than one part in so many of the time.
const REST: u32 = 50;
/// Shares that differ by less, in percent, are left as they are: they are drawn, so about as much is chance, and who is sticky would
/// move for nothing.
const LEAST_MOVE: f64 = 3.0;
/// Who changes what the server changes by itself, in the audit trail.
const ACTOR: &str = "experiment";

/// The experiments that the server may have to do something about.
pub(crate) struct Experiments {
    models: Arc<Models>,
    webhooks: Arc<Webhooks>,
    followed: Mutex<BTreeMap<ModelName, Followed>>,
}

struct Followed {
    /// Something became known since it was looked at.
    is_touched: bool,
    looked_at: Instant,
    /// Not before then.
    rest_until: Instant,
    /// When shares are to move, in milliseconds since 1970.
    move_ms: u64,
}

/// What is to be done about an experiment.
enum Due {
    Nothing { move_ms: u64 },
    Stop { stored: Stored, data: Value },
    Move { stored: Stored, data: Value },
}

impl Experiments {
    pub(crate) fn new(models: Arc<Models>, webhooks: Arc<Webhooks>) -> Self {
        Self { models, webhooks, followed: Mutex::default() }
    }

    /// Something became known of predictions of `name`.
    pub(crate) fn touch(&self, name: &ModelName) {
        if let Some(followed) = self.followed().get_mut(name) {
            followed.is_touched = true;
        }
    }

    /// An experiment of `name` was started, and stored so.
    pub(crate) fn started(&self, name: &ModelName, stored: &Stored, by: &By) {
        self.take_up(name, stored);
        let sentence = format!("an experiment on {} starts", arms(stored).join(", "));
        self.tell(name, "started", stored, by, json!({ "sentence": sentence }));
    }

    /// The experiment of `name` was stopped by somebody, and stored so.
    pub(crate) fn stopped(&self, name: &ModelName, stored: &Stored, by: &By) {
        self.followed().remove(name);
        let sentence = format!("the experiment is stopped by {}", by.actor);
        self.tell(name, "stopped", stored, by, json!({ "sentence": sentence, "cause": "asked" }));
    }

    /// Follows what runs, for as long as it is polled.
    pub(crate) async fn follow(self: Arc<Self>) {
        if let Err(error) = self.take_up_all().await {
            tracing::error!(%error, "experiments cannot be read: nobody follows those that ran before");
        }
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for name in self.due() {
                if let Err(error) = self.look(&name).await {
                    // What somebody changed meanwhile is looked at again; what cannot be done is tried again.
                    let is_race = error.code() == ErrorCode::Aborted;
                    if !is_race {
                        tracing::warn!(model = %name, %error, "what its experiment asks for cannot be done");
                    }
                    if let Some(followed) = self.followed().get_mut(&name) {
                        followed.is_touched = true;
                        followed.rest_until = Instant::now() + if is_race { LOOK_EVERY } else { PATIENCE };
                    }
                }
            }
        }
    }

    async fn take_up_all(&self) -> Result<()> {
        let names = self.models.stored_models().await?;
        if names.is_empty() {
            return Ok(());
        }
        let read = move |registry: &Registry| {
            let mut found = Vec::new();
            for name in &names {
                found.extend(registry.document(name, KIND)?);
            }
            Ok(found)
        };
        for document in self.models.read(read).await? {
            match Stored::parse(&document) {
                Ok(stored) => self.take_up(&document.model, &stored),
                // Who wrote it knew more than this program does.
                Err(error) => {
                    tracing::error!(model = %document.model, %error, "nobody follows its experiment")
                }
            }
        }
        Ok(())
    }

    fn take_up(&self, name: &ModelName, stored: &Stored) {
        let spec = &stored.spec;
        let may_act =
            spec.bandit.is_some() || spec.metrics.iter().any(|it| it.max_harm.is_some() && it.stops);
        if stored.stopped_ms.is_some() || !may_act {
            return;
        }
        let mut followed = self.followed();
        if followed.len() >= MAX_FOLLOWED && !followed.contains_key(name) {
            tracing::warn!(model = %name, "expected up to {MAX_FOLLOWED} experiments: nobody follows this one");
            return;
        }
        let now = Instant::now();
        let new = Followed { is_touched: true, looked_at: now, rest_until: now, move_ms: next_ms(stored) };
        followed.insert(name.clone(), new);
    }

    fn due(&self) -> Vec<ModelName> {
        let (now, at) = (now_ms(), Instant::now());
        let is_due = |it: &Followed| {
            it.rest_until <= at
                && (it.is_touched || it.move_ms <= now || at.duration_since(it.looked_at) >= PATIENCE)
        };
        self.followed().iter().filter(|(_, it)| is_due(it)).map(|(name, _)| name.clone()).collect()
    }

    /// Looks at what is known of the experiment of `name`, and does what follows.
    async fn look(&self, name: &ModelName) -> Result<()> {
        let began = Instant::now();
        let move_ms = self.followed().get_mut(name).map_or(u64::MAX, |followed| {
            followed.is_touched = false;
            followed.move_ms
        });
        let of = name.clone();
        let read = move |registry: &Registry| {
            let document = match registry.document(&of, KIND) {
                Err(RegistryError::NotFound(_)) => None,
                found => found?,
            };
            let Some(document) = document else { return Ok(None) };
            let stored = Stored::parse(&document)?;
            if stored.stopped_ms.is_some() {
                return Ok(None);
            }
            let now = now_ms();
            let evaluation = evaluate(registry.journal(), &of, &stored, now)?;
            Ok(Some((document.revision, due(stored, &evaluation, now, move_ms))))
        };
        let Some((revision, due)) = self.models.read(read).await? else {
            self.followed().remove(name);
            return Ok(());
        };
        let took = began.elapsed();
        let next_move = match due {
            Due::Nothing { move_ms } => move_ms,
            Due::Move { stored, data } => {
                self.store(name, revision, &stored, &data).await?;
                tracing::info!(model = %name, shares = %data["shares"], "an experiment's shares move");
                self.tell(name, "shares_moved", &stored, &By::new(ACTOR, ""), data);
                next_ms(&stored)
            }
            Due::Stop { stored, data } => {
                self.store(name, revision, &stored, &data).await?;
                tracing::warn!(model = %name, "its experiment is stopped: {}", text(&data, "sentence"));
                self.tell(name, "stopped", &stored, &By::new(ACTOR, ""), data);
                self.followed().remove(name);
                return Ok(());
            }
        };
        if let Some(followed) = self.followed().get_mut(name) {
            followed.looked_at = Instant::now();
            followed.rest_until = followed.looked_at + took * REST;
            followed.move_ms = next_move;
        }
        Ok(())
    }

    /// Stores an experiment in the place of the one of `revision`, with the route that its shares ask for.
    async fn store(&self, name: &ModelName, revision: u64, stored: &Stored, data: &Value) -> Result<()> {
        let (of, stored, reason) = (name.clone(), stored.clone(), text(data, "sentence").to_owned());
        let read = move |registry: &Registry| {
            let mut documents = vec![stored.change(Some(revision))?];
            let route =
                registry.document(&of, traffic::KIND)?.map(|route| traffic::parse(&route)).transpose();
            let route = route.map_err(|error| RegistryError::Damaged(error.to_string()))?;
            let moved = route.and_then(|route| reshare(route.spec(), &stored.spec.arms, &stored.shares()));
            let mut answering = Vec::new();
            match moved {
                Some(spec) => {
                    let (change, versions) = route_change(registry, &registry.model(&of)?, Some(spec))?;
                    documents.extend(change);
                    answering = versions;
                }
                // Somebody gave it another route meanwhile: there is nothing of its arms to be given back.
                None if stored.stopped_ms.is_some() => {}
                None => {
                    let why =
                        format!("model `{of}`: its route does not have the arms of its experiment any more");
                    return Err(RegistryError::Precondition(why));
                }
            }
            Ok((Together { documents, alias: None }, answering))
        };
        let (together, answering) = self.models.read(read).await?;
        let of = name.clone();
        let check = move |registry: &Registry| rollout::refuse_by_hand(registry, &of, None);
        self.models.change_together(name, answering, together, By::new(ACTOR, reason), check).await?;
        Ok(())
    }

    /// Tells of what happened, and was stored.
    fn tell(&self, name: &ModelName, what: &str, stored: &Stored, by: &By, mut data: Value) {
        data["by"] = by.actor.as_str().into();
        if !by.reason.is_empty() {
            data["reason"] = by.reason.as_str().into();
        }
        data["started_ms"] = stored.started_ms.into();
        data["arms"] = arms(stored).into();
        let kind = format!("sconce.experiment.{what}.v1");
        self.webhooks.tell(webhooks::Event { kind, model: name, version: None, data });
    }

    // Nothing that panics runs under the lock: a poisoned one is still sound.
    fn followed(&self) -> MutexGuard<'_, BTreeMap<ModelName, Followed>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses to change the route of `name` by hand while a bandit moves its shares.
///
/// # Errors
/// `FailedPrecondition` then.
pub(crate) fn refuse_route(registry: &Registry, name: &ModelName) -> Result<(), RegistryError> {
    refuse_while(
        registry,
        name,
        |stored| stored.spec.bandit.is_some(),
        "a bandit moves the shares of its route",
    )
}

/// Refuses to begin a rollout on `name` while an experiment runs, whose shares are to stay as they are.
///
/// # Errors
/// `FailedPrecondition` then.
pub(crate) fn refuse_rollout(registry: &Registry, name: &ModelName) -> Result<(), RegistryError> {
    refuse_while(registry, name, |_| true, "an experiment runs on it, and a rollout would move its shares")
}

fn refuse_while(
    registry: &Registry,
    name: &ModelName,
    is_in_the_way: impl FnOnce(&Stored) -> bool,
    why: &str,
) -> Result<(), RegistryError> {
    let Some(document) = registry.document(name, KIND)? else { return Ok(()) };
    let stored = Stored::parse(&document)?;
    if stored.stopped_ms.is_some() || !is_in_the_way(&stored) {
        return Ok(());
    }
    Err(RegistryError::Precondition(format!("model `{name}`: {why}: stop the experiment first")))
}

/// What is to be done about `stored`, by what is known of it, if its shares may move from `move_ms` on.
fn due(mut stored: Stored, evaluation: &Evaluation, now: u64, move_ms: u64) -> Due {
    let Evaluation { report, experiment, .. } = evaluation;
    let shares = |stored: &Stored| -> Value {
        let shares = stored.shares();
        let arms = stored.spec.arms.iter().zip(shares);
        arms.map(|(arm, share)| (arm.variant.clone(), Value::from(share)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    if let Some(broken) = experiment.stopped_by(report) {
        let sentence = stored.stop_for(broken, now);
        let data = json!({
            "sentence": sentence,
            "cause": "guardrail",
            "metric": broken.metric,
            "variant": broken.variant,
            "difference": broken.difference,
            "low": broken.interval.map(|interval| interval.low),
            "high": broken.interval.map(|interval| interval.high),
            "units": report.units,
            "shares": shares(&stored),
        });
        return Due::Stop { stored, data };
    }
    // Where units were not split as planned, nothing follows of what they did.
    if move_ms > now || report.sample_ratio.mismatch {
        return Due::Nothing { move_ms };
    }
    let seed = stored.started_ms ^ now;
    let later = Due::Nothing { move_ms: now.saturating_add(every_ms(&stored)) };
    let Some(Ok(wanted)) = experiment.bandit_shares(seed) else { return later };
    let moves = wanted.iter().zip(stored.shares()).any(|(wanted, is)| (wanted - is).abs() >= LEAST_MOVE);
    if !moves {
        return later;
    }
    stored.give(wanted, now);
    let said: Vec<String> = stored
        .spec
        .arms
        .iter()
        .zip(stored.shares())
        .map(|(arm, share)| format!("{} {share} %", arm.variant))
        .collect();
    let data = json!({
        "sentence": format!("shares follow what the arms do: {}", said.join(", ")),
        "units": report.units,
        "shares": shares(&stored),
    });
    Due::Move { stored, data }
}

/// When shares may move next, in milliseconds since 1970.
fn next_ms(stored: &Stored) -> u64 {
    let last = stored.moves.last().map_or(stored.started_ms, |moved| moved.at_ms);
    last.saturating_add(every_ms(stored))
}

fn every_ms(stored: &Stored) -> u64 {
    stored.spec.bandit.as_ref().map_or(u64::MAX, |bandit| bandit.every_seconds.saturating_mul(1000))
}

fn arms(stored: &Stored) -> Vec<String> {
    stored.spec.arms.iter().map(|arm| arm.variant.clone()).collect()
}

fn text<'a>(data: &'a Value, key: &str) -> &'a str {
    data[key].as_str().unwrap_or_default()
}

impl Stored {
    /// The experiment in `document`.
    ///
    /// # Errors
    /// `Internal` when it holds none.
    pub(crate) fn parse(document: &Document) -> Result<Self, RegistryError> {
        serde::Deserialize::deserialize(&document.value).map_err(|error: serde_json::Error| {
            RegistryError::Damaged(format!(
                "model `{}`: the stored experiment cannot be read: {error}",
                document.model
            ))
        })
    }

    /// What stores it in the place of the one of `expected`.
    ///
    /// # Errors
    /// `Internal` when it cannot be written.
    pub(crate) fn change(&self, expected: Option<u64>) -> Result<DocumentChange, RegistryError> {
        let value = serde_json::to_value(self)
            .map_err(|error| RegistryError::Damaged(format!("the experiment cannot be stored: {error}")))?;
        Ok(DocumentChange { kind: KIND.to_owned(), expected, value: Some((value, Names::default())) })
    }
}
