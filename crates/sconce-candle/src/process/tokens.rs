use crate::process::text::Text;
use sconce_core::{DataType, Error, Inputs, ModelInput, Preparation, Result, Tensor, TensorSpec};

/// The most token ids that are checked on the thread that serves the connection.
const INLINE_TOKENS: usize = 16_384;

/// Turns texts, or token ids, into the tokens a BERT-like model computes: padding left out, positions kept.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) text: Option<Text>,
    pub(crate) vocab_size: usize,
    /// Rows of the table of positions.
    pub(crate) positions: usize,
    /// Rows of the table of token types, 0 where there is none.
    pub(crate) token_types: usize,
    /// Where positions count tokens that are not padding, from this id on (RoBERTa); otherwise they are
    /// columns.
    pub(crate) padding_id: Option<usize>,
    /// Whether the answer is read at a row's first token, which must not be masked then.
    pub(crate) reads_first: bool,
}

/// The tokens of a request's rows, one row after another.
#[derive(Default)]
struct Rows {
    ids: Vec<i64>,
    types: Vec<i64>,
    positions: Vec<i64>,
    row_tokens: Vec<usize>,
}

impl Tokens {
    /// The inputs a request may give: text, or token ids.
    pub(crate) fn inputs(&self) -> Vec<TensorSpec> {
        let mut inputs = Vec::with_capacity(4);
        if self.text.is_some() {
            inputs.push(TensorSpec::new("text", DataType::Bytes, &[None, Some(1)]));
        }
        let form = inputs.len();
        let matrix = |name, optional| TensorSpec {
            form,
            optional,
            ..TensorSpec::new(name, DataType::Int64, &[None, None])
        };
        inputs.push(matrix("input_ids", false));
        inputs.push(matrix("attention_mask", true));
        if self.token_types > 0 {
            inputs.push(matrix("token_type_ids", true));
        }
        inputs
    }

    /// What [`prepare`](Self::prepare) takes: three numbers of eight bytes a token, while they are laid out once more. A text
    /// has at most a token a byte, the special ones, and no more than the model has positions for.
    pub(crate) fn preparation(&self, inputs: &Inputs) -> Preparation {
        const SPECIAL_TOKENS: usize = 4;
        let is_text = self.text.is_some() && inputs.has(0);
        let tokens = if is_text {
            (inputs.bytes() + inputs.rows() * SPECIAL_TOKENS).min(inputs.rows() * self.positions)
        } else {
            inputs.bytes() / size_of::<i64>()
        };
        Preparation {
            bytes: tokens.saturating_mul(6 * size_of::<i64>()),
            is_heavy: is_text || tokens > INLINE_TOKENS,
        }
    }

    /// Three INT64 tensors over all tokens of the request: ids, types, positions.
    pub(crate) fn prepare(&self, mut inputs: Inputs) -> Result<ModelInput> {
        let count = inputs.rows();
        let mut rows = Rows::default();
        let first = match &self.text {
            None => 0,
            Some(text) => match inputs.take(0) {
                None => 1,
                Some(tensor) => {
                    for row in tensor.bytes_elements() {
                        self.push_text(text, row, &mut rows)?;
                    }
                    return rows.into_input(count);
                }
            },
        };
        let ids = inputs.take(first).ok_or_else(|| Error::invalid("input `input_ids` is missing"))?;
        let mask = like_ids("attention_mask", inputs.take(first + 1), &ids)?;
        let types = like_ids("token_type_ids", inputs.take(first + 2), &ids)?;
        self.push_ids(&ids, mask.as_deref(), types.as_deref(), &mut rows)?;
        rows.into_input(count)
    }

    fn push_text(&self, text: &Text, row: &[u8], rows: &mut Rows) -> Result<()> {
        let (ids, types) = text.encode(row)?;
        if ids.is_empty() {
            return Err(Error::invalid("input `text`: expected at least one token, got none"));
        }
        let positions = self.row_positions(ids.iter().map(|id| i64::from(*id)));
        let wrong = |of: &str| Error::internal(format!("the tokenizer gave a {of} the model does not have"));
        for ((id, kind), position) in ids.iter().zip(types).zip(positions) {
            // Models without token types are fed by tokenizers that give them all the same.
            let kind = if self.token_types > 1 { kind as usize } else { 0 };
            if *id as usize >= self.vocab_size {
                return Err(wrong("token"));
            }
            if kind >= self.token_types.max(1) {
                return Err(wrong("token type"));
            }
            if position >= self.positions {
                return Err(wrong("position"));
            }
            rows.push(i64::from(*id), kind as i64, position as i64);
        }
        rows.row_tokens.push(ids.len());
        Ok(())
    }

    fn push_ids(
        &self,
        ids: &Tensor,
        mask: Option<&[i64]>,
        types: Option<&[i64]>,
        rows: &mut Rows,
    ) -> Result<()> {
        let &[_, columns] = ids.shape() else {
            return Err(Error::invalid("input `input_ids`: expected a matrix"));
        };
        if columns == 0 {
            return Err(Error::invalid("input `input_ids`: expected at least one token a row, got 0"));
        }
        let ids: Vec<i64> = ids.i64_values().collect();
        for (row, ids) in ids.chunks_exact(columns).enumerate() {
            let own = row * columns..(row + 1) * columns;
            let before = rows.ids.len();
            for (column, position) in self.row_positions(ids.iter().copied()).enumerate() {
                let at = own.start + column;
                let kind = types.map_or(0, |types| types[at]);
                in_range("input_ids", ids[column], self.vocab_size, row, column)?;
                in_range("token_type_ids", kind, self.token_types.max(1), row, column)?;
                let used = mask.map_or(1, |mask| mask[at]);
                in_range("attention_mask", used, 2, row, column)?;
                if used == 0 {
                    if column == 0 && self.reads_first {
                        return Err(Error::invalid(format!(
                            "input `attention_mask`: row {row}: expected a first token that is not masked: \
                             this model's answer is read there"
                        )));
                    }
                    continue;
                }
                if position >= self.positions {
                    let most = self.positions - self.padding_id.map_or(0, |id| id + 1);
                    return Err(Error::invalid(format!(
                        "input `input_ids`: row {row}: expected at most {most} tokens, got {columns}"
                    )));
                }
                rows.push(ids[column], kind, position as i64);
            }
            let kept = rows.ids.len() - before;
            if kept == 0 {
                return Err(Error::invalid(format!(
                    "input `attention_mask`: row {row}: expected at least one 1, got zeros only"
                )));
            }
            rows.row_tokens.push(kept);
        }
        Ok(())
    }

    /// The positions of a whole row's tokens, masked ones included: what the reference implementations use.
    fn row_positions(&self, ids: impl Iterator<Item = i64>) -> impl Iterator<Item = usize> {
        let mut seen = 0;
        ids.enumerate().map(move |(column, id)| match self.padding_id {
            None => column,
            Some(padding) if id == padding as i64 => padding,
            Some(padding) => {
                seen += 1;
                padding + seen
            }
        })
    }
}

impl Rows {
    fn push(&mut self, id: i64, kind: i64, position: i64) {
        self.ids.push(id);
        self.types.push(kind);
        self.positions.push(position);
    }

    fn into_input(self, rows: usize) -> Result<ModelInput> {
        let tensor = |values: &[i64]| {
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Tensor::new(DataType::Int64, vec![values.len()], data.into())
        };
        let tensors = vec![tensor(&self.ids)?, tensor(&self.types)?, tensor(&self.positions)?];
        Ok(ModelInput { tensors, rows, row_tokens: self.row_tokens })
    }
}

/// The values of an optional input that must have the shape of `input_ids`.
fn like_ids(name: &str, tensor: Option<Tensor>, ids: &Tensor) -> Result<Option<Vec<i64>>> {
    match tensor {
        Some(tensor) if tensor.shape() != ids.shape() => Err(Error::invalid(format!(
            "input `{name}`: expected shape {:?} like `input_ids`, got {:?}",
            ids.shape(),
            tensor.shape()
        ))),
        other => Ok(other.map(|tensor| tensor.i64_values().collect())),
    }
}

fn in_range(name: &str, value: i64, end: usize, row: usize, column: usize) -> Result<()> {
    if usize::try_from(value).is_ok_and(|value| value < end) {
        return Ok(());
    }
    let most = end - 1;
    Err(Error::invalid(format!(
        "input `{name}`: row {row}, column {column}: expected 0 to {most}, got {value}"
    )))
}
