//! Evidence that holds at any time.

use super::Run;
use super::arguments::{Arguments, Fault, as_count, number, numbers, unexpected};
use sconce_stats::Trials;
use sconce_stats::sequential::{
    Accumulation, AsymptoticMean, BetaBinomial, BoundedMean, Centred, EDetector, MixtureSprt, SafeTwoByTwo,
    Side, SubGaussianMean,
};
use serde_json::{Value, json};

pub(crate) fn find(test: &str) -> Option<Run> {
    let run: Run = match test {
        "seq_beta_binomial_e" => beta_binomial,
        "seq_confidence_sequences" => confidence_sequences,
        "seq_e_detectors" => e_detectors,
        "seq_msprt" => mixture_sprt,
        "seq_safe_2x2" => safe_two_by_two,
        _ => return None,
    };
    Some(run)
}

fn safe_two_by_two(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let prior = arguments.numbers("prior")?;
    let [events, misses] = prior[..] else {
        return Err(unexpected("prior", "two numbers", arguments.value("prior")?));
    };
    let mut test = SafeTwoByTwo::with_prior(Side::Both, events, misses)?;
    let mut log_e = Vec::new();
    for block in arguments.list("blocks")? {
        let part = |index: usize| as_count("blocks", block.get(index).unwrap_or(&Value::Null));
        let first = Trials { events: part(0)?, trials: part(1)? };
        let second = Trials { events: part(2)?, trials: part(3)? };
        test.update(first, second)?;
        log_e.push(test.log_e());
    }
    Ok(json!({ "log_e": numbers(log_e) }))
}

fn beta_binomial(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let null = arguments.number("p0")?;
    let mut state = BetaBinomial::new(arguments.number("a")?, arguments.number("b")?)?;
    let mut log_e = Vec::new();
    for success in arguments.counts("x")? {
        if success > 1 {
            return Err(unexpected("x", "zeros and ones", arguments.value("x")?));
        }
        state.update(success, 1 - success);
        log_e.push(state.log_e(null, Side::Both)?);
    }
    Ok(json!({ "log_e": numbers(log_e) }))
}

fn confidence_sequences(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (alpha, rho) = (arguments.number("alpha")?, arguments.number("rho")?);
    let mut asymptotic = AsymptoticMean::new(rho)?;
    let mut mixture = SubGaussianMean::new(0.5, rho)?;
    let mut bounded = BoundedMean::new(0.0, 1.0, alpha)?;
    let mut at = Vec::new();
    let mut traces = [const { Vec::new() }; 3];
    for (index, x) in arguments.numbers("x")?.into_iter().enumerate() {
        asymptotic.update(x)?;
        mixture.update(x)?;
        bounded.update(x)?;
        if index < 5 || (index + 1) % 20 == 0 {
            at.push(index + 1);
            let states = [asymptotic.interval(alpha)?, mixture.interval(alpha)?, bounded.centred()];
            for (trace, Centred { centre, radius }) in traces.iter_mut().zip(states) {
                trace.push(numbers([centre, radius]));
            }
        }
    }
    let [asymptotic, mixture, bounded] = traces.map(|trace| json!({ "at": at, "center_radius": trace }));
    Ok(json!({ "asymptotic": asymptotic, "normal_mixture_subgaussian": mixture, "pr_eb": bounded }))
}

fn e_detectors(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (mean, bet) = (arguments.number("m0")?, arguments.number("lam")?);
    let x = arguments.numbers("x")?;
    let trace = |accumulation| -> Result<Value, Fault> {
        let mut detector = EDetector::new(mean, &[bet], accumulation)?;
        let mut values = Vec::new();
        for &x in &x {
            detector.update(x)?;
            values.push(detector.log_e());
        }
        Ok(numbers(values))
    };
    let (sr, cusum) = (trace(Accumulation::ShiryaevRoberts)?, trace(Accumulation::Cusum)?);
    Ok(json!({ "log_e_sr": sr, "log_e_cusum": cusum }))
}

fn mixture_sprt(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let (variance, mixture) = (arguments.number("sigma2")?, arguments.number("tau2")?);
    let mut test = MixtureSprt::new(variance, mixture, arguments.number("theta0")?)?;
    let (mut ratios, mut p_values) = (Vec::new(), Vec::new());
    for (x, y) in arguments.numbers("x")?.into_iter().zip(arguments.numbers("y")?) {
        test.update(x, y)?;
        ratios.push(number(test.log_e()));
        p_values.push(number(test.p_value()));
    }
    Ok(json!({ "log_lambda": ratios, "p_always_valid": p_values }))
}
