//! Rules by subject and object, so that a judgement does not read them all.
//!
//! Who cannot be identified is taken to be whom a denial by executable means, and never whom a
//! grant means.
//!
//! A rule lies in the one drawer of its subject, and there by its object: exact names in a map,
//! prefixes and the rest in a list. Each list ascends, so the first match of a list is its least.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::{Object, Operation, Rule, Subject, What, Who, concerns};

#[derive(Debug, Default)]
pub(super) struct Compiled {
    anybody: Drawer,
    services: HashMap<String, Drawer>,
    users: HashMap<u32, Drawer>,
    executables: HashMap<PathBuf, Drawer>,
    /// Denials by executable: they hold for who has no known one.
    unidentified: Drawer,
}

/// Indices of rules, ascending in each list.
#[derive(Debug, Default)]
struct Drawer {
    exact: HashMap<String, Vec<usize>>,
    others: Vec<usize>,
}

impl Compiled {
    pub(super) fn new(rules: &[Rule]) -> Compiled {
        let mut compiled = Compiled::default();
        for (index, rule) in rules.iter().enumerate() {
            let drawer = match &rule.subject {
                Subject::Any => &mut compiled.anybody,
                Subject::Service(name) => compiled.services.entry(name.clone()).or_default(),
                Subject::User(uid) => compiled.users.entry(*uid).or_default(),
                Subject::Executable(path) => {
                    if !rule.allow {
                        compiled.unidentified.put(index, &rule.object);
                    }
                    compiled.executables.entry(path.clone()).or_default()
                }
            };
            drawer.put(index, &rule.object);
        }
        compiled
    }

    /// Finds the first rule that matches.
    pub(super) fn first(
        &self,
        rules: &[Rule],
        who: &Who,
        what: What<'_>,
        operation: Operation,
    ) -> Option<usize> {
        let found = |drawer: Option<&Drawer>| drawer?.first(rules, what, operation);
        let by_subject = match who {
            Who::Supervised { service, .. } => found(self.services.get(service)),
            Who::Unsupervised { uid, executable, .. } => {
                let program = executable
                    .as_deref()
                    .map_or(Some(&self.unidentified), |path: &Path| self.executables.get(path));
                least(found(self.users.get(uid)), found(program))
            }
        };
        least(found(Some(&self.anybody)), by_subject)
    }
}

impl Drawer {
    fn put(&mut self, index: usize, object: &Object) {
        match object {
            Object::Name(name) if !name.ends_with('*') => {
                self.exact.entry(name.clone()).or_default().push(index);
            }
            Object::Any | Object::Name(_) | Object::Runtime => self.others.push(index),
        }
    }

    fn first(&self, rules: &[Rule], what: What<'_>, operation: Operation) -> Option<usize> {
        let grants = |&&index: &&usize| rules[index].operations & operation.bit() != 0;
        let exact = match what {
            What::Name { text, .. } => self.exact.get(text).map_or(&[][..], Vec::as_slice),
            What::Runtime => &[],
        };
        let named = exact.iter().find(grants).copied();
        let mut others = self.others.iter().filter(grants);
        least(named, others.find(|&&index| concerns(&rules[index].object, what)).copied())
    }
}

fn least(one: Option<usize>, other: Option<usize>) -> Option<usize> {
    one.into_iter().chain(other).min()
}
