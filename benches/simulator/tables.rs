//! The cases that are simulated, each a markdown table.

use crate::lengths::Lengths;
use crate::measure::{Measures, fairness, saturation};
use crate::plot::{Axis, Line, Panel, svg};
use crate::policy::Policy;
use crate::simulation::{Cost, simulate};
use crate::trace::{Arrival, Pattern, Stream, trace};
use sconce_scheduler::BatchPolicy;
use std::fmt::Write as _;
use std::time::Duration;

/// The seed and how long each case is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
}

/// An answer after this is worthless.
const SLO: Duration = Duration::from_millis(500);
/// Seconds before the measured time, unless that is shorter.
const WARM_UP: f64 = 20.0;
/// Parts of what saturates the device.
const LOADS: [f64; 5] = [0.5, 0.8, 1.0, 2.0, 10.0];

/// Policies that are compared where a device is shared, and the lengths of all requests then.
const SHARERS: [Policy; 4] = [Policy::Sconce, Policy::SconceUntold, Policy::Fifo, Policy::FifoWithExpiry];
const SHARED: Lengths = Lengths::Uniform;
/// What the modest one of two wants of the device, and the greedy one: ten times its share of a half.
const PARTS: [f64; 2] = [0.1, 0.4];
const GREED: f64 = 5.0;

const HEAD: &str = "| load | policy | goodput / saturation | useful time | p50 ms | p99 ms | refused | dropped | late | padding | \
    tokens a batch |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";

impl Run {
    /// Loads of one tenant and one model; and plots of the same, by name.
    pub(crate) fn load(self) -> (String, [(&'static str, String); 2]) {
        let mut text = String::new();
        let (mut goodput, mut p99) = (Vec::new(), Vec::new());
        for lengths in Lengths::ALL {
            let name = lengths.name();
            text += &format!(
                "\nPoisson, {name} tokens; saturation is {:.0} requests/s.\n\n",
                saturation(lengths, Cost::MINILM)
            );
            text += HEAD;
            let lines = || Policy::ALL.map(|policy| Line { name: policy.name(), values: Vec::new() });
            let (mut goodputs, mut p99s) = (Vec::from(lines()), Vec::from(lines()));
            for load in LOADS {
                let arrivals = self.one_stream(load, Pattern::Poisson, lengths);
                for (at, policy) in Policy::ALL.into_iter().enumerate() {
                    let measures = self.measure(&arrivals, 1, policy, |_| true);
                    text += &row(&format!("{load}"), policy, &measures, lengths);
                    goodputs[at].values.push(measures.goodput / saturation(lengths, Cost::MINILM));
                    p99s[at].values.push(millis(measures.p99));
                }
            }
            goodput.push(Panel { title: format!("{name} tokens"), lines: goodputs });
            p99.push(Panel { title: format!("{name} tokens"), lines: p99s });
        }
        let marks = LOADS.map(|load| load.to_string());
        let goodput_axis = Axis {
            title: "goodput / saturation",
            least: 0.0,
            most: 1.25,
            is_logarithmic: false,
            marks: &[0.0, 0.25, 0.5, 0.75, 1.0, 1.25],
            goal: 1.0,
        };
        let p99_axis = Axis {
            title: "p99, ms",
            least: 1.0,
            most: 100_000.0,
            is_logarithmic: true,
            marks: &[1.0, 10.0, 100.0, 1e3, 1e4, 1e5],
            goal: millis(SLO),
        };
        let goodput = svg("Answers within 500 ms, simulated", &marks, &goodput_axis, &goodput);
        let p99 = svg("99th percentile of what was taken in, simulated", &marks, &p99_axis, &p99);
        (text, [("simulator-goodput.svg", goodput), ("simulator-p99.svg", p99)])
    }

    /// Arrivals that are not as even.
    pub(crate) fn patterns(self) -> String {
        let mut text = String::new();
        for lengths in Lengths::ALL {
            let _ = write!(text, "\nOther arrivals, {} tokens, load on the mean.\n\n{HEAD}", lengths.name());
            for pattern in Pattern::ALL.into_iter().filter(|pattern| *pattern != Pattern::Poisson) {
                for load in [0.8, 2.0] {
                    let arrivals = self.one_stream(load, pattern, lengths);
                    for policy in [Policy::Sconce, Policy::Fifo, Policy::FifoWithExpiry] {
                        let measures = self.measure(&arrivals, 1, policy, |_| true);
                        text += &row(&format!("{load}, {}", pattern.name()), policy, &measures, lengths);
                    }
                }
            }
        }
        text
    }

    /// One beside another that wants ten times its share.
    pub(crate) fn isolation(self) -> String {
        let mut text = format!(
            "\nOne beside another that offers ten times its share, which is a half; {} tokens. Measured are the first's requests; its part \
             is what it wants of the device. Alone on half a device is what a share in equal parts can be at best.\n\n| | a batch \
             takes, ms | policy | its part | p50 ms, alone | beside | p99 ms, alone | alone on half | beside | beside / alone | in time, \
             beside | both, goodput / saturation | fairness |\n|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
            SHARED.name()
        );
        for (kind, cost) in Kind::ALL.into_iter().flat_map(|kind| [(kind, Cost::MINILM), (kind, Cost::EVEN)])
        {
            for part in PARTS {
                for policy in SHARERS {
                    let shared = self.shared(kind, part, policy, cost);
                    let Shared { alone, half, beside, both, fairness } = &shared;
                    let _ = writeln!(
                        text,
                        "| {} | {:.2} | {} | {part} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} | {:.3} | {:.2} | {fairness:.3} |",
                        kind.name(),
                        cost.batch * 1e3,
                        policy.name(),
                        millis(alone.p50),
                        millis(beside.p50),
                        millis(alone.p99),
                        millis(half.p99),
                        millis(beside.p99),
                        shared.ratio(),
                        beside.in_time,
                        both.goodput / saturation(SHARED, cost),
                    );
                }
            }
        }
        text
    }

    /// A modest one that wants `part` of the device, alone and beside a greedy one.
    fn shared(self, kind: Kind, part: f64, policy: Policy, cost: Cost) -> Shared {
        let light = kind.stream(0, part);
        let (alone, both) = (self.trace(&[light]), self.trace(&[light, kind.stream(1, GREED)]));
        let measure = |arrivals: &[Arrival], device: f64, all: bool| {
            let (batching, cost) = (policy.batching(), cost.on(device));
            self.measure_with(arrivals, kind.models(2), policy, (&batching, cost), |arrival| {
                all || kind.index(arrival) == 0
            })
        };
        Shared {
            alone: measure(&alone, 1.0, false),
            half: measure(&alone, 0.5, false),
            beside: measure(&both, 1.0, false),
            both: measure(&both, 1.0, true),
            fairness: self.fairness(&both, 2, kind, policy, cost),
        }
    }

    /// The same with other quanta.
    pub(crate) fn quanta(self) -> String {
        let mut text = "\nThe same by the quantum, and what it costs both together.\n\n\
            | | its part | quantum ms | p99 ms, beside | both, goodput / saturation |\n|---|--:|--:|--:|--:|\n"
            .to_owned();
        for (kind, part) in Kind::ALL.into_iter().flat_map(|kind| PARTS.map(|part| (kind, part))) {
            let both = self.trace(&[kind.stream(0, part), kind.stream(1, GREED)]);
            for quantum in [2, 5, 10, 20, 50] {
                let batching =
                    BatchPolicy { quantum: Duration::from_millis(quantum), ..Policy::Sconce.batching() };
                let measure = |all: bool| {
                    let case = (&batching, Cost::MINILM);
                    self.measure_with(&both, kind.models(2), Policy::Sconce, case, |arrival| {
                        all || kind.index(arrival) == 0
                    })
                };
                let (beside, goodput) =
                    (millis(measure(false).p99), measure(true).goodput / saturation(SHARED, Cost::MINILM));
                let _ =
                    writeln!(text, "| {} | {part} | {quantum} | {beside:.0} | {goodput:.2} |", kind.name());
            }
        }
        text
    }

    /// Many that share.
    pub(crate) fn many(self) -> String {
        const MANY: usize = 8;
        let mut text = "\nEight that want 2.0 of the device in all, the first as much as the second twice, and so on.\n\n\
            | | policy | fairness | goodput / saturation | p99 ms |\n|---|---|--:|--:|--:|\n"
            .to_owned();
        let total: f64 = (1..=MANY).map(|rank| 1.0 / rank as f64).sum();
        for kind in Kind::ALL {
            let streams: Vec<_> =
                (0..MANY).map(|at| kind.stream(at, 2.0 / total / (at + 1) as f64)).collect();
            let arrivals = self.trace(&streams);
            for policy in SHARERS {
                let fair = self.fairness(&arrivals, MANY, kind, policy, Cost::MINILM);
                let measures = self.measure(&arrivals, kind.models(MANY), policy, |_| true);
                let _ = writeln!(
                    text,
                    "| {} | {} | {fair:.3} | {:.2} | {:.0} |",
                    kind.name(),
                    policy.name(),
                    measures.goodput / saturation(SHARED, Cost::MINILM),
                    millis(measures.p99)
                );
            }
        }
        text
    }

    fn one_stream(self, load: f64, pattern: Pattern, lengths: Lengths) -> Vec<Arrival> {
        let rate = load * saturation(lengths, Cost::MINILM);
        self.trace(&[Stream { model: 0, tenant: 0, rate, pattern, lengths }])
    }

    fn trace(self, streams: &[Stream]) -> Vec<Arrival> {
        trace(streams, self.warm_up() + self.seconds, self.seed)
    }

    fn warm_up(self) -> f64 {
        WARM_UP.min(self.seconds)
    }

    fn window(self) -> (Duration, Duration) {
        let from = Duration::from_secs_f64(self.warm_up());
        (from, from + Duration::from_secs_f64(self.seconds))
    }

    fn measure(
        self,
        arrivals: &[Arrival],
        models: usize,
        policy: Policy,
        counts: impl Fn(&Arrival) -> bool,
    ) -> Measures {
        self.measure_with(arrivals, models, policy, (&policy.batching(), Cost::MINILM), counts)
    }

    fn measure_with(
        self,
        arrivals: &[Arrival],
        models: usize,
        policy: Policy,
        (batching, cost): (&BatchPolicy, Cost),
        counts: impl Fn(&Arrival) -> bool,
    ) -> Measures {
        let outcome = simulate(arrivals, models, policy, batching, cost, SLO, self.seed);
        Measures::of(arrivals, &outcome, self.window(), SLO, counts)
    }

    /// Jain's index of the time that went into answers, late ones too, over what is due.
    fn fairness(self, arrivals: &[Arrival], count: usize, kind: Kind, policy: Policy, cost: Cost) -> f64 {
        let outcome =
            simulate(arrivals, kind.models(count), policy, &policy.batching(), cost, SLO, self.seed);
        let (from, until) = self.window();
        let mut wanted = vec![0.0; count];
        for arrival in arrivals.iter().filter(|arrival| from <= arrival.at && arrival.at < until) {
            wanted[kind.index(arrival)] += Cost::MINILM.of_row(arrival.tokens) / self.seconds;
        }
        let served = |at: usize| {
            Measures::of(arrivals, &outcome, (from, until), SLO, |arrival| kind.index(arrival) == at).served
        };
        let got: Vec<f64> = (0..count).map(served).collect();
        fairness(&wanted, &got, 1.0)
    }
}

/// What a modest one gets: of the whole device, of half of it, beside a greedy one; what both get; and how fair that is.
struct Shared {
    alone: Measures,
    half: Measures,
    beside: Measures,
    both: Measures,
    fairness: f64,
}

impl Shared {
    /// Its p99 beside the greedy one over its p99 alone.
    fn ratio(&self) -> f64 {
        self.beside.p99.as_secs_f64() / self.alone.p99.as_secs_f64().max(1e-9)
    }
}

/// Who shares a device.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Tenants,
    Models,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Tenants, Self::Models];

    fn name(self) -> &'static str {
        match self {
            Self::Tenants => "tenants",
            Self::Models => "models",
        }
    }

    /// The stream of one of them, which wants `part` of the device.
    fn stream(self, index: usize, part: f64) -> Stream {
        let (model, tenant) = match self {
            Self::Tenants => (0, index as u32),
            Self::Models => (index, 0),
        };
        Stream {
            model,
            tenant,
            rate: part * saturation(SHARED, Cost::MINILM),
            pattern: Pattern::Poisson,
            lengths: SHARED,
        }
    }

    fn index(self, arrival: &Arrival) -> usize {
        match self {
            Self::Tenants => arrival.tenant as usize,
            Self::Models => arrival.model,
        }
    }

    /// How many models there are of `count` of them.
    fn models(self, count: usize) -> usize {
        match self {
            Self::Tenants => 1,
            Self::Models => count,
        }
    }
}

fn row(load: &str, policy: Policy, measures: &Measures, lengths: Lengths) -> String {
    let Measures { useful, refused, dropped, late, padding, batch_tokens, .. } = measures;
    format!(
        "| {load} | {} | {:.3} | {useful:.3} | {:.0} | {:.0} | {refused:.3} | {dropped:.3} | {late:.3} | {padding:.2} | \
         {batch_tokens:.0} |\n",
        policy.name(),
        measures.goodput / saturation(lengths, Cost::MINILM),
        millis(measures.p50),
        millis(measures.p99),
    )
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A neighbour that asks for ten times its share costs a modest one next to nothing where batches gain little, and where they gain
    /// more, the time of one that is long enough; both together get nearly all there is.
    #[test]
    fn a_greedy_neighbour_is_hardly_felt() {
        for (seed, kind) in [1, 2].into_iter().flat_map(|seed| Kind::ALL.map(|kind| (seed, kind))) {
            for (cost, part, most) in
                [(Cost::EVEN, 0.1, 1.5), (Cost::EVEN, 0.4, 1.5), (Cost::MINILM, 0.1, 2.5)]
            {
                let shared = Run { seed, seconds: 20.0 }.shared(kind, part, Policy::Sconce, cost);
                let ratio = shared.ratio();
                assert!(ratio <= most, "seed {seed}, {kind:?}, {part}, {cost:?}: {ratio}");
                let both = shared.both.goodput / saturation(SHARED, cost);
                assert!(both > 0.9, "seed {seed}, {kind:?}, {part}, {cost:?}: {both}");
            }
        }
    }

    #[test]
    fn a_seed_fixes_the_tables() {
        let tables = |seed| {
            let run = Run { seed, seconds: 0.5 };
            (run.load(), run.patterns(), run.isolation(), run.quanta(), run.many())
        };
        assert_eq!(tables(3), tables(3));
        assert_ne!(tables(3), tables(4));
    }
}
