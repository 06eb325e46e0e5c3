use crate::Result;
use sconce_client::{Client, Options};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// Asks a server what it has executed so far.
pub(crate) struct Statistics {
    runtime: Runtime,
    client: Client,
    model: String,
    version: String,
}

/// Rows answered and batches run, since the model was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Executed {
    rows: u64,
    batches: u64,
}

/// The server may be busy with the load.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Statistics {
    pub(crate) fn connect(addr: &str, model: &str, version: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let options = Options { timeout: Some(TIMEOUT), ..Options::default() };
        let client = runtime.block_on(Client::connect(addr, options))?;
        let statistics = Self { runtime, client, model: model.to_owned(), version: version.to_owned() };
        // A server without statistics should say so now, not after the run.
        statistics.executed()?;
        Ok(statistics)
    }

    /// Over all of the model's versions when none was named.
    pub(crate) fn executed(&self) -> Result<Executed> {
        let models = self.runtime.block_on(self.client.model_statistics(&self.model, &self.version));
        let models = models.map_err(|error| format!("statistics of model `{}`: {error}", self.model))?;
        Ok(Executed {
            rows: models.iter().map(|model| model.inference_count).sum(),
            batches: models.iter().map(|model| model.execution_count).sum(),
        })
    }
}

impl Executed {
    /// Rows a batch since `before`; `None` when nothing ran.
    pub(crate) fn mean_batch_size(self, before: Self) -> Option<f64> {
        let (rows, batches) =
            (self.rows.checked_sub(before.rows)?, self.batches.checked_sub(before.batches)?);
        (batches > 0).then_some(rows as f64 / batches as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::Executed;

    #[test]
    fn a_mean_needs_batches() {
        let before = Executed { rows: 10, batches: 5 };
        assert_eq!(Executed { rows: 40, batches: 15 }.mean_batch_size(before), Some(3.0));
        assert_eq!(before.mean_batch_size(before), None);
        assert_eq!(Executed { rows: 0, batches: 0 }.mean_batch_size(before), None);
    }
}
