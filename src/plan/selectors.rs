//! Which label selectors can select the same pod.

use std::collections::{BTreeMap, BTreeSet};

/// Selectors (`matchLabels`) of one namespace, none of which overlaps another that is not equal to it.
///
/// Two overlap unless they want different values of one label: a pod with the labels of both can exist.
#[derive(Debug)]
pub struct DisjointSelectors<'a, T> {
    /// By the labels that they name: the selectors, and which of them want a value of a label.
    groups: BTreeMap<BTreeSet<&'a str>, Group<'a, T>>,
}

#[derive(Debug)]
struct Group<'a, T> {
    selectors: BTreeMap<&'a BTreeMap<String, String>, T>,
    by_label: BTreeMap<(&'a str, &'a str), Vec<&'a BTreeMap<String, String>>>,
}

impl<T> Default for DisjointSelectors<'_, T> {
    fn default() -> Self {
        Self { groups: BTreeMap::new() }
    }
}

impl<'a, T: Copy> DisjointSelectors<'a, T> {
    /// Whether a selector can be added.
    ///
    /// # Errors
    /// What an unequal selector came with that overlaps it.
    pub fn check(&self, selector: &BTreeMap<String, String>) -> Result<(), T> {
        self.overlapping(selector).map_or(Ok(()), Err)
    }

    /// Adds a selector; one that is there already keeps what it came with.
    ///
    /// # Errors
    /// What an unequal selector came with that overlaps it; it is then not added.
    pub fn insert(&mut self, selector: &'a BTreeMap<String, String>, with: T) -> Result<(), T> {
        if let Some(other) = self.overlapping(selector) {
            return Err(other);
        }
        let names: BTreeSet<&str> = selector.keys().map(String::as_str).collect();
        let group = self
            .groups
            .entry(names)
            .or_insert_with(|| Group { selectors: BTreeMap::new(), by_label: BTreeMap::new() });
        if group.selectors.contains_key(selector) {
            return Ok(());
        }
        group.selectors.insert(selector, with);
        for (name, value) in selector {
            group.by_label.entry((name, value)).or_default().push(selector);
        }
        Ok(())
    }

    fn overlapping(&self, selector: &BTreeMap<String, String>) -> Option<T> {
        self.groups.iter().find_map(|(names, group)| {
            // Of the labels that both name, the one whose value is rarest leaves the fewest to compare.
            let shared = selector.iter().filter(|(name, _)| names.contains(name.as_str()));
            let rarest = shared
                .map(|(name, value)| {
                    group.by_label.get(&(name.as_str(), value.as_str())).map_or(&[][..], Vec::as_slice)
                })
                .min_by_key(|candidates| candidates.len());
            let Some(candidates) = rarest else {
                return group.selectors.values().next().copied();
            };
            let other =
                candidates.iter().find(|other| **other != selector && !contradict(other, selector))?;
            group.selectors.get(*other).copied()
        })
    }
}

fn contradict(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> bool {
    a.iter().any(|(name, value)| b.get(name).is_some_and(|other| other != value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selector(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn only_a_contradiction_keeps_two_apart() {
        let (a, b) = (selector(&[("app", "a")]), selector(&[("app", "b")]));
        let (wide, other) = (selector(&[("app", "a"), ("v", "1")]), selector(&[("tier", "web")]));
        let mut all = DisjointSelectors::default();
        assert_eq!(all.insert(&a, 1), Ok(()));
        assert_eq!(all.insert(&b, 2), Ok(()), "another value of the same label");
        assert_eq!(all.insert(&a, 3), Ok(()), "an equal selector");
        assert_eq!(all.insert(&wide, 4), Err(1), "a part of the first");
        assert_eq!(all.insert(&other, 5), Err(1), "no label in common");
    }

    proptest! {
        #[test]
        fn agrees_with_comparing_all_pairs(
            selectors in proptest::collection::vec(
                proptest::collection::btree_map("[a-c]", "[x-z]", 1..4), 0..12),
        ) {
            let mut indexed = DisjointSelectors::default();
            let mut plain: Vec<&BTreeMap<String, String>> = Vec::new();
            for (at, selector) in selectors.iter().enumerate() {
                let overlaps = plain.iter().any(|p| *p != selector && !contradict(p, selector));
                prop_assert_eq!(indexed.insert(selector, at).is_err(), overlaps);
                if !overlaps {
                    plain.push(selector);
                }
            }
        }
    }
}
