//! Documents: what controllers of a model must remember, such as how its traffic is split. The registry knows no kind of them: it keeps one JSON
//! value a kind and model, changed by comparing and setting, and what a document names stays while it names it.

use crate::audit::Change;
use crate::changes::{change, put};
use crate::registry::{decode, key};
use crate::store::Batch;
use crate::{AliasMove, By, Changed, Digest, ModelRecord, Registry, RegistryError, Result, limits};
use sconce_core::{ModelName, ModelVersion};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::Bound;

/// A document of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Its model.
    pub model: ModelName,
    /// What it is; there is one of a kind.
    pub kind: String,
    /// The number of the audit entry of its last change: it grows with each, and none is ever given again.
    pub revision: u64,
    /// What it names.
    #[serde(default)]
    pub names: Names,
    /// What it says.
    pub value: Value,
}

/// What a document needs: none of the versions can be deleted or archived, and none of the aliases removed, while it names
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Names {
    /// Versions of its model.
    pub versions: BTreeSet<ModelVersion>,
    /// Aliases of its model.
    pub aliases: BTreeSet<String>,
}

/// What becomes of one document.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentChange {
    /// Its kind: 1 to 32 characters of a-z 0-9 _ -, starting with a letter.
    pub kind: String,
    /// The revision it has now; `None`: there is none.
    pub expected: Option<u64>,
    /// What it says from now on, and names; `None` removes it.
    pub value: Option<(Value, Names)>,
}

/// Changes of one model that are made together or not at all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Together {
    /// Documents, each kind once.
    pub documents: Vec<DocumentChange>,
    /// An alias that moves with them.
    pub alias: Option<AliasMove>,
}

/// What changes that were made together led to.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The documents as they are now, in the order of their changes; `None` for one that was removed.
    pub documents: Vec<Option<Document>>,
    /// What became of the alias, if one was to move.
    pub alias: Option<Changed>,
    /// The routing generation from which this holds.
    pub generation: u64,
}

impl Registry {
    /// The document of `kind` of `model`, if there is one.
    ///
    /// # Errors
    /// `NotFound` when the model does not exist; `InvalidArgument` when it can be no kind; `Internal` when it cannot be read.
    pub fn document(&self, model: &ModelName, kind: &str) -> Result<Option<Document>> {
        limits::check_kind(kind)?;
        self.model(model)?;
        let stored = self.catalogue.get(&key::document(model, kind))?;
        stored.map(|stored| decode("a document", &stored)).transpose()
    }

    /// Every document of `model`, by kind; at most [`limits::DOCUMENTS`].
    ///
    /// # Errors
    /// `Internal` when one cannot be read.
    pub fn documents(&self, model: &ModelName) -> Result<Vec<Document>> {
        let mut documents = Vec::new();
        self.catalogue.scan(&key::documents(model), Bound::Unbounded, |_, stored| {
            documents.push(decode("a document", &stored)?);
            Ok(true)
        })?;
        Ok(documents)
    }

    /// Changes documents of `model`, and moves an alias, in one step: after a crash as well all of it is there or none. Each
    /// is an audit entry; that of a document holds what it says, or the digest of it over 16 KiB.
    ///
    /// # Errors
    /// `Aborted` when a document does not have the revision that is expected, or the alias does not mean what is expected;
    /// `NotFound` for the model, or a version or alias that is named; `InvalidArgument` for what is out of bounds
    /// ([`limits`]); `ResourceExhausted` for too many documents; for the alias as [`Registry::set_alias`]; and as
    /// [`Registry::register`].
    pub fn change_together(&self, model: &ModelName, together: Together, by: &By) -> Result<Applied> {
        let Together { documents: changes, alias } = together;
        limits::check_by(by, alias.as_ref().is_some_and(|alias| alias.forced))?;
        limits::check_changes(&changes)?;
        let mut writer = self.begin()?;
        let mut record = self.model(model)?;
        let mut batch = Batch::new();
        let mut entries = Vec::new();
        let mut moved = None;
        if let Some(to) = &alias {
            let before = record.aliases.get(&to.alias).map(|alias| alias.version);
            if self.point(&mut record, to)? {
                put(&mut batch, key::model(model), &record)?;
                let mut entry = change("set_alias", by, model);
                (entry.alias, entry.version) = (Some(to.alias.as_str()), Some(to.version));
                entry.forced = to.forced;
                (entry.before, entry.after) = (Some(json!(before)), Some(json!(to.version)));
                entries.push(entry);
            }
            moved = Some((before, to.version));
        }
        let mut count = self.documents(model)?.len();
        let mut documents = Vec::with_capacity(changes.len());
        for document in &changes {
            let at = key::document(model, &document.kind);
            let stored = self.catalogue.get(&at)?;
            let present: Option<Document> = stored.map(|stored| decode("a document", &stored)).transpose()?;
            let before = present.map(|present| present.revision);
            check_revision(model, document, before)?;
            let revision = writer.head.seq + 1 + entries.len() as u64;
            let action = if document.value.is_some() { "set_document" } else { "remove_document" };
            let mut entry = change(action, by, model);
            entry.document = Some(&document.kind);
            entry.before = before.map(|revision| json!({ "revision": revision }));
            documents.push(match &document.value {
                None if before.is_none() => {
                    let kind = &document.kind;
                    return Err(RegistryError::NotFound(format!("model `{model}`: no document `{kind}`")));
                }
                None => {
                    batch.insert(at, None);
                    count -= 1;
                    None
                }
                Some((value, names)) => {
                    self.check_names(&record, &document.kind, names)?;
                    count += usize::from(before.is_none());
                    entry.after = Some(audited(value)?);
                    let (kind, names, value) = (document.kind.clone(), names.clone(), value.clone());
                    let written = Document { model: model.clone(), kind, revision, names, value };
                    put(&mut batch, at, &written)?;
                    Some(written)
                }
            });
            entries.push(entry);
        }
        if count > limits::DOCUMENTS {
            let message = format!("model `{model}`: expected up to {} documents", limits::DOCUMENTS);
            return Err(RegistryError::Exhausted(message));
        }
        let generation = match entries.is_empty() {
            true => self.generation(),
            false => self.commit(&mut writer, batch, entries, true)?,
        };
        let alias = moved.map(|(before, after)| Changed { before, after: Some(after), generation });
        Ok(Applied { documents, alias, generation })
    }

    /// Replaces what a document says where nobody decided anything, such as what a controller has counted: it keeps its revision and
    /// what it names, nothing is audited, and no routing generation begins.
    ///
    /// # Errors
    /// `Aborted` when it does not have `revision`; `NotFound` for the model; `InvalidArgument` for a value that is out of bounds;
    /// and as [`Registry::register`].
    pub fn note(&self, model: &ModelName, kind: &str, revision: u64, value: Value) -> Result<()> {
        let mut writer = self.begin()?;
        let present = self.document(model, kind)?;
        let Some(mut document) = present.filter(|present| present.revision == revision) else {
            let message =
                format!("model `{model}`: document `{kind}`: there is no revision {revision} any more");
            return Err(RegistryError::Aborted(message));
        };
        let change = DocumentChange {
            kind: kind.to_owned(),
            expected: Some(revision),
            value: Some((value.clone(), document.names.clone())),
        };
        limits::check_changes(&[change])?;
        document.value = value;
        let mut batch = Batch::new();
        put(&mut batch, key::document(model, kind), &document)?;
        self.commit(&mut writer, batch, None::<Change<'_>>, false)?;
        Ok(())
    }

    /// Refuses to take away what a document names.
    pub(crate) fn check_unnamed(
        &self,
        model: &ModelName,
        what: &str,
        is_named: impl Fn(&Names) -> bool,
    ) -> Result<()> {
        match self.documents(model)?.into_iter().find(|document| is_named(&document.names)) {
            Some(document) => Err(RegistryError::Precondition(format!(
                "model `{model}`: {what}: document `{}` names it",
                document.kind
            ))),
            None => Ok(()),
        }
    }

    fn check_names(&self, model: &ModelRecord, kind: &str, names: &Names) -> Result<()> {
        let within = |error: RegistryError| match error {
            RegistryError::NotFound(message) => {
                RegistryError::NotFound(format!("document `{kind}`: {message}"))
            }
            other => other,
        };
        for version in &names.versions {
            self.check_named(&model.name, *version).map_err(within)?;
        }
        match names.aliases.iter().find(|alias| !model.aliases.contains_key(*alias)) {
            Some(alias) => Err(RegistryError::NotFound(format!(
                "document `{kind}`: model `{}`: no alias `{alias}`",
                model.name
            ))),
            None => Ok(()),
        }
    }
}

fn check_revision(model: &ModelName, document: &DocumentChange, now: Option<u64>) -> Result<()> {
    if document.expected == now {
        return Ok(());
    }
    let name = |revision: Option<u64>| revision.map_or("none".to_owned(), |it| format!("revision {it}"));
    Err(RegistryError::Aborted(format!(
        "model `{model}`: document `{}`: expected {}, there is {}",
        document.kind,
        name(document.expected),
        name(now)
    )))
}

/// What the audit trail keeps of a document.
fn audited(value: &Value) -> Result<Value> {
    let bytes = serde_json::to_vec(value).map_err(RegistryError::damaged)?;
    Ok(match bytes.len() > limits::AUDITED_BYTES {
        true => json!({ "bytes": bytes.len(), "content": Digest::of(&bytes) }),
        false => value.clone(),
    })
}
