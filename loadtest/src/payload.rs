use crate::Result;
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use sconce_client::proto::model_metadata_response::TensorMetadata;
use sconce_client::{Client, Code, InferRequest, Options, Tensor, tensor};
use std::str::FromStr;

/// What the requests look like.
pub(crate) struct Source {
    pub(crate) model: String,
    pub(crate) version: String,
    /// The input to fill, when the model's metadata need not be asked.
    pub(crate) input: Option<String>,
    pub(crate) kind: Kind,
    /// 0: the model's default.
    pub(crate) priority: u64,
    pub(crate) pool: usize,
    pub(crate) seed: u64,
}

/// The tensor in each request.
pub(crate) enum Kind {
    Fp32 { rows: usize, cols: usize },
    Text(Lengths),
    TokenIds(Lengths),
}

/// A range of lengths in tokens, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lengths {
    min: usize,
    max: usize,
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        match (min.parse(), max.parse()) {
            (Ok(min), Ok(max)) if 1 <= min && min <= max => Ok(Self { min, max }),
            _ => Err("expected MIN or MIN-MAX, such as 20 or 8-32".into()),
        }
    }
}

impl Lengths {
    fn pick(self, random: &mut fastrand::Rng) -> usize {
        random.usize(self.min..=self.max)
    }
}

/// Ids that are ordinary tokens in the vocabularies of the BERT family.
const TOKEN_IDS: std::ops::Range<i64> = 1000..2000;
/// The special tokens that a tokenizer adds to a sentence.
const SPECIAL_TOKENS: usize = 2;
/// Words that are one token each in the usual English vocabularies.
const WORDS: [&str; 64] = [
    "the", "a", "old", "new", "small", "large", "good", "long", "high", "young", "early", "black", "white",
    "red", "open", "clear", "house", "water", "city", "school", "music", "world", "river", "road", "light",
    "money", "story", "door", "family", "paper", "train", "garden", "runs", "takes", "gives", "found",
    "made", "kept", "built", "left", "wrote", "moved", "began", "holds", "to", "from", "with", "under",
    "over", "near", "after", "before", "in", "on", "and", "but", "while", "where", "today", "again", "often",
    "always", "never", "soon",
];

impl Source {
    /// The pool of messages, each encoded and length-prefixed.
    pub(crate) fn messages(&self, addr: &str) -> Result<Vec<Bytes>> {
        let (input, dims) = match &self.input {
            Some(input) => (input.clone(), 1),
            None => self.ask_for_input(addr)?,
        };
        let mut random = fastrand::Rng::with_seed(self.seed);
        (0..self.pool.max(1))
            .map(|_| {
                let tensor = self.kind.tensor(dims, &mut random)?;
                let request = InferRequest::new(&self.model).version(&self.version).input(&input, tensor);
                let request = if self.priority == 0 { request } else { request.priority(self.priority) };
                let message = request.into_message();
                let length = message.encoded_len();
                let mut framed = BytesMut::with_capacity(5 + length);
                framed.put_u8(0);
                framed.put_u32(length.try_into()?);
                message.encode(&mut framed)?;
                Ok(framed.freeze())
            })
            .collect()
    }

    /// Name and number of dimensions of the first input that takes this kind of tensor.
    fn ask_for_input(&self, addr: &str) -> Result<(String, usize)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let metadata = runtime
            .block_on(async {
                Client::connect(addr, Options::default())
                    .await?
                    .model_metadata(&self.model, &self.version)
                    .await
            })
            .map_err(|error| {
                let hint = if error.code() == Code::Unimplemented { ": name it with --input" } else { "" };
                format!("inputs of model `{}`: {error}{hint}", self.model)
            })?;
        let fits = |input: &&TensorMetadata| match self.kind {
            Kind::Fp32 { .. } => input.datatype == "FP32",
            Kind::Text(_) => input.datatype == "BYTES",
            Kind::TokenIds(_) => input.datatype == "INT64" && input.name == "input_ids",
        };
        let input = metadata.inputs.iter().find(fits);
        let input = input.ok_or_else(|| format!("model `{}` has no input for this tensor", self.model))?;
        Ok((input.name.clone(), input.shape.len()))
    }
}

impl Kind {
    fn tensor(&self, dims: usize, random: &mut fastrand::Rng) -> Result<Tensor> {
        Ok(match *self {
            Self::Fp32 { rows, cols } => {
                let values: Vec<f32> = (0..rows * cols).map(|_| random.f32() * 2.0 - 1.0).collect();
                tensor::fp32(&[rows, cols], &values)?
            }
            Self::Text(lengths) => {
                let count = lengths.pick(random).saturating_sub(SPECIAL_TOKENS).max(1);
                let words: Vec<&str> = (0..count).filter_map(|_| random.choice(WORDS)).collect();
                tensor::bytes(if dims == 2 { &[1, 1] } else { &[1] }, &[words.join(" ")])?
            }
            Self::TokenIds(lengths) => {
                let ids: Vec<i64> = (0..lengths.pick(random)).map(|_| random.i64(TOKEN_IDS)).collect();
                tensor::int64(&[1, ids.len()], &ids)?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_messages() {
        let messages = |seed| {
            let kind = Kind::TokenIds("8-32".parse().unwrap());
            let input = Some("input_ids".into());
            Source { model: "m".into(), version: String::new(), input, kind, priority: 0, pool: 16, seed }
                .messages("")
                .unwrap()
        };
        assert_eq!(messages(1), messages(1));
        assert_ne!(messages(1), messages(2));
        let lengths: std::collections::BTreeSet<_> = messages(1).iter().map(Bytes::len).collect();
        assert!(lengths.len() > 4, "{lengths:?}");
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!("20".parse(), Ok(Lengths { min: 20, max: 20 }));
        for bad in ["", "0", "9-8", "a", "1-", "-3"] {
            assert!(bad.parse::<Lengths>().is_err(), "{bad:?}");
        }
    }
}
