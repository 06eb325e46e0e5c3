//! What a writer does, and what should then be there.

use crate::support::{by, import, name, number};
use fastrand::Rng;
use sconce_registry::{
    AliasMove, Digest, DocumentChange, Names, NewVersion, Registry, RegistryError, Together, VersionState,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

const MODELS: [&str; 3] = ["fraud", "churn", "a.b"];
const ALIASES: [&str; 2] = ["champion", "challenger"];
const KINDS: [&str; 2] = ["traffic", "rollout"];

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Register {
        model: String,
        content: u64,
    },
    SetAlias {
        model: String,
        alias: String,
        version: u64,
    },
    RollBack {
        model: String,
        alias: String,
        steps: usize,
    },
    RemoveAlias {
        model: String,
        alias: String,
    },
    Archive {
        model: String,
        version: u64,
    },
    Delete {
        model: String,
        version: u64,
    },
    DeleteModel {
        model: String,
    },
    /// Sets a document, and moves an alias with it, maybe.
    SetDocument {
        model: String,
        kind: String,
        content: u64,
        alias: Option<(String, u64)>,
    },
    RemoveDocument {
        model: String,
        kind: String,
    },
    Collect,
}

/// What the catalogue says, as far as the writer changes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct State {
    models: BTreeMap<String, Model>,
    audited: u64,
    generation: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Model {
    highest: u64,
    /// Whether it is archived, and its files.
    versions: BTreeMap<u64, (bool, Vec<(String, Digest)>)>,
    /// What it means and meant.
    aliases: BTreeMap<String, (u64, Vec<u64>)>,
    /// Its revision, and what it says.
    documents: BTreeMap<String, (u64, Value)>,
}

/// Files of a version: sizes differ, and some contents are those of other versions.
fn files(content: u64) -> Vec<(String, Vec<u8>)> {
    let mut random = Rng::with_seed(content);
    let files = random.usize(1..4);
    let file = |index: usize| {
        let seed = if index == 0 { content % 5 } else { content.wrapping_mul(31).wrapping_add(index as u64) };
        let mut bytes = vec![0; (seed % 7 * 911) as usize];
        Rng::with_seed(seed).fill(&mut bytes);
        (format!("part{index}/weights"), bytes)
    };
    (0..files).map(file).collect()
}

/// What a document says: some are longer than the audit trail keeps, and than one part of a record.
fn said(content: u64) -> Value {
    let mut random = Rng::with_seed(content);
    let long = random.usize(..if content.is_multiple_of(5) { 30_000 } else { 300 });
    Value::from(std::iter::repeat_with(|| random.alphanumeric()).take(long).collect::<String>())
}

impl State {
    /// What `registry` says.
    pub(crate) fn read(registry: &Registry) -> Self {
        let mut state = Self { generation: registry.generation(), ..Self::default() };
        for record in registry.models(None, 1_000).unwrap() {
            let mut model = Model { highest: record.highest_version, ..Model::default() };
            for version in registry.versions(&record.name, None, 1_000).unwrap() {
                let files = version.files.into_iter().map(|file| (file.path, file.digest)).collect();
                let archived = version.state == VersionState::Archived;
                model.versions.insert(version.version.get(), (archived, files));
            }
            for (alias, meant) in record.aliases {
                let previous = meant.previous.into_iter().map(|version| version.get()).collect();
                model.aliases.insert(alias, (meant.version.get(), previous));
            }
            for document in registry.documents(&record.name).unwrap() {
                model.documents.insert(document.kind, (document.revision, document.value));
            }
            state.models.insert(record.name.to_string(), model);
        }
        state.audited = registry.verify_audit().unwrap().entries;
        state
    }

    /// Something that can be done.
    pub(crate) fn pick(&self, random: &mut Rng) -> Change {
        // A model that is deleted has a name that is not used again: its numbers would go on, and nobody tells where.
        let model = match random.u8(0..8) {
            0 => format!("passing{}", random.u32(..)),
            _ => MODELS[random.usize(..MODELS.len())].to_owned(),
        };
        let passing = self.models.keys().find(|name| name.starts_with("passing"));
        let alias = ALIASES[random.usize(..ALIASES.len())].to_owned();
        let register = Change::Register { model: model.clone(), content: random.u64(..) };
        let Some(there) = self.models.get(&model) else { return register };
        let live = |version: &u64| !there.versions[version].0;
        let meant = |version: &u64| there.aliases.values().any(|(meant, _)| meant == version);
        let versions: Vec<u64> = there.versions.keys().copied().collect();
        let mut choose = |versions: Vec<u64>| versions.get(random.usize(..versions.len().max(1))).copied();
        let free =
            choose(versions.iter().copied().filter(|version| live(version) && !meant(version)).collect());
        let any_free = choose(versions.iter().copied().filter(|version| !meant(version)).collect());
        let history = there.aliases.get(&alias).map_or(0, |(_, previous)| previous.len());
        // Most versions go again, so that a store does not get slow.
        let crowded = versions.len() > 8;
        let kind = KINDS[random.usize(..KINDS.len())].to_owned();
        let choice = random.u8(0..26);
        let change = match choice {
            0..=4 if !crowded => Some(register.clone()),
            0..=8 => free.map(|version| Change::SetAlias { model, alias, version }),
            9..=10 if history > 0 => {
                Some(Change::RollBack { model, alias, steps: random.usize(1..=history) })
            }
            11 if there.aliases.contains_key(&alias) => Some(Change::RemoveAlias { model, alias }),
            12 => free.map(|version| Change::Archive { model, version }),
            13..=16 => any_free.map(|version| Change::Delete { model, version }),
            17 => passing.map(|model| Change::DeleteModel { model: model.clone() }),
            18 => Some(Change::Collect),
            19..=23 => {
                let alias = free.filter(|_| random.bool()).map(|version| (alias, version));
                Some(Change::SetDocument { model, kind, content: random.u64(..), alias })
            }
            24 if there.documents.contains_key(&kind) => Some(Change::RemoveDocument { model, kind }),
            _ => None,
        };
        change.filter(|change| self.is_possible(change)).unwrap_or(register)
    }

    /// Rolling back to what is archived is refused.
    fn is_possible(&self, change: &Change) -> bool {
        let Change::RollBack { model, alias, steps } = change else { return true };
        let model = &self.models[model];
        let previous = &model.aliases[alias].1;
        !model.versions[&previous[previous.len() - steps]].0
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        if *change == Change::Collect {
            return;
        }
        self.audited += 1;
        self.generation += 1;
        let name = match change {
            Change::Collect => return,
            Change::Register { model: name, .. }
            | Change::SetAlias { model: name, .. }
            | Change::RollBack { model: name, .. }
            | Change::RemoveAlias { model: name, .. }
            | Change::Archive { model: name, .. }
            | Change::Delete { model: name, .. }
            | Change::SetDocument { model: name, .. }
            | Change::RemoveDocument { model: name, .. }
            | Change::DeleteModel { model: name } => name,
        };
        let mut there = self.models.remove(name).unwrap_or_default();
        match change {
            Change::Register { content, .. } => {
                there.highest += 1;
                let files = files(*content).into_iter().map(|(path, bytes)| (path, Digest::of(&bytes)));
                there.versions.insert(there.highest, (false, files.collect()));
            }
            Change::SetAlias { alias, version, .. } => there.point(alias, *version),
            Change::SetDocument { kind, content, alias, .. } => {
                if let Some((alias, version)) = alias {
                    there.point(alias, *version);
                    self.audited += 1;
                }
                there.documents.insert(kind.clone(), (self.audited, said(*content)));
            }
            Change::RemoveDocument { kind, .. } => drop(there.documents.remove(kind)),
            Change::RollBack { alias, steps, .. } => {
                let (meant, previous) = there.aliases.get_mut(alias).unwrap();
                let kept = previous.len() - steps;
                *meant = previous[kept];
                previous.truncate(kept);
            }
            Change::RemoveAlias { alias, .. } => drop(there.aliases.remove(alias)),
            Change::Archive { version, .. } => there.versions.get_mut(version).unwrap().0 = true,
            Change::Delete { version, .. } => {
                there.versions.remove(version);
                for (meant, previous) in there.aliases.values_mut() {
                    previous.retain(|previous| previous != version);
                    previous.dedup();
                    while previous.last() == Some(meant) {
                        previous.pop();
                    }
                }
            }
            Change::DeleteModel { .. } => return,
            Change::Collect => {}
        }
        self.models.insert(name.clone(), there);
    }
}

impl Model {
    fn point(&mut self, alias: &str, version: u64) {
        match self.aliases.get_mut(alias) {
            Some((meant, previous)) => previous.push(std::mem::replace(meant, version)),
            None => drop(self.aliases.insert(alias.to_owned(), (version, Vec::new()))),
        }
    }
}

impl Change {
    pub(crate) fn make(&self, registry: &Registry) {
        match self {
            Self::Register { model, content } => {
                let files = files(*content);
                let files: Vec<(&str, &[u8])> =
                    files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
                let new = NewVersion::new(name(model));
                registry.register(new, import(registry, &files), &by()).map(drop)
            }
            Self::SetAlias { model, alias, version } => {
                registry.set_alias(&name(model), alias, number(*version), None, false, &by()).map(drop)
            }
            Self::RollBack { model, alias, steps } => {
                registry.rollback(&name(model), alias, *steps, &by()).map(drop)
            }
            Self::RemoveAlias { model, alias } => {
                registry.remove_alias(&name(model), alias, None, &by()).map(drop)
            }
            Self::Archive { model, version } => {
                registry.archive(&name(model), number(*version), &by()).map(drop)
            }
            Self::Delete { model, version } => registry.delete_version(&name(model), number(*version), &by()),
            Self::DeleteModel { model } => registry.delete_model(&name(model), &by()),
            Self::SetDocument { model, kind, content, alias } => {
                let alias = alias.as_ref().map(|(alias, version)| AliasMove {
                    alias: alias.clone(),
                    version: number(*version),
                    expected: None,
                    forced: false,
                });
                let value = Some((said(*content), Names::default()));
                change_document(registry, model, kind, value, alias)
            }
            Self::RemoveDocument { model, kind } => change_document(registry, model, kind, None, None),
            Self::Collect => registry.collect_garbage(false).map(drop),
        }
        .unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }

    /// Reads what [`fmt::Display`] wrote.
    pub(crate) fn parse(text: &str) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |word: &str| word.parse().unwrap();
        match words[..] {
            ["register", model, content] => Self::Register { model: model.into(), content: number(content) },
            ["set", model, alias, version] => {
                Self::SetAlias { model: model.into(), alias: alias.into(), version: number(version) }
            }
            ["roll-back", model, alias, steps] => {
                Self::RollBack { model: model.into(), alias: alias.into(), steps: steps.parse().unwrap() }
            }
            ["remove", model, alias] => Self::RemoveAlias { model: model.into(), alias: alias.into() },
            ["archive", model, version] => Self::Archive { model: model.into(), version: number(version) },
            ["delete", model, version] => Self::Delete { model: model.into(), version: number(version) },
            ["delete-model", model] => Self::DeleteModel { model: model.into() },
            ["document", model, kind, content, ref alias @ ..] => Self::SetDocument {
                model: model.into(),
                kind: kind.into(),
                content: number(content),
                alias: match alias {
                    [alias, version] => Some(((*alias).into(), number(version))),
                    _ => None,
                },
            },
            ["remove-document", model, kind] => {
                Self::RemoveDocument { model: model.into(), kind: kind.into() }
            }
            ["collect"] => Self::Collect,
            _ => panic!("no change: {text}"),
        }
    }
}

fn change_document(
    registry: &Registry,
    model: &str,
    kind: &str,
    value: Option<(Value, Names)>,
    alias: Option<AliasMove>,
) -> Result<(), RegistryError> {
    let model = name(model);
    let expected = registry.document(&model, kind)?.map(|document| document.revision);
    let document = DocumentChange { kind: kind.to_owned(), expected, value };
    let together = Together { documents: vec![document], alias };
    registry.change_together(&model, together, &by()).map(drop)
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register { model, content } => write!(f, "register {model} {content}"),
            Self::SetAlias { model, alias, version } => write!(f, "set {model} {alias} {version}"),
            Self::RollBack { model, alias, steps } => write!(f, "roll-back {model} {alias} {steps}"),
            Self::RemoveAlias { model, alias } => write!(f, "remove {model} {alias}"),
            Self::Archive { model, version } => write!(f, "archive {model} {version}"),
            Self::Delete { model, version } => write!(f, "delete {model} {version}"),
            Self::DeleteModel { model } => write!(f, "delete-model {model}"),
            Self::SetDocument { model, kind, content, alias } => {
                write!(f, "document {model} {kind} {content}")?;
                alias.as_ref().map_or(Ok(()), |(alias, version)| write!(f, " {alias} {version}"))
            }
            Self::RemoveDocument { model, kind } => write!(f, "remove-document {model} {kind}"),
            Self::Collect => f.write_str("collect"),
        }
    }
}
