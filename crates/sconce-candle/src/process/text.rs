use crate::Problems;
use crate::files::Folder;
use sconce_core::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{Tokenizer, TruncationParams};

/// A tokenizer as its folder configures it: special tokens added, long text truncated, nothing padded.
pub(crate) struct Text {
    tokenizer: Tokenizer,
    max_tokens: usize,
    max_text_bytes: usize,
    file_bytes: usize,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("max_tokens", &self.max_tokens).finish_non_exhaustive()
    }
}

/// What bounds a text.
pub(crate) struct TextBounds {
    /// As `model.toml` says, if it does.
    pub(crate) max_tokens: Option<usize>,
    /// The most tokens the model has positions for.
    pub(crate) positions: usize,
    /// Rows of the model's table of words.
    pub(crate) vocab_size: usize,
    pub(crate) max_text_bytes: usize,
}

impl Text {
    /// Reads `tokenizer.json`; `None` when there is none, or it is wrong (which is reported).
    pub(crate) fn open(folder: &Folder, bounds: &TextBounds, problems: &mut Problems) -> Option<Self> {
        let content = problems.keep(folder.read("tokenizer.json"))??;
        let parsed = guard(|| Tokenizer::from_bytes(&content));
        let mut tokenizer =
            problems.keep(parsed.map_err(|e| format!("tokenizer.json: not a tokenizer: {e}")))?;
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if largest >= bounds.vocab_size {
            problems.push(format!(
                "tokenizer.json: expected token ids below the model's vocabulary of {}, got {largest}",
                bounds.vocab_size
            ));
        }
        tokenizer.with_padding(None);
        let own = tokenizer.get_truncation().map(|truncation| truncation.max_length);
        let direction = tokenizer.get_truncation().map(|truncation| truncation.direction).unwrap_or_default();
        let configured = folder_max_tokens(folder, own, problems);
        let max_tokens = bounds.max_tokens.or(configured).unwrap_or(usize::MAX).min(bounds.positions);
        let truncation =
            TruncationParams { max_length: max_tokens, direction, ..TruncationParams::default() };
        // Refused here, for the tokenizer would take their difference without looking.
        let special = guard(|| {
            tokenizer.with_truncation(None)?;
            tokenizer.encode("", true)
        });
        let special =
            problems.keep(special.map_err(|e| format!("tokenizer.json: cannot encode: {e}")))?.len();
        if special >= max_tokens {
            problems.push(format!(
                "tokenizer.json: adds {special} special tokens: expected fewer than a row's {max_tokens} tokens"
            ));
            return None;
        }
        let set = guard(|| tokenizer.with_truncation(Some(truncation)).map(|_| ()));
        problems
            .keep(set.map_err(|e| format!("tokenizer.json: cannot truncate to {max_tokens} tokens: {e}")))?;
        Some(Self { tokenizer, max_tokens, max_text_bytes: bounds.max_text_bytes, file_bytes: content.len() })
    }

    /// The tokens of one text and their types.
    pub(crate) fn encode(&self, text: &[u8]) -> Result<(Vec<u32>, Vec<u32>)> {
        if text.len() > self.max_text_bytes {
            let got = text.len();
            return Err(Error::invalid(format!(
                "input `text`: expected at most {} bytes, got {got}",
                self.max_text_bytes
            )));
        }
        let text = std::str::from_utf8(text).map_err(|e| {
            Error::invalid(format!("input `text`: expected UTF-8, got other bytes at {}", e.valid_up_to()))
        })?;
        let encoding = guard(|| self.tokenizer.encode_fast(text, true))
            .map_err(|e| Error::internal("the text could not be tokenized").with_source(e))?;
        if encoding.len() > self.max_tokens {
            return Err(Error::internal("the tokenizer gave more tokens than it was told to"));
        }
        Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()))
    }

    /// About what it holds in memory: its vocabulary, forwards and backwards.
    pub(crate) fn memory_bytes(&self) -> usize {
        2 * self.file_bytes
    }
}

/// Runs third-party code on a file or a text of strangers: its panics become errors.
fn guard<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizer panicked".to_owned()),
    }
}

/// How many tokens the folder lets a text have: what sentence-transformers was told, else the tokenizer's own
/// truncation, else its `model_max_length`.
fn folder_max_tokens(folder: &Folder, own: Option<usize>, problems: &mut Problems) -> Option<usize> {
    let sentence = read_length(folder, "sentence_bert_config.json", "max_seq_length", problems);
    sentence.or(own).or_else(|| read_length(folder, "tokenizer_config.json", "model_max_length", problems))
}

fn read_length(folder: &Folder, file: &str, key: &str, problems: &mut Problems) -> Option<usize> {
    let json = folder.json(file, problems)?;
    let value = json.get(key).filter(|value| !value.is_null())?;
    // "No limit" is written as a number beyond any integer.
    match value.as_f64().filter(|length| *length >= 1.0) {
        Some(length) => Some(length as usize),
        None => {
            let got = value.to_string();
            problems
                .push(format!("{file}: `{key}`: expected at least 1, got {}", sconce_core::abbreviate(&got)));
            None
        }
    }
}
