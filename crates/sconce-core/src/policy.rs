use crate::Signature;
use std::collections::BTreeSet;

/// What of a model's tensors may leave the request path: for its log, for examples, for people who review, for recordings and
/// reference rows. One policy governs them all.
///
/// There is no degree that keeps digests in place of values: those of few possible values are as good as the values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataPolicy {
    /// Of its inputs.
    pub inputs: Keep,
    /// Of its outputs.
    pub outputs: Keep,
    /// A tensor of more bytes is kept as its name, datatype and shape alone. Default 64 KiB, up to 64 MiB.
    pub max_tensor_bytes: usize,
}

/// Which tensors may be kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Keep {
    /// None.
    #[default]
    Nothing,
    /// All.
    All,
    /// Those of these names.
    Only(BTreeSet<String>),
}

impl Default for DataPolicy {
    /// Nothing is kept.
    fn default() -> Self {
        Self {
            inputs: Keep::Nothing,
            outputs: Keep::Nothing,
            max_tensor_bytes: Self::DEFAULT_MAX_TENSOR_BYTES,
        }
    }
}

impl DataPolicy {
    /// See [`max_tensor_bytes`](Self::max_tensor_bytes).
    pub const DEFAULT_MAX_TENSOR_BYTES: usize = 64 << 10;

    /// The policy of one word: `none`, `outputs` or `all`.
    pub fn of_word(word: &str) -> Option<Self> {
        let (inputs, outputs) = match word {
            "none" => (Keep::Nothing, Keep::Nothing),
            "outputs" => (Keep::Nothing, Keep::All),
            "all" => (Keep::All, Keep::All),
            _ => return None,
        };
        Some(Self { inputs, outputs, ..Self::default() })
    }

    /// Whether anything is kept at all.
    pub fn keeps_content(&self) -> bool {
        self.inputs != Keep::Nothing || self.outputs != Keep::Nothing
    }

    /// What the policy names and `signature` has not: one problem each.
    pub fn problems(&self, signature: &Signature) -> Vec<String> {
        let inputs: BTreeSet<&str> = signature.inputs.iter().map(|spec| spec.name.as_str()).collect();
        let outputs: BTreeSet<&str> = signature.outputs.iter().map(|spec| spec.name.as_str()).collect();
        let mut problems = Vec::new();
        for (what, keep, known) in [("inputs", &self.inputs, inputs), ("outputs", &self.outputs, outputs)] {
            let Keep::Only(names) = keep else { continue };
            for name in names.iter().filter(|name| !known.contains(name.as_str())) {
                let known: Vec<&str> = known.iter().copied().collect();
                let name = crate::abbreviate(name);
                problems.push(format!("{what}: expected names of {}, got {name:?}", known.join(", ")));
            }
        }
        problems
    }
}

impl Keep {
    /// Whether the tensor `name` may be kept.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_is_kept_and_the_default_is_nothing() {
        let of =
            |word| DataPolicy::of_word(word).map(|policy| (policy.inputs.has("x"), policy.outputs.has("x")));
        assert_eq!(of("none"), Some((false, false)));
        assert_eq!(of("outputs"), Some((false, true)));
        assert_eq!(of("all"), Some((true, true)));
        assert_eq!(of("some"), None);
        assert_eq!(DataPolicy::default(), DataPolicy::of_word("none").unwrap());
        assert!(!DataPolicy::default().keeps_content());
        assert!(DataPolicy::of_word("outputs").unwrap().keeps_content());
        let only = Keep::Only(["x".to_owned()].into());
        assert!(only.has("x") && !only.has("y"));
    }
}
