//! What a Prometheus says to the gates that ask it.

use super::{DRIFT, Stored};
use crate::prometheus::Prometheus;
use futures_util::future::join_all;
use sconce_core::abbreviate;
use sconce_traffic::rollout::{ACCURACY, Fact, Gate, Plan, SHADOW_DISAGREEMENT};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// How often queries are asked, and how many are tried of a plan that may be wrong.
const ASK: Duration = Duration::from_secs(5);
const MAX_QUERIES: usize = 32;

/// What queries give now, asked again and again beside the controller: it waits for none.
pub(super) struct Answers {
    given: watch::Receiver<BTreeMap<String, Fact>>,
    _asking: AbortOnDropHandle<()>,
}

impl Answers {
    /// Begins to ask the queries of a rollout's gates; `None` where there are none.
    pub(super) fn begin(prometheus: &Arc<Prometheus>, stored: &Stored) -> Option<Self> {
        let of_plan = queries(stored.rollout.plan());
        let queries: Vec<(String, String)> =
            of_plan.map(|(name, query)| (name.to_owned(), query.to_owned())).collect();
        if queries.is_empty() {
            return None;
        }
        let prometheus = Arc::clone(prometheus);
        let (sender, given) = watch::channel(BTreeMap::new());
        let asking = async move {
            loop {
                let asked = join_all(queries.iter().map(|(_, query)| prometheus.ask(query))).await;
                // What one gave before, and gives no more, says nothing of now.
                let fact = |((name, _), asked): (&(String, String), Result<f64, String>)| match asked {
                    Ok(number) => Some((name.clone(), Fact::Value(number))),
                    Err(why) => {
                        tracing::debug!(name, "a query of a rollout gives nothing: {why}");
                        None
                    }
                };
                sender.send_replace(queries.iter().zip(asked).filter_map(fact).collect());
                tokio::time::sleep(ASK).await;
            }
        };
        Some(Self { given, _asking: AbortOnDropHandle::new(tokio::spawn(asking)) })
    }

    /// By the names of the gates.
    pub(super) fn given(&self) -> BTreeMap<String, Fact> {
        self.given.borrow().clone()
    }
}

/// The names of a plan's queries that give a number, and why others give none.
pub(super) async fn try_all(prometheus: Option<&Prometheus>, plan: &Plan) -> (Vec<String>, Vec<String>) {
    let mut others: BTreeMap<&str, &str> = BTreeMap::new();
    let wanted: Vec<(&str, &str, bool)> = queries(plan)
        .take(MAX_QUERIES)
        .map(|(name, query)| {
            let is_taken = [ACCURACY, SHADOW_DISAGREEMENT, DRIFT].contains(&name);
            (name, query, is_taken || *others.entry(name).or_insert(query) != query)
        })
        .collect();
    let asked = wanted.iter().map(|(_, query, is_taken)| async move {
        match prometheus {
            _ if *is_taken => Err("its name is that of something else".to_owned()),
            Some(prometheus) => prometheus.ask(query).await,
            None => Err("nobody can be asked: the server's configuration has no `prometheus.url`".to_owned()),
        }
    });
    let (mut given, mut silent) = (Vec::new(), Vec::new());
    for ((name, ..), asked) in wanted.iter().zip(join_all(asked).await) {
        match asked {
            Ok(_) => given.push((*name).to_owned()),
            Err(why) => silent.push(format!("query `{}`: {why}", abbreviate(name))),
        }
    }
    (given, silent)
}

/// The queries of a plan's gates, by name.
fn queries(plan: &Plan) -> impl Iterator<Item = (&str, &str)> {
    plan.gates.iter().filter_map(|gate| match gate {
        Gate::Prometheus { name, query, .. } => Some((name.as_str(), query.as_str())),
        _ => None,
    })
}
