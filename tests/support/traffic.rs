use sconce_client::{Client, Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::task::JoinSet;

/// Lanes that ask again as soon as they have an answer. A lane ends at its first failure, or when told to.
pub(crate) struct Traffic {
    lanes: JoinSet<Option<Error>>,
    answered: Arc<AtomicUsize>,
    failed: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Traffic {
    /// One lane for each client; `ask` gets the number of the question.
    pub(crate) fn start<F, A>(clients: Vec<Client>, ask: F) -> Self
    where
        F: Fn(Client, usize) -> A + Clone + Send + 'static,
        A: Future<Output = Result<()>> + Send + 'static,
    {
        let (answered, failed, stop) = <(Arc<AtomicUsize>, Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let mut lanes = JoinSet::new();
        for client in clients {
            let ask = ask.clone();
            let (answered, failed, stop) = (Arc::clone(&answered), Arc::clone(&failed), Arc::clone(&stop));
            lanes.spawn(async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    if let Err(error) = ask(client.clone(), number).await {
                        failed.store(true, Ordering::Relaxed);
                        return Some(error);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                None
            });
        }
        Self { lanes, answered, failed, stop }
    }

    /// Waits until `count` more questions are answered, or a lane has failed.
    pub(crate) async fn flow(&self, count: usize) {
        let enough = self.answered.load(Ordering::Relaxed) + count;
        let flowed =
            async || self.answered.load(Ordering::Relaxed) >= enough || self.failed.load(Ordering::Relaxed);
        super::until("answers", flowed).await;
    }

    /// Tells the lanes to end and gives the failures of those that ended before.
    pub(crate) async fn stop(self) -> Vec<Error> {
        self.stop.store(true, Ordering::Relaxed);
        self.failures().await
    }

    /// Waits until every lane has failed, and gives the failures.
    pub(crate) async fn failures(self) -> Vec<Error> {
        super::patiently("the end of the traffic", self.lanes.join_all())
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}
