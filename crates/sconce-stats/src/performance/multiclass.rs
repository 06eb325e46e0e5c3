use super::binary::auc_of;
use super::{check_probabilities, ratio};
use crate::error::{Result, StatsError, at_least, in_range, same_length};
use serde::{Deserialize, Serialize};

/// Classes of a confusion matrix: 8 MiB of counts.
const MOST_CLASSES: usize = 1_024;

/// How metrics of single classes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// Every class counts the same.
    Macro,
    /// Every decision counts the same: for single-label decisions precision, recall and F are the accuracy.
    Micro,
    /// Every class counts by its labels.
    Weighted,
}

/// Counts of labels by decision, and what follows from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    classes: usize,
    /// Row by row: the label, then the decision.
    counts: Vec<u64>,
}

impl Confusion {
    /// No decision yet.
    ///
    /// # Errors
    /// Fewer than two classes or more than 1,024.
    pub fn new(classes: usize) -> Result<Self> {
        in_range(
            "classes",
            classes as f64,
            (2..=MOST_CLASSES).contains(&classes),
            "a number from 2 to 1,024",
        )?;
        Ok(Self { classes, counts: vec![0; classes * classes] })
    }

    /// Takes a decision.
    ///
    /// # Errors
    /// A class that is not below the number of classes.
    pub fn update(&mut self, label: usize, decision: usize) -> Result<()> {
        self.update_times(label, decision, 1)
    }

    /// Takes a decision that was made so many `times`.
    ///
    /// # Errors
    /// A class that is not below the number of classes.
    pub fn update_times(&mut self, label: usize, decision: usize, times: u64) -> Result<()> {
        for (name, class) in [("label", label), ("decision", decision)] {
            in_range(name, class as f64, class < self.classes, "a class")?;
        }
        let count = &mut self.counts[label * self.classes + decision];
        *count = count.saturating_add(times);
        Ok(())
    }

    /// The counts, a row for each label.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.counts.chunks_exact(self.classes)
    }

    /// The share of decisions that were right; 0 without any.
    pub fn accuracy(&self) -> f64 {
        ratio((0..self.classes).map(|class| self.at(class, class)).sum(), self.total())
    }

    /// Precision.
    pub fn precision(&self, average: Average) -> f64 {
        self.average(average, |right, _, decided| ratio(right, decided))
    }

    /// Recall.
    pub fn recall(&self, average: Average) -> f64 {
        self.average(average, |right, labelled, _| ratio(right, labelled))
    }

    /// The harmonic mean of precision and recall.
    pub fn f1(&self, average: Average) -> f64 {
        self.average(average, |right, labelled, decided| ratio(2.0 * right, labelled + decided))
    }

    /// Matthews' correlation coefficient of any number of classes (Gorodkin, 2004), from -1 to 1.
    pub fn matthews(&self) -> f64 {
        let (total, right) = (self.total(), self.accuracy() * self.total());
        let products = |of: &dyn Fn(usize) -> f64| (0..self.classes).map(of).sum::<f64>();
        let both = products(&|class| self.labelled(class) * self.decided(class));
        let labels = products(&|class| self.labelled(class).powi(2));
        let decisions = products(&|class| self.decided(class).powi(2));
        ratio(right * total - both, ((total * total - decisions) * (total * total - labels)).sqrt())
    }

    /// Cohen's kappa, up to 1; NaN if chance would agree always.
    pub fn kappa(&self) -> f64 {
        let total = self.total();
        let agreement: f64 = (0..self.classes).map(|class| self.labelled(class) * self.decided(class)).sum();
        let by_chance = agreement / (total * total);
        (self.accuracy() - by_chance) / (1.0 - by_chance)
    }

    /// `of` takes right, labelled and decided counts of a class.
    fn average(&self, average: Average, of: impl Fn(f64, f64, f64) -> f64) -> f64 {
        let class = |class: usize| of(self.at(class, class), self.labelled(class), self.decided(class));
        let classes = 0..self.classes;
        match average {
            Average::Macro => classes.map(class).sum::<f64>() / self.classes as f64,
            Average::Micro => self.accuracy(),
            Average::Weighted => ratio(classes.map(|k| self.labelled(k) * class(k)).sum(), self.total()),
        }
    }

    fn at(&self, label: usize, decision: usize) -> f64 {
        self.counts[label * self.classes + decision] as f64
    }

    fn labelled(&self, class: usize) -> f64 {
        (0..self.classes).map(|decision| self.at(class, decision)).sum()
    }

    fn decided(&self, class: usize) -> f64 {
        (0..self.classes).map(|label| self.at(label, class)).sum()
    }

    fn total(&self) -> f64 {
        self.counts.iter().sum::<u64>() as f64
    }
}

/// Mean negative log likelihood; probabilities are kept 2^-52 away from 0 and 1 and rows normalised to 1. A row is one prediction.
///
/// # Errors
/// No label, different lengths, rows of different width, probabilities not in 0..=1, a label that is no class.
pub fn multiclass_log_loss(labels: &[usize], probabilities: &[Vec<f64>]) -> Result<f64> {
    check(labels, probabilities)?;
    let keep = |p: f64| p.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
    let loss = |(&label, row): (&usize, &Vec<f64>)| {
        -(keep(row[label]) / row.iter().map(|&p| keep(p)).sum::<f64>()).ln()
    };
    Ok(labels.iter().zip(probabilities).map(loss).sum::<f64>() / labels.len() as f64)
}

/// ROC AUC of more than two classes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MulticlassAuc {
    /// Each class against all others, every class counting the same.
    pub one_vs_rest: f64,
    /// Each class against all others, counting by labels.
    pub one_vs_rest_weighted: f64,
    /// Each pair of classes (Hand and Till, 2001), every pair counting the same.
    pub one_vs_one: f64,
    /// Each pair of classes, counting by labels.
    pub one_vs_one_weighted: f64,
}

/// ROC AUC of more than two classes; NaN unless every class occurs. Takes time in the square of the number of classes.
///
/// # Errors
/// As [`multiclass_log_loss`]; more than 256 classes.
pub fn multiclass_auc(labels: &[usize], probabilities: &[Vec<f64>]) -> Result<MulticlassAuc> {
    let classes = check(labels, probabilities)?;
    if classes > 256 {
        return Err(StatsError::TooMany { name: "classes", most: 256, got: classes });
    }
    let share =
        |class: usize| labels.iter().filter(|&&label| label == class).count() as f64 / labels.len() as f64;
    let shares: Vec<f64> = (0..classes).map(share).collect();
    // How well the probability of `class` tells it from those that `against` picks.
    let auc = |class: usize, against: &dyn Fn(usize) -> bool| {
        let picked =
            labels.iter().zip(probabilities).filter(|(label, _)| **label == class || against(**label));
        auc_of(picked.map(|(&label, row)| (label == class, row[class])).collect())
    };
    let (mut rest, mut rest_weighted) = (0.0, 0.0);
    for (class, share) in shares.iter().enumerate() {
        let auc = auc(class, &|_| true);
        rest += auc / classes as f64;
        rest_weighted += auc * share;
    }
    let (mut pairs, mut pairs_weighted, mut weights, mut count) = (0.0, 0.0, 0.0, 0.0);
    for a in 0..classes {
        for b in a + 1..classes {
            let both = 0.5 * (auc(a, &|label| label == b) + auc(b, &|label| label == a));
            let weight = shares[a] + shares[b];
            pairs += both;
            pairs_weighted += both * weight;
            weights += weight;
            count += 1.0;
        }
    }
    Ok(MulticlassAuc {
        one_vs_rest: rest,
        one_vs_rest_weighted: rest_weighted,
        one_vs_one: pairs / count,
        one_vs_one_weighted: pairs_weighted / weights,
    })
}

/// How many classes there are.
fn check(labels: &[usize], probabilities: &[Vec<f64>]) -> Result<usize> {
    at_least("labels", labels.len(), 1)?;
    same_length(("labels", labels.len()), ("probabilities", probabilities.len()))?;
    let classes = probabilities[0].len();
    in_range("classes", classes as f64, (2..=MOST_CLASSES).contains(&classes), "a number from 2 to 1,024")?;
    for row in probabilities {
        same_length(("first row", classes), ("row", row.len()))?;
        check_probabilities("probabilities", row)?;
    }
    match labels.iter().find(|&&label| label >= classes) {
        Some(&label) => {
            Err(StatsError::OutOfRange { name: "labels", expected: "classes", got: label as f64 })
        }
        None => Ok(classes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_classes_are_the_binary_case() {
        let labels = [0, 1, 1, 0, 1];
        let scores = [0.2, 0.7, 0.4, 0.6, 0.9];
        let rows: Vec<Vec<f64>> = scores.iter().map(|s| vec![1.0 - s, *s]).collect();
        let auc = multiclass_auc(&labels, &rows).unwrap();
        let binary = super::super::roc_auc(&[false, true, true, false, true], &scores).unwrap();
        assert!((auc.one_vs_rest - binary).abs() < 1e-15 && (auc.one_vs_one - binary).abs() < 1e-15);
        let mut counts = Confusion::new(2).unwrap();
        for (label, score) in labels.iter().zip(scores) {
            counts.update(*label, usize::from(score >= 0.5)).unwrap();
        }
        assert_eq!(counts.accuracy(), 0.6);
        assert!((counts.matthews() - 1.0 / 6.0).abs() < 1e-15, "{}", counts.matthews());
    }

    #[test]
    fn wrong_input_is_refused() {
        assert!(Confusion::new(1).is_err() && Confusion::new(2).unwrap().update(2, 0).is_err());
        assert!(multiclass_log_loss(&[0], &[vec![0.5, 0.6, -0.1]]).is_err());
        assert!(multiclass_log_loss(&[3], &[vec![0.5, 0.5]]).is_err());
        assert!(multiclass_log_loss(&[0, 0], &[vec![0.5, 0.5], vec![1.0]]).is_err());
        assert!(multiclass_auc(&[0, 0], &[vec![0.5, 0.5], vec![0.4, 0.6]]).unwrap().one_vs_one.is_nan());
    }
}
