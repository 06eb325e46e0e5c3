//! A rollout as it is stored, and the route that it asks for.

use super::{DRIFT, KIND, refuse_by_hand};
use crate::feedback::performance::has_labels;
use crate::feedback::refuse_rollout;
use crate::models::CHAMPION;
use crate::traffic;
use sconce_core::{Error, ModelName, ModelVersion, Result};
use sconce_registry::{Document, Names, Registry, RegistryError};
use sconce_traffic::rollout::{ACCURACY, Action, Phase, Plan, Rollout, SHADOW_DISAGREEMENT, Wanted};
use sconce_traffic::route::{RouteSpec, ShadowSpec, SplitSpec, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The label of what answers where there was no route.
const CONTROL: &str = "control";

/// What the document of a rollout holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) rollout: Rollout,
    /// What the plan's candidate meant when the rollout began, and its label among the variants.
    pub(crate) candidate: ModelVersion,
    pub(crate) candidate_variant: String,
    /// What the plan's alias meant then, and the label of what answers with it.
    pub(crate) control: ModelVersion,
    pub(crate) control_variant: String,
    /// The route from before, which comes back in the end; `None`: there was none.
    pub(super) route: Option<RouteSpec>,
}

impl Stored {
    /// Begins `plan` for `name`; `is_watched` says it of a candidate, and `queries` are those that gave a number. With what is to be done, and the revision of the rollout before it.
    ///
    /// # Errors
    /// `Invalid` with every problem of the plan; `Precondition` while another rollout is under way, where nothing is there to hold
    /// the candidate against, and where requests do not all go to it; `NotFound` for the model or the candidate.
    pub(super) fn begin(
        registry: &Registry,
        name: &ModelName,
        plan: Plan,
        now_ms: u64,
        is_watched: impl FnOnce(ModelVersion) -> bool,
        queries: impl IntoIterator<Item = String>,
    ) -> Result<(Self, Vec<Action>, Option<u64>), RegistryError> {
        let model = registry.model(name)?;
        let previous = registry.document(name, KIND)?.map(|previous| previous.revision);
        let route = registry.document(name, traffic::KIND)?.map(|route| traffic::parse(&route)).transpose();
        let route = route.map_err(|error| RegistryError::Damaged(error.to_string()))?;
        let route = route.map(|route| route.spec().clone());
        let mut known: BTreeSet<String> = queries.into_iter().collect();
        if route.iter().flat_map(|route| &route.shadows).any(|shadow| shadow.target == plan.candidate) {
            known.insert(SHADOW_DISAGREEMENT.to_owned());
        }
        // One that is none is a problem of the plan, and told with the others.
        if registry.resolve(name, &plan.candidate).is_ok_and(is_watched) {
            known.insert(DRIFT.to_owned());
        }
        if has_labels(registry.journal(), name, now_ms)? {
            known.insert(ACCURACY.to_owned());
        }
        let alias = plan.alias.clone();
        let begun = Rollout::start(plan, &known, now_ms);
        let (rollout, actions) = begun.map_err(|problems| RegistryError::Invalid(problems.to_string()))?;
        refuse_by_hand(registry, name, None)?;
        refuse_rollout(registry, name)?;
        let candidate = registry.resolve(name, &rollout.plan().candidate)?;
        let refuse = |why: String| RegistryError::Precondition(format!("model `{name}`: {why}"));
        let none =
            || refuse(format!("there is no alias `{alias}`, so nothing to hold the candidate against"));
        let control = model.aliases.get(&alias).ok_or_else(none)?.version;
        if control == candidate {
            return Err(refuse(format!("version {candidate} is what `{alias}` means already")));
        }
        let control_variant = match &route {
            None if alias == CHAMPION => CONTROL.to_owned(),
            None => return Err(refuse(format!("requests do not go to `{alias}`: it has no route"))),
            Some(route) => controlling(route, &alias).map_err(refuse)?,
        };
        let target = candidate.to_string();
        let labels = route.iter().flat_map(|route| {
            let splits = route.splits.iter().map(|split| (&split.target, &split.variant));
            splits.chain(route.shadows.iter().map(|shadow| (&shadow.target, &shadow.variant)))
        });
        let label = labels.into_iter().find(|(of, _)| **of == target).map(|(_, label)| label.clone());
        let candidate_variant = label.unwrap_or_else(|| format!("v{candidate}"));
        Ok((
            Self { rollout, candidate, candidate_variant, control, control_variant, route },
            actions,
            previous,
        ))
    }

    /// The rollout in `document`.
    ///
    /// # Errors
    /// `Internal` when it holds none.
    pub(super) fn parse(document: &Document) -> Result<Self> {
        Deserialize::deserialize(&document.value).map_err(|error: serde_json::Error| {
            Error::internal(format!("model `{}`: the stored rollout cannot be read: {error}", document.model))
        })
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.rollout.phase(), Phase::Ended(_))
    }

    /// What must stay while it is under way. That something must is how others know that it is.
    pub(super) fn names(&self) -> Names {
        if self.has_ended() {
            return Names::default();
        }
        let alias = self.rollout.plan().alias.clone();
        Names { versions: [self.candidate, self.control].into(), aliases: [alias].into() }
    }

    /// The route that there should be; `None`: none.
    pub(super) fn route(&self) -> Option<RouteSpec> {
        let (percent, mirror) = match self.rollout.wanted() {
            Wanted::Share { percent, mirror } if percent > 0.0 || mirror => (percent, mirror),
            _ => return self.route.clone(),
        };
        let mut spec = self.route.clone().unwrap_or_else(|| RouteSpec::all_to(CONTROL, ""));
        let (variant, target) = (self.candidate_variant.clone(), self.candidate.to_string());
        if let Some(control) = spec.splits.iter_mut().find(|split| split.variant == self.control_variant) {
            control.percent = 100.0 - percent;
        }
        match spec.splits.iter_mut().find(|split| split.variant == variant) {
            Some(candidate) => candidate.percent = percent,
            None => {
                let (variant, target) = (variant.clone(), target.clone());
                spec.splits.push(SplitSpec { variant, id: None, target, percent });
            }
        }
        if mirror && spec.shadows.iter().all(|shadow| shadow.variant != variant) {
            spec.shadows.push(ShadowSpec::new(variant, target));
        }
        Some(spec)
    }
}

/// The label of the variant that answers all requests of `route`, if it does so with what `alias` means.
///
/// # Errors
/// What is there instead.
fn controlling(route: &RouteSpec, alias: &str) -> Result<String, String> {
    let Some(control) = route.splits.iter().find(|split| split.percent == 100.0) else {
        return Err(
            "its route splits requests among several variants: give one of them 100 percent first".to_owned()
        );
    };
    match Target::parse(&control.target) {
        Some(Target::Default) if alias == CHAMPION => Ok(control.variant.clone()),
        Some(Target::Alias(target)) if *target == *alias => Ok(control.variant.clone()),
        _ => Err(format!(
            "its route sends requests to `{}` and not to `{alias}`, so promoting would change nothing",
            control.target
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(route: Option<RouteSpec>, candidate_variant: &str, control_variant: &str) -> Stored {
        let plan = r#"{ "candidate": "2", "strategy": { "canary": { "stages": [
            { "percent": 0, "mirror": true }, { "percent": 12.5 }, { "percent": 100 } ] } } }"#;
        let (rollout, _) = Rollout::start(serde_json::from_str(plan).unwrap(), &BTreeSet::new(), 0).unwrap();
        let version = |number| ModelVersion::new(number).unwrap();
        Stored {
            rollout,
            candidate: version(2),
            candidate_variant: candidate_variant.to_owned(),
            control: version(1),
            control_variant: control_variant.to_owned(),
            route,
        }
    }

    fn shares(spec: &RouteSpec) -> Vec<(&str, &str, f64)> {
        spec.splits.iter().map(|it| (it.variant.as_str(), it.target.as_str(), it.percent)).collect()
    }

    #[test]
    fn a_rollouts_route_comes_from_the_one_before_and_gives_it_back() {
        let mut without = stored(None, "v2", CONTROL);
        let spec = without.route().unwrap();
        assert_eq!(shares(&spec), [("control", "", 100.0), ("v2", "2", 0.0)]);
        assert_eq!(spec.shadows, [ShadowSpec::new("v2", "2")]);
        without.rollout.abort(1, "me", "").unwrap();
        assert_eq!((without.route(), without.names()), (None, Names::default()));

        // What the route has beside stays, and a shadow that sees the candidate already is the mirror.
        let mut before = RouteSpec::all_to("old", "champion");
        before.shadows =
            vec![ShadowSpec { sample: 0.5, ..ShadowSpec::new("new", "2") }, ShadowSpec::new("x", "3")];
        let mut with = stored(Some(before.clone()), "new", "old");
        let spec = with.route().unwrap();
        assert_eq!(shares(&spec), [("old", "champion", 100.0), ("new", "2", 0.0)]);
        assert_eq!(spec.shadows, before.shadows);
        with.rollout.abort(1, "me", "").unwrap();
        assert_eq!(with.route(), Some(before));
    }

    #[test]
    fn who_answers_everything_with_the_alias_is_the_control() {
        let one = |target: &str| RouteSpec::all_to("it", target);
        for (route, alias) in
            [(one(""), "champion"), (one("champion"), "champion"), (one("stable"), "stable")]
        {
            assert_eq!(controlling(&route, alias).unwrap(), "it");
        }
        for (route, alias, says) in [
            (one(""), "stable", "and not to `stable`"),
            (one("1"), "champion", "sends requests to `1`"),
            (RouteSpec::default(), "champion", "splits requests among several"),
        ] {
            assert!(controlling(&route, alias).unwrap_err().contains(says), "{route:?}");
        }
    }
}
