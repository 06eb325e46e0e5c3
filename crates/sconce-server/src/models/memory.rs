//! What models hold of each device's memory, and the bound on it.

use super::cores::Pins;
use sconce_core::{Backend, DeviceId, Inputs, LoadedModel, ModelInput, Preparation, Result, Signature};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::DropGuard;

/// One device's account, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) used: u64,
    /// The most; `None`: no bound.
    pub(crate) limit: Option<u64>,
}

/// The accounts of all devices. What is counted is weights and tables, not what instances compute in.
#[derive(Debug)]
pub(crate) struct Memory(Mutex<BTreeMap<DeviceId, Account>>);

impl Memory {
    pub(crate) fn new(limits: &BTreeMap<DeviceId, u64>) -> Arc<Self> {
        let account =
            |(device, limit): (&DeviceId, &u64)| (*device, Account { used: 0, limit: Some(*limit) });
        Arc::new(Self(Mutex::new(limits.iter().map(account).collect())))
    }

    pub(crate) fn accounts(&self) -> Vec<(DeviceId, Account)> {
        self.lock().iter().map(|(device, account)| (*device, *account)).collect()
    }

    /// Whether any device's memory is bounded.
    pub(crate) fn is_bounded(&self) -> bool {
        self.lock().values().any(|account| account.limit.is_some())
    }

    /// `bytes` of `device` for as long as the lease lives; `Err` gives the account they do not fit into.
    pub(crate) fn lease(self: &Arc<Self>, device: DeviceId, bytes: u64) -> Result<Lease, Account> {
        let mut lease = Lease { memory: Arc::clone(self), device, bytes: 0 };
        lease.resize(bytes)?;
        Ok(lease)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Account>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model's share of its device's memory.
#[derive(Debug)]
pub(crate) struct Lease {
    memory: Arc<Memory>,
    device: DeviceId,
    bytes: u64,
}

impl Lease {
    /// Makes the lease one of `bytes`; one that does not fit stays as it was, and `Err` gives the account.
    pub(crate) fn resize(&mut self, bytes: u64) -> Result<(), Account> {
        let mut accounts = self.memory.lock();
        let account = accounts.entry(self.device).or_default();
        let used = account.used.saturating_sub(self.bytes).saturating_add(bytes);
        if bytes > self.bytes && account.limit.is_some_and(|limit| used > limit) {
            return Err(*account);
        }
        account.used = used;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(account) = self.memory.lock().get_mut(&self.device) {
            account.used = account.used.saturating_sub(self.bytes);
        }
    }
}

/// A model and its share of memory and cores, which are given back when the last who use it are gone: its worker threads included.
pub(crate) struct Leased {
    // In this order they are dropped: the memory, its account, and then whoever waits for it is told.
    model: Arc<dyn LoadedModel>,
    _lease: Lease,
    pins: Option<Arc<Pins>>,
    _gone: DropGuard,
}

impl Leased {
    pub(super) fn new(
        model: Arc<dyn LoadedModel>,
        lease: Lease,
        pins: Option<Arc<Pins>>,
        gone: DropGuard,
    ) -> Self {
        Self { model, _lease: lease, pins, _gone: gone }
    }
}

impl LoadedModel for Leased {
    fn signature(&self) -> &Signature {
        self.model.signature()
    }
    fn memory_bytes(&self) -> usize {
        self.model.memory_bytes()
    }
    fn is_padded(&self) -> bool {
        self.model.is_padded()
    }
    fn is_deterministic(&self) -> bool {
        self.model.is_deterministic()
    }
    fn preparation(&self, inputs: &Inputs) -> Preparation {
        self.model.preparation(inputs)
    }
    fn prepare(&self, inputs: Inputs) -> Result<ModelInput> {
        self.model.prepare(inputs)
    }
    fn instance(&self) -> Result<Box<dyn Backend>> {
        // Before it starts threads of its own: they run where this one does.
        self.pins.as_ref().map_or(Ok(()), |pins| pins.bind())?;
        self.model.instance()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_while_it_lives_and_never_goes_over_the_limit() {
        let memory = Memory::new(&BTreeMap::from([(DeviceId::Cpu, 100)]));
        let mut first = memory.lease(DeviceId::Cpu, 60).unwrap();
        assert_eq!(memory.lease(DeviceId::Cpu, 41).unwrap_err(), Account { used: 60, limit: Some(100) });
        first.resize(100).unwrap();
        assert!(first.resize(101).is_err() && first.bytes == 100);
        first.resize(30).unwrap();
        let second = memory.lease(DeviceId::Cpu, 70).unwrap();
        drop(first);
        assert_eq!(memory.accounts(), [(DeviceId::Cpu, Account { used: 70, limit: Some(100) })]);
        drop(second);
        assert_eq!(memory.accounts()[0].1.used, 0);
        let unbounded = memory.lease(DeviceId::Cuda(0), u64::MAX).unwrap();
        assert_eq!(memory.accounts()[1].1, Account { used: u64::MAX, limit: None });
        drop(unbounded);
    }
}
