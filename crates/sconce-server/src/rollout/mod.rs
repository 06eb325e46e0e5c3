//! Rollouts: what `sconce_traffic::rollout` decides is done here. Each that is under way has a controller, one task that looks at the
//! evidence, steps the rollout, and stores it together with the route and the alias that it asks for, in one transaction. So the three
//! agree whenever the server is killed, and who starts again goes on from there. Nobody else changes them meanwhile: the data folder
//! has one server, the server one controller a rollout, and what others ask for by hand is refused.

mod evidence;
mod queries;
mod stored;

pub(crate) use stored::Stored;

use crate::feedback::now_ms;
use crate::feedback::performance::labels_by_variant;
use crate::models::{Models, route_change};
use crate::monitors::{Monitors, Standing};
use crate::operation::{operation, traced};
use crate::prometheus::Prometheus;
use crate::webhooks::{self, Webhooks};
use evidence::Gathered;
use queries::Answers;
use sconce_core::{Error, ErrorCode, ModelName, Result};
use sconce_registry::{AliasMove, By, DocumentChange, Registry, RegistryError, Together, limits};
use sconce_telemetry::metrics::{RolloutSample, RolloutsSample};
use sconce_traffic::rollout::{
    Action, End, Event, Fact, Gate, GateVerdict, Phase, Plan, Rollout, Wanted, WrongPhase,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// The kind of the document that holds a rollout.
pub(crate) const KIND: &str = "rollout";
/// The monitor of a candidate that is watched, to gates.
const DRIFT: &str = "drift";
/// How often a controller looks at the evidence.
const LOOK: Duration = Duration::from_millis(500);
/// How often it reads the labels that came, and what part of the time that takes at most: one in so many.
const LABELS: Duration = Duration::from_secs(2);
const LABELS_REST: u32 = 50;
/// How often it stores what it has counted, if nothing happens that is stored anyway: what a kill can lose.
const NOTE: Duration = Duration::from_secs(10);
/// The first pause after a change that failed, and the longest: each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Rollouts that are under way at once.
const MAX_ROLLOUTS: usize = 256;
/// Orders that wait for one controller.
const MAX_ORDERS: usize = 16;
/// Who changes what a rollout changes by itself, in the audit trail.
const ACTOR: &str = "rollout";

/// The rollouts that are under way.
pub(crate) struct Rollouts {
    models: Arc<Models>,
    webhooks: Arc<Webhooks>,
    /// What gates may ask; `None` without a registry.
    monitors: Option<Arc<Monitors>>,
    /// Who is asked the queries of gates.
    prometheus: Option<Arc<Prometheus>>,
    under_way: Mutex<BTreeMap<ModelName, Handle>>,
    /// Those that ended since the server started, by [`ENDS`].
    ended: [AtomicU64; 3],
}

/// The ends of rollouts, as they are counted.
const ENDS: [(End, &str); 3] =
    [(End::Promoted, "promoted"), (End::RolledBack, "rolled_back"), (End::Aborted, "aborted")];

/// How to reach a rollout's controller.
#[derive(Clone)]
struct Handle {
    orders: mpsc::Sender<Order>,
    seen: watch::Receiver<Arc<Seen>>,
}

/// A rollout as it was last seen.
#[derive(Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) model: ModelName,
    /// Of its document; 0: it is not stored.
    pub(crate) revision: u64,
    pub(crate) stored: Stored,
    /// What keeps the controller from doing what it decided.
    pub(crate) problem: Option<String>,
}

/// What somebody asks of a rollout.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Steer {
    Pause,
    Resume,
    Approve,
    Abort,
}

struct Order {
    steer: Steer,
    by: By,
    done: oneshot::Sender<Result<Arc<Seen>>>,
}

impl Rollouts {
    pub(crate) fn new(
        models: Arc<Models>,
        webhooks: Arc<Webhooks>,
        monitors: Option<Arc<Monitors>>,
        prometheus: Option<Prometheus>,
    ) -> Self {
        let prometheus = prometheus.map(Arc::new);
        Self {
            models,
            webhooks,
            monitors,
            prometheus,
            under_way: Mutex::default(),
            ended: Default::default(),
        }
    }

    /// Takes up what was under way when the server stopped.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub(crate) async fn take_up_all(self: &Arc<Self>) -> Result<()> {
        let names = self.models.stored_models().await?;
        if names.is_empty() {
            return Ok(());
        }
        let read = move |registry: &Registry| {
            let mut found = Vec::new();
            for name in &names {
                found.extend(registry.document(name, KIND)?.filter(|it| !it.names.versions.is_empty()));
            }
            Ok(found)
        };
        for document in self.models.read(read).await? {
            match Stored::parse(&document) {
                Ok(stored) => {
                    tracing::info!(model = %document.model, candidate = %stored.candidate, "a rollout goes on");
                    self.take_up(&document.model, stored, document.revision);
                }
                // Who wrote it knew more than this program does.
                Err(error) => tracing::error!("{error}: nobody goes on with it"),
            }
        }
        Ok(())
    }

    /// Begins `plan` for `name`, once the candidate is in memory and has passed the gates that it must pass in the end. With `dry_run`
    /// only says what would begin: nothing is loaded.
    ///
    /// # Errors
    /// `InvalidArgument` with every problem of the plan; `FailedPrecondition` while another is under way, where the model's route or
    /// aliases do not fit, for a candidate that may not be promoted, and on a server without a registry; `NotFound`; `Aborted` when
    /// another began at the same time; `ResourceExhausted` for too many; what loading failed with.
    pub(crate) async fn start(
        self: &Arc<Self>,
        name: &ModelName,
        plan: Plan,
        by: By,
        dry_run: bool,
    ) -> Result<Arc<Seen>> {
        let (rollouts, name) = (Arc::clone(self), name.clone());
        let span = operation!("start a rollout", name, plan.candidate);
        let started = async move {
            let of = name.clone();
            let monitors = rollouts.monitors.clone();
            let (queries, silent) = queries::try_all(rollouts.prometheus.as_deref(), &plan).await;
            let read = move |registry: &Registry| {
                let is_watched =
                    |candidate| monitors.is_some_and(|monitors| monitors.get(&of, candidate).is_ok());
                Stored::begin(registry, &of, plan, now_ms(), is_watched, queries)
            };
            let begun = rollouts.models.read(read).await;
            let (stored, actions, previous) = begun.map_err(|error| match error.code() {
                ErrorCode::InvalidArgument if !silent.is_empty() => {
                    Error::invalid(format!("{error}; {}", silent.join("; ")))
                }
                _ => error,
            })?;
            if dry_run {
                return Ok(Arc::new(Seen { model: name, revision: 0, stored, problem: None }));
            }
            if rollouts.under_way().len() >= MAX_ROLLOUTS {
                let message = format!("expected up to {MAX_ROLLOUTS} rollouts under way");
                return Err(Error::new(ErrorCode::ResourceExhausted, message));
            }
            let alias = &stored.rollout.plan().alias;
            drop(rollouts.models.passes_gates(&name, stored.candidate, alias).await?);
            let revision = store(&rollouts.models, &name, &stored, previous, makes(&actions), by).await?;
            tell(&rollouts.webhooks, &name, &stored, &actions);
            Ok(rollouts.take_up(&name, stored, revision))
        };
        self.models.run(traced(span, started)).await
    }

    /// The rollout of `name`: the one under way, or else the last that was.
    ///
    /// # Errors
    /// `NotFound` where there never was one; `FailedPrecondition` on a server without a registry.
    pub(crate) async fn get(&self, name: &ModelName) -> Result<Arc<Seen>> {
        if let Some(handle) = self.handle(name) {
            return Ok(Arc::clone(&handle.seen.borrow()));
        }
        let of = name.clone();
        let read = move |registry: &Registry| {
            let none = || RegistryError::NotFound(format!("model `{of}` has no rollout"));
            registry.document(&of, KIND)?.ok_or_else(none)
        };
        let document = self.models.read(read).await?;
        let (model, revision) = (name.clone(), document.revision);
        Ok(Arc::new(Seen { model, revision, stored: Stored::parse(&document)?, problem: None }))
    }

    /// The same as it changes, to its end.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(crate) async fn watch(&self, name: &ModelName) -> Result<watch::Receiver<Arc<Seen>>> {
        match self.handle(name) {
            Some(handle) => {
                let mut seen = handle.seen;
                seen.mark_changed();
                Ok(seen)
            }
            None => {
                let mut seen = watch::channel(self.get(name).await?).1;
                seen.mark_changed();
                Ok(seen)
            }
        }
    }

    /// Asks something of the rollout of `name`.
    ///
    /// # Errors
    /// `FailedPrecondition` when it is in no state for that, has ended, or the server has no registry; `NotFound` where there never was
    /// one; `Unavailable` while the server starts or stops; what storing or loading failed with.
    pub(crate) async fn steer(&self, name: &ModelName, steer: Steer, by: By) -> Result<Arc<Seen>> {
        let unavailable = || {
            let message =
                format!("model `{name}`: nobody runs its rollout: the server is starting or stopping");
            Error::new(ErrorCode::Unavailable, message)
        };
        let Some(handle) = self.handle(name) else {
            // One that has ended says so itself.
            let mut rollout = self.get(name).await?.stored.rollout.clone();
            steer.apply(&mut rollout, now_ms(), &by).map_err(|wrong| wrong_phase(name, wrong))?;
            return Err(unavailable());
        };
        let (done, answer) = oneshot::channel();
        handle.orders.send(Order { steer, by, done }).await.map_err(|_| unavailable())?;
        answer.await.map_err(|_| unavailable())?
    }

    /// How rollouts are, for metrics.
    pub(crate) fn sample(&self) -> RolloutsSample {
        let handles: Vec<Handle> = self.under_way().values().cloned().collect();
        let ended = ENDS.iter().zip(&self.ended);
        RolloutsSample {
            under_way: handles.iter().map(|handle| handle.seen.borrow().sample()).collect(),
            limit: MAX_ROLLOUTS,
            ended: ended.map(|((_, name), count)| (*name, count.load(Ordering::Relaxed))).collect(),
        }
    }

    /// Starts the controller of a rollout that is stored so.
    fn take_up(self: &Arc<Self>, name: &ModelName, stored: Stored, revision: u64) -> Arc<Seen> {
        let seen = Arc::new(Seen { model: name.clone(), revision, stored, problem: None });
        let (sender, receiver) = watch::channel(Arc::clone(&seen));
        let (orders, waiting) = mpsc::channel(MAX_ORDERS);
        let gates = &seen.stored.rollout.plan().gates;
        let asks_labels = gates.iter().any(|gate| matches!(gate, Gate::Accuracy { .. }));
        let gathered = Gathered::begin(self.models.live_route(name.as_str()).as_deref(), &seen.stored);
        let controller = Controller {
            models: Arc::clone(&self.models),
            webhooks: Arc::clone(&self.webhooks),
            monitors: self.monitors.clone(),
            now: Seen::clone(&seen),
            seen: sender,
            gathered,
            noted_at: Instant::now(),
            retry: None,
            labels_at: asks_labels.then(Instant::now),
            answers: self.prometheus.as_ref().and_then(|prometheus| Answers::begin(prometheus, &seen.stored)),
        };
        let handle = Handle { orders, seen: receiver };
        self.under_way().insert(name.clone(), handle.clone());
        let rollouts = Arc::clone(self);
        self.models.tasks.spawn(async move {
            let ended = controller.run(waiting, rollouts.models.stopping()).await;
            if let Some(end) = ENDS.iter().position(|(end, _)| Some(*end) == ended.end()) {
                rollouts.ended[end].fetch_add(1, Ordering::Relaxed);
            }
            // The next may have begun already.
            let mut under_way = rollouts.under_way();
            if under_way.get(&ended.model).is_some_and(|it| it.orders.same_channel(&handle.orders)) {
                under_way.remove(&ended.model);
            }
        });
        seen
    }

    fn handle(&self, name: &ModelName) -> Option<Handle> {
        self.under_way().get(name).cloned()
    }

    // Nothing that panics runs under the lock: a poisoned one is still sound.
    fn under_way(&self) -> MutexGuard<'_, BTreeMap<ModelName, Handle>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn end(&self) -> Option<End> {
        match self.stored.rollout.phase() {
            Phase::Ended(end) => Some(end),
            _ => None,
        }
    }

    fn sample(&self) -> RolloutSample {
        let rollout = &self.stored.rollout;
        let (stage, stages, samples) = rollout.progress();
        let gate = |it: &sconce_traffic::rollout::Judged| (it.gate.clone(), verdict_name(it.verdict));
        RolloutSample {
            model: self.model.to_string(),
            phase: phase_name(rollout.phase()),
            stage: stage + 1,
            stages,
            samples,
            percent: percent(rollout),
            gates: rollout.judged().iter().map(gate).collect(),
            has_problem: self.problem.is_some(),
        }
    }
}

/// A phase as machines read it.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => "running",
        Phase::AwaitingApproval => "awaiting_approval",
        Phase::Paused(_) => "paused",
        Phase::Ended(End::Promoted) => "promoted",
        Phase::Ended(End::RolledBack) => "rolled_back",
        Phase::Ended(End::Aborted) => "aborted",
    }
}

/// A verdict as machines read it.
pub(crate) fn verdict_name(verdict: GateVerdict) -> &'static str {
    match verdict {
        GateVerdict::Passed => "passed",
        GateVerdict::Failed => "failed",
        GateVerdict::Pending => "pending",
        GateVerdict::NotAsked => "not_asked",
    }
}

/// Refuses a change by hand of what a rollout of `name` under way changes: its route, or the alias it is about.
///
/// # Errors
/// `Precondition`, naming the rollout.
pub(crate) fn refuse_by_hand(
    registry: &Registry,
    name: &ModelName,
    alias: Option<&str>,
) -> Result<(), RegistryError> {
    let Some(document) = registry.document(name, KIND)? else { return Ok(()) };
    let is_under_way = match alias {
        Some(alias) => document.names.aliases.contains(alias),
        None => !document.names.versions.is_empty(),
    };
    if !is_under_way {
        return Ok(());
    }
    let candidate = &document.value["candidate"];
    Err(RegistryError::Precondition(format!(
        "model `{name}`: a rollout of version {candidate} is under way: abort it, or wait for its end"
    )))
}

impl Steer {
    fn apply(self, rollout: &mut Rollout, now_ms: u64, by: &By) -> Result<Vec<Action>, WrongPhase> {
        match self {
            Self::Pause => rollout.pause(now_ms, &by.actor, &by.reason),
            Self::Resume => rollout.resume(now_ms, &by.actor, &by.reason),
            Self::Approve => rollout.approve(now_ms, &by.actor, &by.reason),
            Self::Abort => rollout.abort(now_ms, &by.actor, &by.reason),
        }
    }
}

/// Runs one rollout.
struct Controller {
    models: Arc<Models>,
    webhooks: Arc<Webhooks>,
    monitors: Option<Arc<Monitors>>,
    /// The rollout as it is now: stored, but for what was counted since.
    now: Seen,
    seen: watch::Sender<Arc<Seen>>,
    gathered: Gathered,
    noted_at: Instant,
    /// When a change that failed is tried again, and the pause before that.
    retry: Option<(Instant, Duration)>,
    /// When labels are read next, if a gate asks for them.
    labels_at: Option<Instant>,
    /// What queries of gates give, if there are any.
    answers: Option<Answers>,
}

impl Controller {
    /// Runs until the rollout has ended or the server stops; gives what was last seen.
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) -> Seen {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.now.stored.has_ended() {
            let next = async {
                tokio::select! {
                    biased;
                    Some(order) = orders.recv() => self.obey(order).await,
                    _ = tick.tick() => self.look().await,
                }
            };
            if stop.run_until_cancelled(next).await.is_none() {
                self.note().await;
                break;
            }
            let seen = &self.now;
            self.seen.send_if_modified(|before| {
                let is_news = **before != *seen;
                if is_news {
                    *before = Arc::new(seen.clone());
                }
                is_news
            });
        }
        self.now
    }

    /// Whether the candidate has drifted, once that is shown.
    fn drift(&self) -> Option<(String, Fact)> {
        let monitors = self.monitors.as_ref()?;
        let watched = monitors.get(&self.now.model, self.now.stored.candidate).ok()?;
        let standing = watched.glance().standing;
        let is_shown = matches!(standing, Standing::Stable | Standing::Drifted);
        is_shown.then(|| (DRIFT.to_owned(), Fact::State(standing.as_str().to_owned())))
    }

    /// Reads what labels say, when that is due.
    async fn read_labels(&mut self) {
        if self.labels_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        let Seen { model, stored, .. } = &self.now;
        let (of, (since_ms, ..), began) = (model.clone(), stored.rollout.times_ms(), Instant::now());
        let read = move |registry: &Registry| labels_by_variant(registry.journal(), &of, since_ms, now_ms());
        match self.models.read(read).await {
            Ok(labels) => self.gathered.labels(&labels, stored),
            Err(error) => tracing::warn!(%model, %error, "the labels of a rollout cannot be read"),
        }
        self.labels_at = Some(Instant::now() + LABELS.max(began.elapsed() * LABELS_REST));
    }

    /// Looks at the evidence, and does what follows from it.
    async fn look(&mut self) {
        self.read_labels().await;
        let route = self.models.live_route(self.now.model.as_str());
        let mut evidence = self.gathered.look(route.as_deref(), &self.now.stored);
        evidence.facts.extend(self.drift());
        if let Some(answers) = &self.answers {
            evidence.facts.extend(answers.given());
        }
        let mut next = self.now.stored.rollout.clone();
        let actions = next.step(now_ms(), &evidence);
        if actions.is_empty() {
            self.now.stored.rollout = next;
            if self.noted_at.elapsed() >= NOTE {
                self.note().await;
            }
            return;
        }
        let end = next.phase();
        // Nothing holds up giving traffic back.
        let may_wait = end != Phase::Ended(End::RolledBack);
        if may_wait && self.retry.is_some_and(|(at, _)| Instant::now() < at) {
            return;
        }
        let by = By::new(ACTOR, reason_of(&actions));
        let Err(error) = self.apply(next, &actions, by).await else { return };
        if end == Phase::Ended(End::Promoted) && error.code() == ErrorCode::FailedPrecondition {
            // The model's own gates are against it. They were not when it began: somebody has to decide.
            let mut paused = self.now.stored.rollout.clone();
            let reason = format!("it cannot be promoted: {error}");
            if let Ok(actions) = paused.pause(now_ms(), ACTOR, &reason)
                && self.apply(paused, &actions, By::new(ACTOR, reason_of(&actions))).await.is_ok()
            {
                return;
            }
        }
        let pause = self.retry.map_or(FIRST_PAUSE, |(_, pause)| (2 * pause).min(LONGEST_PAUSE));
        self.retry = Some((Instant::now() + pause, pause));
        tracing::error!(model = %self.now.model, error = &error as &dyn std::error::Error, "a rollout cannot go on");
        self.now.problem = Some(error.to_string());
    }

    /// Does what somebody asks.
    async fn obey(&mut self, Order { steer, by, done }: Order) {
        let mut next = self.now.stored.rollout.clone();
        let obeyed = match steer.apply(&mut next, now_ms(), &by) {
            Ok(actions) => self.apply(next, &actions, by).await,
            Err(wrong) => Err(wrong_phase(&self.now.model, wrong)),
        };
        // Who asked may be gone.
        let _ = done.send(obeyed.map(|()| Arc::new(self.now.clone())));
    }

    /// Makes `rollout` what there is, with all that it asks for.
    async fn apply(&mut self, rollout: Rollout, actions: &[Action], by: By) -> Result<()> {
        let Seen { model, revision, stored, .. } = &self.now;
        let next = Stored { rollout, ..stored.clone() };
        let span = operation!("change a rollout", model, next.candidate);
        // Boxed: asking the gates of promotion takes a lot of room, and happens once.
        let stored = Box::pin(store(&self.models, model, &next, Some(*revision), makes(actions), by));
        self.now.revision = traced(span, stored).await?;
        self.now.stored = next;
        (self.now.problem, self.retry, self.noted_at) = (None, None, Instant::now());
        if makes(actions) {
            self.gathered.stage_began();
        }
        tell(&self.webhooks, &self.now.model, &self.now.stored, actions);
        Ok(())
    }

    /// Stores what was counted.
    async fn note(&mut self) {
        self.noted_at = Instant::now();
        let Seen { model, revision, stored, .. } = self.now.clone();
        let name = model.clone();
        let note =
            move |registry: &Registry| registry.note(&model, KIND, revision, to_value(&model, &stored)?);
        if let Err(error) = self.models.read(note).await {
            tracing::warn!(model = %name, "what a rollout has counted was not stored: {error}");
        }
    }
}

/// Stores a rollout in the place of the one of `revision`, and with it, if it `makes` something, the route and the alias it asks for;
/// gives its revision.
async fn store(
    models: &Arc<Models>,
    name: &ModelName,
    stored: &Stored,
    revision: Option<u64>,
    makes: bool,
    by: By,
) -> Result<u64> {
    let wanted = stored.rollout.wanted();
    let alias = &stored.rollout.plan().alias;
    let passed = match wanted {
        Wanted::Promoted => Some(models.passes_gates(name, stored.candidate, alias).await?),
        Wanted::Share { .. } | Wanted::RolledBack => None,
    };
    let value = to_value(name, stored).map_err(Error::from)?;
    let document =
        DocumentChange { kind: KIND.to_owned(), expected: revision, value: Some((value, stored.names())) };
    let mut together = Together { documents: vec![document], alias: None };
    let mut answering = Vec::new();
    if makes {
        let (of, spec) = (name.clone(), stored.route());
        let read = move |registry: &Registry| route_change(registry, &registry.model(&of)?, spec);
        let (route, versions) = models.read(read).await?;
        together.documents.extend(route);
        match wanted {
            Wanted::Share { .. } => answering = versions,
            Wanted::Promoted => {
                together.alias = Some(AliasMove {
                    alias: alias.clone(),
                    version: stored.candidate,
                    expected: Some(Some(stored.control)),
                    forced: false,
                });
            }
            // The control answers already, and giving traffic back to it waits for nothing.
            Wanted::RolledBack => {}
        }
    }
    let check = move |registry: &Registry| passed.map_or(Ok(()), |passed| passed(registry));
    let applied = models.change_together(name, answering, together, by, check).await?;
    let document = applied.documents.into_iter().next().flatten();
    let lost = || Error::internal(format!("model `{name}`: its rollout was not stored"));
    document.map(|document| document.revision).ok_or_else(lost)
}

fn makes(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Make(_)))
}

fn events(actions: &[Action]) -> impl Iterator<Item = &Event> {
    actions.iter().filter_map(|action| match action {
        Action::Announce(event) => Some(event),
        Action::Make(_) => None,
    })
}

/// What happened, as a reason in the audit trail.
fn reason_of(actions: &[Action]) -> String {
    let mut reason = events(actions).map(|event| event.sentence.as_str()).collect::<Vec<_>>().join("; ");
    reason.truncate(reason.floor_char_boundary(limits::REASON_BYTES));
    reason
}

/// Tells of what happened, and was stored, what the rollout is after it.
fn tell(webhooks: &Webhooks, name: &ModelName, stored: &Stored, actions: &[Action]) {
    let rollout = &stored.rollout;
    for event in events(actions) {
        let stage = event.stage + 1;
        tracing::info!(model = %name, stage, by = event.by, "rollout: {}", event.sentence);
        // Numbers and text: there is nothing in it that has no JSON.
        let mut data = serde_json::to_value(event).unwrap_or_default();
        let kind = format!("sconce.rollout.{}.v1", data["kind"].as_str().unwrap_or_default());
        data["stage"] = stage.into();
        data["stages"] = rollout.progress().1.into();
        data["state"] = phase_name(rollout.phase()).into();
        data["percent"] = percent(rollout).into();
        data["candidate_version"] = stored.candidate.get().into();
        data["control_version"] = stored.control.get().into();
        webhooks.tell(webhooks::Event { kind, model: name, version: Some(stored.candidate), data });
    }
}

/// The share that the candidate is to have.
fn percent(rollout: &Rollout) -> f64 {
    match rollout.wanted() {
        Wanted::Share { percent, .. } => percent,
        Wanted::Promoted => 100.0,
        Wanted::RolledBack => 0.0,
    }
}

fn wrong_phase(name: &ModelName, wrong: WrongPhase) -> Error {
    Error::new(wrong.code(), format!("model `{name}`: {wrong}"))
}

fn to_value(name: &ModelName, stored: &Stored) -> Result<serde_json::Value, RegistryError> {
    serde_json::to_value(stored).map_err(|error| {
        RegistryError::Damaged(format!("model `{name}`: the rollout cannot be stored: {error}"))
    })
}
