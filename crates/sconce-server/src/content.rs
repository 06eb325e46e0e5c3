//! What content may leave the request path: decided here and nowhere else. Whatever keeps tensors beyond their request (a log, an
//! example, a review, a recording, a reference row) takes [`Kept`] ones, and only this module makes those.

use crate::traffic::RouteKey;
use sconce_core::{DataPolicy, DataType, Keep, Signature, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

/// Decides by a model's policy, and by whether the server may keep content as it is.
#[derive(Debug)]
pub(crate) struct Content {
    allow_plaintext: bool,
    told: AtomicBool,
}

/// A tensor that may be kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kept {
    name: String,
    datatype: DataType,
    shape: Vec<usize>,
    tensor: Option<Tensor>,
}

impl Content {
    pub(crate) fn new(allow_plaintext: bool) -> Self {
        Self { allow_plaintext, told: AtomicBool::new(false) }
    }

    /// What may be kept of a request to a model of this policy.
    pub(crate) fn inputs(&self, model: &str, policy: &DataPolicy, tensors: &[(String, Tensor)]) -> Vec<Kept> {
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        self.keep(model, policy, &policy.inputs, named)
    }

    /// What may be kept of an answer of a model of this policy: `tensors` are in the order of the signature's outputs.
    pub(crate) fn outputs(
        &self,
        model: &str,
        policy: &DataPolicy,
        signature: &Signature,
        tensors: &[Tensor],
    ) -> Vec<Kept> {
        let named = signature.outputs.iter().map(|spec| spec.name.as_str()).zip(tensors);
        self.keep(model, policy, &policy.outputs, named)
    }

    /// What may be kept of what a request to a model of this policy says where its route looks, such as whose it is: all of it, where
    /// all its inputs may be, else nothing.
    pub(crate) fn keys(&self, policy: &DataPolicy, keys: Vec<RouteKey>) -> Vec<RouteKey> {
        if self.allow_plaintext && policy.inputs == Keep::All { keys } else { Vec::new() }
    }

    fn keep<'a>(
        &self,
        model: &str,
        policy: &DataPolicy,
        keep: &Keep,
        tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    ) -> Vec<Kept> {
        if *keep == Keep::Nothing {
            return Vec::new();
        }
        if !self.allow_plaintext {
            if !self.told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    model,
                    "its data_policy keeps content, and this server has no encryption at rest: nothing is kept without \
                     `allow_plaintext = true`; this is said once"
                );
            }
            return Vec::new();
        }
        tensors
            .filter(|(name, _)| keep.has(name))
            .map(|(name, tensor)| Kept::new(policy, name, tensor))
            .collect()
    }
}

impl Kept {
    fn new(policy: &DataPolicy, name: &str, tensor: &Tensor) -> Self {
        let fits = tensor.data().len() <= policy.max_tensor_bytes;
        Self {
            name: name.to_owned(),
            datatype: tensor.datatype(),
            shape: tensor.shape().to_vec(),
            tensor: fits.then(|| tensor.clone()),
        }
    }

    /// Its name in the signature.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    pub(crate) fn datatype(&self) -> DataType {
        self.datatype
    }

    /// Its dimensions.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its values; `None` where they are more than the policy keeps of one tensor.
    pub(crate) fn tensor(&self) -> Option<&Tensor> {
        self.tensor.as_ref()
    }

    /// Bytes it holds once it is [`detached`](Self::detached).
    pub(crate) fn bytes(&self) -> usize {
        self.name.len()
            + self.shape.len() * size_of::<usize>()
            + self.tensor.as_ref().map_or(0, |t| t.data().len())
    }

    /// The same over a copy of its values, which does not hold the whole message that they came in.
    pub(crate) fn detached(self) -> Self {
        Self { tensor: self.tensor.map(|tensor| tensor.detached()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sconce_core::TensorSpec;

    fn tensor(bytes: usize) -> Tensor {
        Tensor::new(DataType::Uint8, vec![1, bytes], vec![7; bytes].into()).unwrap()
    }

    fn names(kept: &[Kept]) -> Vec<(&str, bool)> {
        kept.iter().map(|kept| (kept.name(), kept.tensor().is_some())).collect()
    }

    #[test]
    fn nothing_is_kept_that_the_policy_and_the_server_do_not_both_allow() {
        let inputs = [("a".to_owned(), tensor(3)), ("b".to_owned(), tensor(5))];
        let signature = Signature {
            inputs: Vec::new(),
            outputs: ["x", "y"].map(|name| TensorSpec::new(name, DataType::Uint8, &[None, None])).to_vec(),
            max_batch_size: 1,
        };
        let outputs = [tensor(1), tensor(2)];
        let of = |allow: bool, policy: &DataPolicy| {
            let content = Content::new(allow);
            let inputs = content.inputs("m", policy, &inputs);
            (inputs, content.outputs("m", policy, &signature, &outputs))
        };
        for word in ["none", "outputs", "all"] {
            assert_eq!(of(false, &DataPolicy::of_word(word).unwrap()), (vec![], vec![]), "{word}");
        }
        assert_eq!(of(true, &DataPolicy::default()), (vec![], vec![]));
        let (none, kept) = of(true, &DataPolicy::of_word("outputs").unwrap());
        assert_eq!((names(&none), names(&kept)), (vec![], vec![("x", true), ("y", true)]));
        let policy = DataPolicy {
            inputs: Keep::Only(["b".to_owned()].into()),
            outputs: Keep::All,
            max_tensor_bytes: 1,
        };
        let (inputs, outputs) = of(true, &policy);
        assert_eq!((names(&inputs), names(&outputs)), (vec![("b", false)], vec![("x", true), ("y", false)]));
        assert_eq!((inputs[0].shape(), inputs[0].datatype()), (&[1, 5][..], DataType::Uint8));

        let key = || vec![RouteKey { from: "metadata", name: "user".to_owned(), value: "ada".to_owned() }];
        let all = DataPolicy::of_word("all").unwrap();
        assert_eq!(Content::new(true).keys(&all, key()), key());
        assert!(Content::new(false).keys(&all, key()).is_empty());
        for policy in [policy, DataPolicy::of_word("outputs").unwrap(), DataPolicy::default()] {
            assert!(Content::new(true).keys(&policy, key()).is_empty(), "{policy:?}");
        }
    }
}
