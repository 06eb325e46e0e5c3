//! Monitors: what versions see and say, held against a reference, beside the answers. A request never waits for them: its rows are
//! offered after its answer has left, what finds no place is dropped and counted, and one thread counts and judges.
//!
//! Rows are counted and not kept, so what models' policies say of keeping content does not concern them.

mod columns;
mod watched;

pub(crate) use watched::{Entry, Glance, Settings, Standing, Stored, Watched};

use crate::feedback::now_ms;
use crate::models::Served;
use crate::sink::{Inbox, Sink};
use crate::webhooks::{Event, Webhooks};
use arc_swap::ArcSwap;
use columns::Tensors;
use sconce_core::{Error, ErrorCode, ModelName, ModelVersion, PredictionId, Result, Tensor};
use sconce_monitor::Fitted;
use sconce_registry::{By, DocumentChange, Names, Registry, RegistryError, Together, Topic, limits};
use sconce_telemetry::metrics::{MonitorSample, SinkSample};
use sconce_telemetry::traces::Observed;
use serde_json::json;
use std::collections::HashMap;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Versions that are watched at once.
const MAX_WATCHED: usize = 256;
/// Requests that wait to be counted.
const QUEUE: usize = 16_384;
/// Requests that are counted before the thread looks whether it is to end.
const BATCH: usize = 1024;
/// What a request holds in memory beside its tensors, about.
const SEEN_BYTES: usize = 256;
/// How often versions are judged.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The metric's label that says so.
const NAME: &str = "monitors";
/// Who changes what is stored without being asked.
const ACTOR: &str = "monitor";

/// By model, each of its versions that is watched.
type Table = HashMap<String, Vec<Arc<Watched>>>;

/// Every version under watch.
pub(crate) struct Monitors {
    table: Arc<ArcSwap<Table>>,
    registry: Arc<Registry>,
    sink: Sink<Seen>,
}

/// A request that was answered.
struct Seen {
    watched: Arc<Watched>,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<Option<Tensor>>,
    at_ms: u64,
}

/// A request on its way to be seen.
pub(crate) struct Draft {
    monitors: Arc<Monitors>,
    watched: Arc<Watched>,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<Option<Tensor>>,
}

impl Monitors {
    /// Takes up what is stored, and starts the thread.
    ///
    /// # Errors
    /// When there is no thread, or the registry cannot be read.
    pub(crate) fn start(registry: &Arc<Registry>, webhooks: Arc<Webhooks>) -> io::Result<Arc<Self>> {
        let table = Arc::new(ArcSwap::from_pointee(stored(registry).map_err(io::Error::other)?));
        let (theirs, registry_of_thread) = (Arc::clone(&table), Arc::clone(registry));
        let sink =
            Sink::start(NAME, QUEUE, move |inbox| run(&theirs, &registry_of_thread, &webhooks, inbox))?;
        Ok(Arc::new(Self { table, registry: Arc::clone(registry), sink }))
    }

    /// A draft of what a monitor sees of a request, if one is to see it: which ones follows from their ids alone.
    pub(crate) fn draft(self: &Arc<Self>, served: &Served, id: PredictionId) -> Option<Box<Draft>> {
        let watched = find(&self.table.load(), &served.name, served.version)?;
        let is_seen = watched.admits(id.share());
        (is_seen && watched.columns(served.signature()).is_some()).then(|| {
            let monitors = Arc::clone(self);
            Box::new(Draft { monitors, watched, inputs: Vec::new(), outputs: Vec::new() })
        })
    }

    /// Watches a version as `stored` says, in the place of what watched it before. `served` is it, in memory.
    ///
    /// # Errors
    /// `InvalidArgument` for a reference or settings that do not fit the model; `ResourceExhausted` for too many; what the registry
    /// refuses. Blocks.
    pub(crate) fn set(&self, served: &Served, stored: Stored, by: &By) -> Result<Arc<Watched>> {
        let (name, version) = (&served.name, served.version);
        let mut watched = Watched::new(name.clone(), version, 0, stored, now_ms())?;
        watched.check(served.signature())?;
        let table = self.table.load();
        let is_new = find(&table, name, version).is_none();
        if is_new && table.values().map(Vec::len).sum::<usize>() >= MAX_WATCHED {
            let message = format!("{MAX_WATCHED} versions are watched already, and no more can be");
            return Err(Error::new(ErrorCode::ResourceExhausted, message));
        }
        watched.revision = write(&self.registry, name, version, &watched.stored, by)?;
        let watched = Arc::new(watched);
        replace(&self.table, name, version, watched.revision, Some(&watched));
        Ok(watched)
    }

    /// Watches a version no more. Blocks.
    ///
    /// # Errors
    /// `NotFound` where nothing did; `Aborted` where that changed meanwhile.
    pub(crate) fn remove(&self, name: &ModelName, version: ModelVersion, by: &By) -> Result<()> {
        let watched = self.get(name, version)?;
        let removed = change(version, Some(watched.revision), None)?;
        self.registry.change_together(name, removed, by)?;
        replace(&self.table, name, version, watched.revision, None);
        Ok(())
    }

    /// What watches a version.
    ///
    /// # Errors
    /// `NotFound` where nothing does.
    pub(crate) fn get(&self, name: &ModelName, version: ModelVersion) -> Result<Arc<Watched>> {
        find(&self.table.load(), name, version).ok_or_else(|| {
            let message = format!("model `{name}`: version {version} is not watched");
            Error::new(ErrorCode::NotFound, message)
        })
    }

    /// Everything that is watched, by model and version.
    pub(crate) fn all(&self) -> Vec<Arc<Watched>> {
        let mut all: Vec<_> = self.table.load().values().flatten().cloned().collect();
        all.sort_by(|a, b| (&a.model, a.version).cmp(&(&b.model, b.version)));
        all
    }

    /// How a version stood from `from_ms` on, at most `limit` entries. Blocks.
    ///
    /// # Errors
    /// `Internal` when the journal cannot be read.
    pub(crate) fn history(
        &self,
        name: &ModelName,
        version: ModelVersion,
        from_ms: u64,
        limit: usize,
    ) -> Result<Vec<Entry>, RegistryError> {
        let (from, to) = (history_key(name, version, from_ms), history_key(name, version, u64::MAX));
        let (from, to) = (Bound::Included(&from[..]), Bound::Included(&to[..]));
        let found = self.registry.journal().scan(Topic::Monitors, from, to, limit, now_ms())?;
        let entry = |(_, value): &(Vec<u8>, Vec<u8>)| {
            serde_json::from_slice(value).map_err(|error| RegistryError::Damaged(format!("journal: {error}")))
        };
        found.iter().map(entry).collect()
    }

    /// A scrape's view of the versions.
    pub(crate) fn sample(&self) -> Vec<MonitorSample> {
        let of = |watched: Arc<Watched>| {
            let Glance { standing, rows, .. } = watched.glance();
            MonitorSample {
                model: watched.model.to_string(),
                version: watched.version.to_string(),
                state: standing.as_str(),
                rows,
                psi: watched.psi(),
            }
        };
        self.all().into_iter().map(of).collect()
    }

    /// A scrape's view of the queue.
    pub(crate) fn sink(&self) -> SinkSample {
        self.sink.sample()
    }

    /// Counts what is left.
    pub(crate) async fn shutdown(&self) {
        self.sink.shutdown().await;
    }
}

impl Draft {
    /// Notes what it wants of the request.
    pub(crate) fn asked(&mut self, served: &Served, tensors: &[(String, Tensor)]) {
        if let Some(columns) = self.watched.columns(served.signature()) {
            self.inputs = tensors.iter().filter(|(name, _)| columns.wants_input(name)).cloned().collect();
        }
    }

    /// Notes what it wants of the answer.
    pub(crate) fn answered(&mut self, served: &Served, tensors: &[Tensor]) {
        if let Some(columns) = self.watched.columns(served.signature()) {
            let wanted =
                |(place, tensor): (usize, &Tensor)| columns.wants_output(place).then(|| tensor.clone());
            self.outputs = tensors.iter().enumerate().map(wanted).collect();
        }
    }

    /// Offers a request that has ended. A failed one has nothing to show.
    pub(crate) fn offer(self, observed: &Observed) {
        if observed.code.is_some() {
            return;
        }
        let Self { monitors, watched, inputs, outputs } = self;
        let mut tensors = inputs.iter().map(|(_, tensor)| tensor).chain(outputs.iter().flatten());
        if !watched.has_room(tensors.next().map_or(0, Tensor::rows)) {
            return;
        }
        // What waits holds no message that they came in.
        let inputs: Vec<(String, Tensor)> =
            inputs.into_iter().map(|(name, tensor)| (name, tensor.detached())).collect();
        let outputs: Vec<Option<Tensor>> =
            outputs.into_iter().map(|tensor| tensor.map(|tensor| tensor.detached())).collect();
        let tensors = inputs.iter().map(|(_, tensor)| tensor).chain(outputs.iter().flatten());
        let bytes = SEEN_BYTES + tensors.map(|tensor| tensor.data().len()).sum::<usize>();
        monitors.sink.offer(Seen { watched, inputs, outputs, at_ms: now_ms() }, bytes);
    }
}

/// Counts what comes, and judges now and then, until it is told to stop.
fn run(table: &ArcSwap<Table>, registry: &Registry, webhooks: &Webhooks, mut inbox: Inbox<Seen>) {
    let mut pending = Vec::new();
    let mut looked_at = Instant::now();
    loop {
        let go_on = inbox.gather(&mut pending, BATCH);
        for offered in pending.drain(..) {
            let Seen { watched, inputs, outputs, at_ms } = &offered.item;
            match watched.take(&Tensors::new(inputs, outputs), *at_ms) {
                Ok(()) => inbox.written(1),
                Err(error) => inbox.failed(1, &error),
            }
        }
        if looked_at.elapsed() >= LOOK_EVERY {
            looked_at = Instant::now();
            for watched in table.load().values().flatten() {
                if let Err(error) = look(table, registry, webhooks, watched, now_ms()) {
                    tracing::warn!(model = %watched.model, version = %watched.version, %error, "a monitor failed");
                }
            }
        }
        if !go_on {
            return;
        }
    }
}

fn look(
    table: &ArcSwap<Table>,
    registry: &Registry,
    webhooks: &Webhooks,
    watched: &Arc<Watched>,
    now_ms: u64,
) -> Result<()> {
    let (model, version) = (&watched.model, watched.version);
    if matches!(registry.version(model, version), Err(RegistryError::NotFound(_))) {
        // It was deleted, with all that is stored of its model or without: what is left says nothing any more.
        replace(table, model, version, watched.revision, None);
        return Ok(());
    }
    match watched.look(now_ms)? {
        watched::Found::Nothing => {}
        watched::Found::Entry(entry) => note(registry, watched, &entry)?,
        watched::Found::Changed(entry) => {
            tell(webhooks, watched, &entry);
            note(registry, watched, &entry)?;
        }
        watched::Found::Learned(reference) => {
            let fitted = Some(Fitted { reference, baseline: None });
            let stored = Stored { fitted, ..watched.stored.clone() };
            // Whoever set another monitor meanwhile wanted that one.
            let Some(now) = find(&table.load(), model, version).filter(|now| Arc::ptr_eq(now, watched))
            else {
                return Ok(());
            };
            let by = By::new(ACTOR, format!("the reference is learned from {} rows", stored.learn_rows));
            let change = change(version, Some(now.revision), Some(&stored))?;
            let applied = registry.change_together(model, change, &by).inspect_err(|error| {
                watched.give_up(format!("the reference cannot be kept: {error}"));
            })?;
            let revision = applied.documents.into_iter().flatten().map(|it| it.revision).next();
            let revision = revision.unwrap_or(now.revision);
            let learned = Watched::new(model.clone(), version, revision, stored, now_ms)?;
            replace(table, model, version, revision, Some(&Arc::new(learned)));
            tracing::info!(%model, %version, rows = watched.stored.learn_rows, "a reference is learned");
        }
    }
    Ok(())
}

/// Says that a version stands differently from before.
fn tell(webhooks: &Webhooks, watched: &Watched, entry: &Entry) {
    let (model, version) = (&watched.model, watched.version);
    let feature = |(feature, psi, log_evidence): &(String, f64, f64)| json!({ "feature": feature, "psi": psi, "log_evidence": log_evidence });
    let data = json!({
        "state": entry.standing,
        "at_ms": entry.at_ms,
        "rows": entry.rows,
        "features": entry.features.iter().map(feature).collect::<Vec<_>>(),
        "failed_checks": entry.failed,
    });
    let event = |what: &str| Event {
        kind: format!("sconce.monitor.{what}.v1"),
        model,
        version: Some(version),
        data: data.clone(),
    };
    webhooks.tell(event(entry.standing.as_str()));
    if entry.standing == Standing::Drifted && !entry.features.is_empty() {
        // Whoever fits models listens to this alone: bad data is no reason to.
        webhooks.tell(event("retrain"));
    }
    let features: Vec<&str> = entry.features.iter().map(|(name, ..)| name.as_str()).collect();
    let (features, failed) = (features.join(", "), entry.failed.join(", "));
    match entry.standing {
        Standing::Drifted => {
            tracing::warn!(%model, %version, rows = entry.rows, features, failed, "a version has drifted");
        }
        standing => {
            tracing::info!(%model, %version, rows = entry.rows, state = standing.as_str(), "a version is watched");
        }
    }
}

/// Notes in the journal how a version stands.
fn note(registry: &Registry, watched: &Watched, entry: &Entry) -> Result<()> {
    let key = history_key(&watched.model, watched.version, entry.at_ms);
    let value = serde_json::to_vec(entry)
        .map_err(|error| Error::internal("an entry cannot be written").with_source(error))?;
    // Nobody waits until it is on disk.
    registry.journal().append(Topic::Monitors, &key, &value, entry.at_ms).map(drop)?;
    Ok(())
}

/// In the order of time within a version.
fn history_key(model: &ModelName, version: ModelVersion, at_ms: u64) -> Vec<u8> {
    format!("{model}/{version}/{at_ms:020}").into_bytes()
}

fn find(table: &Table, name: &ModelName, version: ModelVersion) -> Option<Arc<Watched>> {
    table.get(name.as_str())?.iter().find(|watched| watched.version == version).cloned()
}

/// Puts `watched` in the place of what there was up to `revision`. What was stored later stays, whoever comes here first.
fn replace(
    table: &ArcSwap<Table>,
    name: &ModelName,
    version: ModelVersion,
    revision: u64,
    watched: Option<&Arc<Watched>>,
) {
    table.rcu(|table| {
        let mut table = Table::clone(table);
        let versions = table.entry(name.to_string()).or_default();
        versions.retain(|known| known.version != version || known.revision > revision);
        if versions.iter().all(|known| known.version != version) {
            versions.extend(watched.cloned());
        }
        if versions.is_empty() {
            table.remove(name.as_str());
        }
        table
    });
}

/// The kind of the document that says how a version is watched.
fn kind(version: ModelVersion) -> String {
    format!("{KIND}{version}")
}

const KIND: &str = "monitor-";

fn change(version: ModelVersion, expected: Option<u64>, stored: Option<&Stored>) -> Result<Together> {
    let value = stored
        .map(serde_json::to_value)
        .transpose()
        .map_err(|error| Error::invalid("the reference has numbers that are none").with_source(error))?;
    let document =
        DocumentChange { kind: kind(version), expected, value: value.map(|value| (value, Names::default())) };
    Ok(Together { documents: vec![document], alias: None })
}

/// Stores how a version is watched, whatever was stored before.
fn write(
    registry: &Registry,
    name: &ModelName,
    version: ModelVersion,
    stored: &Stored,
    by: &By,
) -> Result<u64> {
    let expected = registry.document(name, &kind(version))?.map(|document| document.revision);
    let applied = registry.change_together(name, change(version, expected, Some(stored))?, by)?;
    Ok(applied.documents.into_iter().flatten().map(|document| document.revision).next().unwrap_or(0))
}

/// What the registry says is watched, of versions that are still there.
fn stored(registry: &Registry) -> Result<Table, RegistryError> {
    let (mut table, mut after) = (Table::new(), None);
    loop {
        let page = registry.models(after.as_ref(), limits::PAGE)?;
        for model in &page {
            for document in registry.documents(&model.name)? {
                let version = document.kind.strip_prefix(KIND).and_then(ModelVersion::parse);
                let Some(version) = version else { continue };
                if registry.version(&model.name, version).is_err() {
                    continue;
                }
                let taken: Result<Stored, _> = serde_json::from_value(document.value);
                let watched = taken.map_err(|error| Error::internal(error.to_string())).and_then(|stored| {
                    Watched::new(model.name.clone(), version, document.revision, stored, now_ms())
                });
                match watched {
                    Ok(watched) => {
                        table.entry(model.name.to_string()).or_default().push(Arc::new(watched));
                    }
                    // Who wrote it knew more than this program does.
                    Err(error) => {
                        tracing::error!(model = %model.name, %version, %error, "what is stored of a monitor cannot be taken up");
                    }
                }
            }
        }
        if page.len() < limits::PAGE {
            return Ok(table);
        }
        after = page.last().map(|model| model.name.clone());
    }
}
