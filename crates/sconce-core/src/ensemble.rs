use crate::{ModelName, Signature, TensorSpec, abbreviate, display_shape};
use std::collections::{BTreeMap, HashMap};

/// A model made of other models: tensors in a pool, and steps that make tensors of the pool from others. The request's inputs
/// are the first tensors of it.
///
/// Steps are a directed graph without cycles; [`Ensemble::new`] checks that, and [`Ensemble::check`] whether the models that
/// the steps name fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ensemble {
    signature: Signature,
    steps: Vec<Step>,
    /// Where the outputs are in the pool.
    outputs: Vec<usize>,
    /// How many tensors the pool has.
    tensors: usize,
}

/// A step as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSpec {
    /// The model that makes it.
    pub model: ModelName,
    /// Its version: a number, an alias, or nothing.
    pub version: String,
    /// For each of the model's inputs that it is given, the name of a tensor of the pool.
    pub inputs: BTreeMap<String, String>,
    /// For each of the model's outputs that are used, the name of the tensor of the pool that it is.
    pub outputs: BTreeMap<String, String>,
}

/// A step whose tensors were found in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was written down.
    pub spec: StepSpec,
    /// The model's inputs, and where in the pool they come from.
    pub inputs: Vec<(String, usize)>,
    /// The model's outputs, and where in the pool they go to.
    pub outputs: Vec<(String, usize)>,
}

impl Ensemble {
    /// The most steps.
    pub const MAX_STEPS: usize = 64;
    /// The most tensors of a pool.
    pub const MAX_TENSORS: usize = 256;
    /// How many ensembles may be steps of one another, the outermost included.
    pub const MAX_DEPTH: usize = 8;

    /// An ensemble that takes and gives what `signature` says, by `steps` in any order.
    ///
    /// # Errors
    /// Every problem: a tensor that is made twice, or used and never made, an input that nothing uses, steps that wait for each
    /// other, bounds.
    pub fn new(signature: Signature, steps: Vec<StepSpec>) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        if !(1..=Self::MAX_STEPS).contains(&steps.len()) {
            problems.push(format!("expected 1 to {} steps, got {}", Self::MAX_STEPS, steps.len()));
            return Err(problems);
        }
        let mut pool = Pool::default();
        for spec in &signature.inputs {
            problems.extend(pool.make(&spec.name, None).err());
        }
        for (index, step) in steps.iter().enumerate() {
            if step.inputs.is_empty() || step.outputs.is_empty() {
                let problem = "expected at least one input and one output";
                problems.push(format!("{}: {problem}", place(&steps, index)));
            }
            for tensor in step.outputs.values() {
                let made = pool.make(tensor, Some(index));
                problems.extend(made.err().map(|problem| format!("{}: {problem}", place(&steps, index))));
            }
        }
        if pool.makers.len() > Self::MAX_TENSORS {
            problems.push(format!(
                "expected at most {} tensors, got {}",
                Self::MAX_TENSORS,
                pool.makers.len()
            ));
            return Err(problems);
        }
        let mut found = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let mut inputs = Vec::new();
            for (input, tensor) in &step.inputs {
                match pool.take(tensor) {
                    Ok(at) => inputs.push((input.clone(), at)),
                    Err(problem) => problems.push(format!("{}: {problem}", place(&steps, index))),
                }
            }
            let outputs = step
                .outputs
                .iter()
                .filter_map(|(output, tensor)| Some((output.clone(), *pool.places.get(tensor.as_str())?)));
            found.push(Step { spec: step.clone(), inputs, outputs: outputs.collect() });
        }
        let mut outputs = Vec::new();
        for spec in &signature.outputs {
            match pool.take(&spec.name) {
                Ok(at) if outputs.contains(&at) => {
                    problems.push(format!("outputs: `{}` is given more than once", abbreviate(&spec.name)));
                }
                Ok(at) => outputs.push(at),
                Err(problem) => problems.push(format!("outputs: {problem}")),
            }
        }
        if signature.outputs.is_empty() {
            problems.push("outputs: expected at least one, got none".to_owned());
        }
        for (at, spec) in signature.inputs.iter().enumerate() {
            if pool.places.get(spec.name.as_str()) == Some(&at) && !pool.used[at] {
                problems.push(format!("inputs: nothing uses `{}`", abbreviate(&spec.name)));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let order = order(&found, &pool.makers).map_err(|cycle| {
            let names: Vec<String> = cycle.into_iter().map(|index| place(&steps, index)).collect();
            vec![format!("these wait for each other: {}", names.join(", "))]
        })?;
        let tensors = pool.makers.len();
        let mut found: Vec<Option<Step>> = found.into_iter().map(Some).collect();
        let steps = order.into_iter().filter_map(|index| found[index].take()).collect();
        Ok(Self { signature, steps, outputs, tensors })
    }

    /// What it takes and gives, as it was written down.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Its steps: each after those whose tensors it uses.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Where the outputs of the signature are in the pool. The inputs are its first tensors.
    pub fn outputs(&self) -> &[usize] {
        &self.outputs
    }

    /// How many tensors the pool has.
    pub fn tensors(&self) -> usize {
        self.tensors
    }

    /// How often each tensor of the pool is used, the outputs included.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.tensors];
        let of_steps = self.steps.iter().flat_map(|step| step.inputs.iter().map(|(_, at)| *at));
        of_steps.chain(self.outputs.iter().copied()).for_each(|at| uses[at] += 1);
        uses
    }

    /// Checks the signatures of the steps' models, in the order of [`steps`](Self::steps), against each other. `None` stands for a
    /// model that is not known: nothing is said about it. Gives the signature, its outputs with the names of classes that the
    /// steps give them.
    ///
    /// # Errors
    /// Every problem: an input or output that a model does not have or needs, a datatype or shape that does not fit.
    pub fn check(&self, signatures: &[Option<&Signature>]) -> Result<Signature, Vec<String>> {
        let mut problems = Vec::new();
        let mut pool: Vec<Option<&TensorSpec>> = vec![None; self.tensors];
        for (at, spec) in self.signature.inputs.iter().enumerate() {
            pool[at] = Some(spec);
        }
        for (step, signature) in self.steps.iter().zip(signatures) {
            let Some(signature) = signature else { continue };
            let model = &step.spec.model;
            check_inputs(step, signature, &pool, &mut problems);
            if signature.max_batch_size < self.signature.max_batch_size {
                problems.push(format!(
                    "step `{model}` takes at most {} rows, the ensemble {}: see `max_batch_size`",
                    signature.max_batch_size, self.signature.max_batch_size
                ));
            }
            for (output, at) in &step.outputs {
                pool[*at] = signature.outputs.iter().find(|spec| spec.name == *output);
                if pool[*at].is_none() {
                    let known: Vec<&str> = signature.outputs.iter().map(|spec| spec.name.as_str()).collect();
                    let got = abbreviate(output);
                    problems
                        .push(format!("step `{model}` has no output `{got}`: it has {}", known.join(", ")));
                }
            }
        }
        let mut signature = self.signature.clone();
        for (spec, at) in signature.outputs.iter_mut().zip(&self.outputs) {
            let Some(made) = pool[*at] else { continue };
            if !fits(made, spec) {
                problems.push(format!("output {}, but it is made as {}", describe(spec), describe(made)));
            }
            spec.labels.clone_from(&made.labels);
        }
        if problems.is_empty() { Ok(signature) } else { Err(problems) }
    }
}

/// What [`Ensemble::new`] knows of the tensors of a pool.
#[derive(Default)]
struct Pool<'a> {
    places: HashMap<&'a str, usize>,
    /// The step that makes each; `None` for the request's.
    makers: Vec<Option<usize>>,
    used: Vec<bool>,
}

impl<'a> Pool<'a> {
    fn make(&mut self, name: &'a str, maker: Option<usize>) -> Result<(), String> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(format!(
                "the name of a tensor: expected 1 to {MAX_NAME_BYTES} bytes, got {}",
                name.len()
            ));
        }
        if self.places.contains_key(name) {
            return Err(format!("tensor `{}` is made more than once", abbreviate(name)));
        }
        self.places.insert(name, self.makers.len());
        self.makers.push(maker);
        self.used.push(false);
        Ok(())
    }

    fn take(&mut self, name: &str) -> Result<usize, String> {
        let at =
            *self.places.get(name).ok_or_else(|| format!("nothing makes tensor `{}`", abbreviate(name)))?;
        self.used[at] = true;
        Ok(at)
    }
}

const MAX_NAME_BYTES: usize = 256;

/// Steps in an order in which each comes after those whose tensors it uses, and otherwise as they are.
///
/// # Errors
/// The steps that wait for each other, or for those that do.
fn order(steps: &[Step], makers: &[Option<usize>]) -> Result<Vec<usize>, Vec<usize>> {
    let mut order = Vec::with_capacity(steps.len());
    let mut is_done = vec![false; steps.len()];
    // As many rounds as there are steps at most, and of these there are few.
    while order.len() < steps.len() {
        let ready = |(index, step): (usize, &Step)| {
            let made = |at: usize| makers[at].is_none_or(|maker| is_done[maker]);
            (!is_done[index] && step.inputs.iter().all(|(_, at)| made(*at))).then_some(index)
        };
        match steps.iter().enumerate().find_map(ready) {
            Some(index) => {
                is_done[index] = true;
                order.push(index);
            }
            None => return Err((0..steps.len()).filter(|index| !is_done[*index]).collect()),
        }
    }
    Ok(order)
}

fn place(steps: &[StepSpec], index: usize) -> String {
    format!("steps[{index}] (`{}`)", steps[index].model)
}

fn check_inputs(
    step: &Step,
    signature: &Signature,
    pool: &[Option<&TensorSpec>],
    problems: &mut Vec<String>,
) {
    let model = &step.spec.model;
    let mut form = None;
    for (input, at) in &step.inputs {
        let Some(spec) = signature.inputs.iter().find(|spec| spec.name == *input) else {
            problems.push(format!("step `{model}`: {}", signature.unknown_input(input)));
            continue;
        };
        if *form.get_or_insert(spec.form) != spec.form {
            problems.push(format!("step `{model}`: input `{input}` is of another form than those before it"));
        }
        if let Some(made) = pool[*at]
            && !fits(made, spec)
        {
            problems.push(format!(
                "step `{model}`: input {}, but it is given {}",
                describe(spec),
                describe(made)
            ));
        }
    }
    let is_given = |spec: &TensorSpec| step.inputs.iter().any(|(input, _)| *input == spec.name);
    let form = form.unwrap_or(0);
    for spec in signature.inputs.iter().filter(|spec| spec.form == form && !spec.optional) {
        if !is_given(spec) {
            problems.push(format!("step `{model}`: input `{}` is missing", spec.name));
        }
    }
}

/// Whether a tensor that is `made` so may be one that is `taken` so. What is open in either may turn out to fit.
fn fits(made: &TensorSpec, taken: &TensorSpec) -> bool {
    let agree = |made: &[Option<usize>], taken: &[Option<usize>]| {
        made.len() == taken.len()
            && made.iter().zip(taken).all(|(made, taken)| made.is_none() || taken.is_none() || made == taken)
    };
    // As in requests, a last dimension of 1 may be left out.
    let shorter = match taken.shape.split_last() {
        Some((Some(1), front)) => agree(&made.shape, front),
        _ => false,
    };
    made.datatype == taken.datatype && (agree(&made.shape, &taken.shape) || shorter)
}

fn describe(spec: &TensorSpec) -> String {
    format!("`{}` {} {}", abbreviate(&spec.name), spec.datatype, display_shape(&spec.shape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataType;
    use proptest::prelude::*;

    fn spec(name: &str) -> TensorSpec {
        TensorSpec::new(name, DataType::Fp32, &[None, Some(4)])
    }

    fn signature(inputs: &[&str], outputs: &[&str]) -> Signature {
        let specs = |names: &[&str]| names.iter().map(|name| spec(name)).collect();
        Signature { inputs: specs(inputs), outputs: specs(outputs), max_batch_size: 8 }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn step(model: &str, inputs: &[(&str, &str)], outputs: &[(&str, &str)]) -> StepSpec {
        let model = ModelName::new(model).unwrap();
        StepSpec { model, version: String::new(), inputs: map(inputs), outputs: map(outputs) }
    }

    fn names(ensemble: &Ensemble) -> Vec<&str> {
        ensemble.steps().iter().map(|step| step.spec.model.as_str()).collect()
    }

    fn problems(signature: Signature, steps: Vec<StepSpec>) -> String {
        Ensemble::new(signature, steps).unwrap_err().join("\n")
    }

    #[test]
    fn steps_are_sorted_and_their_tensors_found() {
        let steps = vec![
            step("last", &[("a", "left"), ("b", "right")], &[("y", "out")]),
            step("right", &[("x", "mid")], &[("y", "right")]),
            step("first", &[("x", "in")], &[("y", "mid")]),
            step("left", &[("x", "mid")], &[("y", "left")]),
        ];
        let ensemble = Ensemble::new(signature(&["in"], &["out", "mid"]), steps).unwrap();
        assert_eq!(names(&ensemble), ["first", "right", "left", "last"]);
        assert_eq!(ensemble.tensors(), 5);
        let [out, mid] = ensemble.outputs() else { panic!("two outputs") };
        assert_eq!(ensemble.steps()[0].inputs, [("x".to_owned(), 0)]);
        assert_eq!(ensemble.steps()[0].outputs, [("y".to_owned(), *mid)]);
        assert_eq!(ensemble.steps()[3].outputs, [("y".to_owned(), *out)]);
        assert_eq!((ensemble.uses()[0], ensemble.uses()[*mid], ensemble.uses()[*out]), (1, 3, 1));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let steps = vec![
            step("a", &[("x", "in")], &[("y", "mid"), ("z", "in")]),
            step("b", &[("x", "nowhere")], &[("y", "mid")]),
            step("c", &[], &[]),
        ];
        let text = problems(signature(&["in", "spare"], &["out"]), steps);
        for part in [
            "steps[0] (`a`): tensor `in` is made more than once",
            "steps[1] (`b`): tensor `mid` is made more than once",
            "steps[1] (`b`): nothing makes tensor `nowhere`",
            "steps[2] (`c`): expected at least one input",
            "outputs: nothing makes tensor `out`",
            "inputs: nothing uses `spare`",
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
        assert_eq!(text.lines().count(), 6, "{text}");
    }

    #[test]
    fn steps_that_wait_for_each_other_are_refused() {
        let ring = vec![
            step("a", &[("x", "in")], &[("y", "p")]),
            step("b", &[("x", "p"), ("z", "r")], &[("y", "q")]),
            step("c", &[("x", "q")], &[("y", "r")]),
        ];
        let text = problems(signature(&["in"], &["r"]), ring);
        assert_eq!(text, "these wait for each other: steps[1] (`b`), steps[2] (`c`)");
        let own = vec![step("a", &[("x", "in"), ("z", "p")], &[("y", "p")])];
        assert!(problems(signature(&["in"], &["p"]), own).contains("wait for each other"));
    }

    #[test]
    fn bounds_hold() {
        let chain = |steps: usize| {
            let name = |at: usize| format!("t{at}");
            let step = |at: usize| step("m", &[("x", &name(at))], &[("y", &name(at + 1))]);
            (signature(&["t0"], &[&name(steps)]), (0..steps).map(step).collect::<Vec<_>>())
        };
        let (signature_, steps) = chain(64);
        assert!(Ensemble::new(signature_, steps).is_ok());
        let (signature_, steps) = chain(65);
        assert!(problems(signature_, steps).contains("1 to 64 steps, got 65"));
        assert!(problems(signature(&["in"], &["in"]), vec![]).contains("got 0"));
        let outputs: Vec<(String, String)> =
            (0..256).map(|at| (format!("y{at}"), format!("t{at}"))).collect();
        let outputs: Vec<(&str, &str)> = outputs.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let wide = |outputs: &[(&str, &str)]| vec![step("m", &[("x", "in")], outputs)];
        assert!(
            problems(signature(&["in"], &["t0"]), wide(&outputs)).contains("at most 256 tensors, got 257")
        );
        assert!(Ensemble::new(signature(&["in"], &["t0"]), wide(&outputs[1..])).is_err());
        assert!(Ensemble::new(signature(&["in"], &["t0"]), wide(&outputs[..255])).is_ok());
        let long = "x".repeat(257);
        assert!(problems(signature(&["in"], &[&long]), wide(&[("y", &long)])).contains("1 to 256 bytes"));
    }

    fn two_steps() -> Ensemble {
        let steps =
            vec![step("a", &[("x", "in")], &[("y", "mid")]), step("b", &[("x", "mid")], &[("y", "out")])];
        Ensemble::new(signature(&["in"], &["out"]), steps).unwrap()
    }

    #[test]
    fn models_must_fit_and_give_their_labels() {
        let ensemble = two_steps();
        let model = signature(&["x"], &["y"]);
        let mut labelled = model.clone();
        labelled.outputs[0].labels = Some(vec!["good".to_owned(); 4].into());
        let checked = ensemble.check(&[Some(&model), Some(&labelled)]).unwrap();
        assert_eq!(checked.outputs[0].labels, labelled.outputs[0].labels);
        assert_eq!(ensemble.check(&[None, None]).as_ref(), Ok(ensemble.signature()));

        let change = |change: fn(&mut Signature)| {
            let mut changed = model.clone();
            change(&mut changed);
            changed
        };
        let text = |first: &Signature, second: &Signature| {
            ensemble.check(&[Some(first), Some(second)]).unwrap_err().join("\n")
        };
        let bytes = change(|s| s.inputs[0].datatype = DataType::Bytes);
        assert_eq!(
            text(&bytes, &model),
            "step `a`: input `x` BYTES [-1, 4], but it is given `in` FP32 [-1, 4]"
        );
        let narrow = change(|s| s.outputs[0].shape = vec![None, Some(3)]);
        assert_eq!(
            text(&narrow, &model),
            "step `b`: input `x` FP32 [-1, 4], but it is given `y` FP32 [-1, 3]"
        );
        assert_eq!(text(&model, &narrow), "output `out` FP32 [-1, 4], but it is made as `y` FP32 [-1, 3]");
        let other = change(|s| s.outputs[0].name = "z".to_owned());
        assert_eq!(text(&other, &model), "step `a` has no output `y`: it has z");
        let small = change(|s| s.max_batch_size = 7);
        assert!(text(&model, &small).contains("step `b` takes at most 7 rows, the ensemble 8"));
        let two = change(|s| s.inputs.push(spec("w")));
        assert_eq!(text(&two, &model), "step `a`: input `w` is missing");
        assert!(text(&change(|s| s.inputs[0].name = "w".to_owned()), &model).contains("unknown input `x`"));
        // What is open may turn out to fit, and what may be left out need not be given.
        let open = change(|s| s.inputs[0].shape = vec![None, None]);
        let optional = change(|s| s.inputs.push(TensorSpec { optional: true, ..spec("w") }));
        assert!(ensemble.check(&[Some(&open), Some(&optional)]).is_ok());
        let forms = change(|s| s.inputs.push(TensorSpec { form: 1, ..spec("w") }));
        assert!(ensemble.check(&[Some(&forms), Some(&model)]).is_ok());
    }

    proptest! {
        /// Steps of a random graph, in random order: each uses tensors of steps before it in a hidden order.
        #[test]
        fn whatever_has_no_cycle_is_sorted(
            edges in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 1..4), 1..40),
            shuffle in any::<u64>(),
        ) {
            let tensor = |at: usize| if at == 0 { "in".to_owned() } else { format!("t{at}") };
            let mut steps: Vec<StepSpec> = edges.iter().enumerate().map(|(at, from)| {
                let inputs = from.iter().enumerate().map(|(n, from)| (format!("x{n}"), tensor(from.index(at + 1))));
                let model = ModelName::new(&format!("m{at}")).unwrap();
                let outputs = [("y".to_owned(), tensor(at + 1))].into();
                StepSpec { model, version: String::new(), inputs: inputs.collect(), outputs }
            }).collect();
            let mut state = shuffle | 1;
            for at in (1..steps.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                steps.swap(at, (state >> 33) as usize % (at + 1));
            }
            let last = tensor(edges.len());
            let ensemble = Ensemble::new(signature(&["in"], &[&last]), steps.clone()).unwrap();
            let mut is_made = vec![false; ensemble.tensors()];
            is_made[0] = true;
            for step in ensemble.steps() {
                prop_assert!(step.inputs.iter().all(|(_, at)| is_made[*at]));
                step.outputs.iter().for_each(|(_, at)| is_made[*at] = true);
                prop_assert!(steps.contains(&step.spec));
            }
            prop_assert_eq!(ensemble.steps().len(), steps.len());
            prop_assert!(is_made.into_iter().all(|made| made));
            // With an edge back from the last to the first there is a cycle, unless the first does not lead to the last.
            let first = steps.iter_mut().find(|step| step.model.as_str() == "m0").unwrap();
            first.inputs.insert("back".to_owned(), tensor(1));
            prop_assert!(Ensemble::new(signature(&["in"], &[&last]), steps).is_err());
        }
    }
}
