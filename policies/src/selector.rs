//! Label selectors in a canonical form.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::Labels;

/// A label selector: the conjunction of its requirements. Two selectors that were written with the same
/// requirements in another order, or with `matchLabels` for `In` of one value, are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    requirements: Arc<[Requirement]>,
}

/// One requirement on one label: `matchExpressions[i]`, or one entry of `matchLabels`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    key: Arc<str>,
    operator: Operator,
    values: Arc<[Arc<str>]>,
}

/// `operator` of a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// The label is there with one of the values.
    In,
    /// The label is missing, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
}

/// Why a requirement is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// `In` or `NotIn` with no values.
    #[error("must have at least one value when the operator is In or NotIn")]
    NoValues,
    /// `Exists` or `DoesNotExist` with values.
    #[error("must have no values when the operator is Exists or DoesNotExist")]
    Values,
}

impl Requirement {
    /// A requirement on label `key`.
    pub fn new(
        key: impl Into<Arc<str>>,
        operator: Operator,
        values: impl IntoIterator<Item = Arc<str>>,
    ) -> Result<Self, SelectorError> {
        let values: BTreeSet<Arc<str>> = values.into_iter().collect();
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => Err(SelectorError::NoValues),
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => Err(SelectorError::Values),
            _ => Ok(Self { key: key.into(), operator, values: values.into_iter().collect() }),
        }
    }

    /// The label's key.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// The operator.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// The values, sorted, each once.
    pub fn values(&self) -> &[Arc<str>] {
        &self.values
    }

    /// Whether an object whose label `key` has this value (`None`: has no such label) meets it.
    pub fn admits(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.binary_search_by(|x| (**x).cmp(v)).is_ok();
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl Selector {
    /// The selector that asks for all of these; with none of them it selects everything.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let sorted: BTreeSet<Requirement> = requirements.into_iter().collect();
        Self { requirements: sorted.into_iter().collect() }
    }

    /// `{}`: everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// `matchLabels` with one entry.
    pub fn label(key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        let requirement =
            Requirement { key: key.into(), operator: Operator::In, values: Arc::new([value.into()]) };
        Self { requirements: Arc::new([requirement]) }
    }

    /// The requirements, sorted, each once.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it selects everything by having no requirement.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_by(|key| labels.get(key).map(|v| &**v))
    }

    /// Whether an object is selected whose label values this looks up.
    pub(crate) fn matches_by<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.admits(value(&r.key)))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (self.operator, &*self.values) {
            (Operator::Exists, _) => write!(f, "{key}"),
            (Operator::DoesNotExist, _) => write!(f, "!{key}"),
            (Operator::In, [value]) => write!(f, "{key}={value}"),
            (Operator::NotIn, [value]) => write!(f, "{key}!={value}"),
            (operator, values) => {
                let word = if operator == Operator::In { "in" } else { "notin" };
                write!(f, "{key} {word} ({})", values.join(","))
            }
        }
    }
}

/// As `kubectl --selector` writes it; the empty selector as `everything`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("everything");
        }
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect()
    }

    fn requirement(key: &str, operator: Operator, values: &[&str]) -> Requirement {
        Requirement::new(key, operator, values.iter().map(|v| Arc::from(*v))).unwrap()
    }

    #[test]
    fn a_missing_key_meets_not_in_and_does_not_exist_only() {
        let none = labels(&[]);
        for (operator, values, met) in [
            (Operator::In, &["a"][..], false),
            (Operator::NotIn, &["a"], true),
            (Operator::Exists, &[], false),
            (Operator::DoesNotExist, &[], true),
        ] {
            assert_eq!(
                Selector::new([requirement("k", operator, values)]).matches(&none),
                met,
                "{operator:?}"
            );
        }
    }

    #[test]
    fn a_present_key_is_compared_with_the_values() {
        let a = labels(&[("k", "a")]);
        for (operator, values, met) in [
            (Operator::In, &["a", "b"][..], true),
            (Operator::In, &["b"], false),
            (Operator::NotIn, &["b"], true),
            (Operator::NotIn, &["a", "b"], false),
            (Operator::Exists, &[], true),
            (Operator::DoesNotExist, &[], false),
        ] {
            assert_eq!(Selector::new([requirement("k", operator, values)]).matches(&a), met, "{operator:?}");
        }
    }

    #[test]
    fn order_and_repetition_do_not_matter() {
        let one = Selector::new([
            requirement("b", Operator::In, &["2", "1", "2"]),
            requirement("a", Operator::Exists, &[]),
        ]);
        let other = Selector::new([
            requirement("a", Operator::Exists, &[]),
            requirement("b", Operator::In, &["1", "2"]),
            requirement("a", Operator::Exists, &[]),
        ]);
        assert_eq!(one, other);
        assert_eq!(one.to_string(), "a,b in (1,2)");
        assert_eq!(Selector::label("k", "v"), Selector::new([requirement("k", Operator::In, &["v"])]));
    }

    #[test]
    fn values_go_with_in_and_not_in_only() {
        assert_eq!(Requirement::new("k", Operator::In, []), Err(SelectorError::NoValues));
        assert_eq!(Requirement::new("k", Operator::NotIn, []), Err(SelectorError::NoValues));
        assert_eq!(Requirement::new("k", Operator::Exists, [Arc::from("v")]), Err(SelectorError::Values));
    }
}
