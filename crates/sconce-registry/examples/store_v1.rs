//! Makes the store that a test keeps as it was written by the first format: `tests/data/store-v1.tar.gz` holds the folder
//! that this made. It is here to say what that store holds, not to make it again: a store of a later format goes beside it.
//!
//! `cargo run --release -p sconce-registry --example store_v1 -- FOLDER`

#[path = "../tests/support/mod.rs"]
mod support;

use sconce_registry::{Gates, ModelUpdate, NewVersion, Outcome, Registry, Topic, Wanted};
use std::env;
use std::error::Error;
use support::{by, import, name, number, register, signature};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).ok_or("expected a folder")?;
    let registry = Registry::open(folder.as_ref())?;
    let fraud = name("fraud");
    for (version, label, auc) in [(1, "1.0.0", 0.91), (2, "1.1.0", 0.93)] {
        let mut new = NewVersion::new(fraud.clone());
        new.label = Some(label.to_owned());
        new.metrics = [("auc".to_owned(), auc)].into();
        new.lineage.parent = (version > 1).then(|| number(version - 1));
        new.lineage.training_data = "transactions of 2026".to_owned();
        new.signature = signature();
        let config = if version == 1 { "{\"one\":1}" } else { "{\"two\":2}" };
        let files = [("model.safetensors", label.as_bytes()), ("sub/config.json", config.as_bytes())];
        registry.register(new, import(&registry, &files), &by())?;
        registry.set_alias(&fraud, "champion", number(version), None, false, &by())?;
    }
    register(&registry, "fraud", b"third");
    register(&registry, "fraud", b"fourth");
    registry.delete_version(&fraud, number(4), &by())?;
    registry.archive(&fraud, number(3), &by())?;
    let description = Some("card fraud".to_owned());
    let tags = Some([("team".to_owned(), "risk".to_owned())].into());
    let min_metrics = [("auc".to_owned(), 0.9)].into();
    let gates = Some(Gates { min_metrics, ..Gates::default() });
    registry.update_model(&fraud, ModelUpdate { description, tags, gates }, &by())?;
    registry.set_wanted(&fraud, number(2), Wanted::Loaded, &by())?;
    registry.record_outcome(&fraud, number(2), Outcome::Loaded { memory_bytes: 4_096 })?;
    register(&registry, "churn", b"churn");
    registry.set_alias(&name("churn"), "stable", number(1), Some(None), false, &by())?;
    register(&registry, "deleted", b"gone");
    registry.delete_model(&name("deleted"), &by())?;
    registry.journal().append(Topic::Feedback, b"prediction-1", b"{\"label\":1}", 1_000)?.wait()?;
    Ok(())
}
