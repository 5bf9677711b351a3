//! What several values of a node file can have wrong together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::{
    Sandbox, Strategy, Subject, failover,
    fault::instead,
    fields::{Reading, Span},
    order,
    parse::Draft,
    quantity::quoted,
    rules,
};
use crate::sandbox::names;

/// Checks all that is in the text.
pub(super) fn text(reading: &mut Reading, draft: &Draft) {
    provided_names(reading, draft);
    dependencies(reading, draft);
    cycles(reading, draft);
    groups(reading, draft);
    subjects(reading, draft);
    unreached_rules(reading, draft);
    system_calls(reading, draft);
    failover::check(reading, draft);
}

/// Whether what a node file names must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    Fault,
    Warning,
}

/// Checks that each service's program and directory are there.
pub(super) fn files(reading: &mut Reading, draft: &Draft, absence: Absence) {
    for (service, places) in draft.node.services.iter().zip(&draft.services) {
        let directory = is_directory(&service.directory).map(|wrong| (wrong, &places.directory));
        // An empty path was reported when it was read.
        let program = Some(&service.executable).filter(|path| !path.as_os_str().is_empty());
        let program = program.and_then(|path| is_program(path));
        for ((what, hint), at) in
            program.map(|it| (it, &places.executable)).into_iter().chain(directory)
        {
            match absence {
                Absence::Fault => reading.fault(at.clone(), what, hint),
                Absence::Warning => reading.warn(at.clone(), what, hint),
            }
        }
    }
}

/// Says what is wrong, and what to do.
type Complaint = Option<(String, &'static str)>;

fn is_program(path: &Path) -> Complaint {
    let shown = path.display();
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some((format!("there is no {shown}"), "build or install it, or correct the path"))
        }
        Err(error) => Some((format!("cannot look at {shown}: {error}"), "correct the path")),
        Ok(found) if !found.is_file() => {
            Some((format!("{shown} is not a file"), "name the program itself"))
        }
        Ok(found) if found.permissions().mode() & 0o111 == 0 => {
            Some((format!("{shown} is not executable"), "run `chmod +x` on it"))
        }
        Ok(_) => None,
    }
}

fn is_directory(path: &Path) -> Complaint {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some((format!("{shown} is not a directory"), "name a directory")),
        Err(error) => Some((
            format!("cannot use the directory {shown}: {error}"),
            "create it, or correct the path",
        )),
    }
}

fn provided_names(reading: &mut Reading, draft: &Draft) {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for (service, places) in draft.node.services.iter().zip(&draft.services) {
        for (name, at) in service.provides.iter().zip(&places.provides) {
            let Some(owner) = owners.insert(name, &service.name) else { continue };
            let name = quoted(name);
            if owner == service.name {
                let what = format!("{} provides {name} twice", service.name);
                reading.fault(at.clone(), what, "take one out");
            } else {
                let what = format!("both {owner} and {} provide {name}", service.name);
                let hint = "let one have it; replicas = N makes more processes of one service";
                reading.fault(at.clone(), what, hint);
            }
        }
    }
}

fn dependencies(reading: &mut Reading, draft: &Draft) {
    let known = service_names(draft);
    for (service, places) in draft.node.services.iter().zip(&draft.services) {
        let mut seen = BTreeSet::new();
        for (name, at) in service.depends_on.iter().zip(&places.depends_on) {
            if !known.contains(&name.as_str()) {
                let what =
                    format!("{} depends on {}, which is not here", service.name, quoted(name));
                reading.fault(at.clone(), what, instead(name, &known, "services are"));
            } else if !seen.insert(name) {
                let what = format!("{} depends on {name} twice", service.name);
                reading.fault(at.clone(), what, "take one out");
            }
        }
    }
}

fn cycles(reading: &mut Reading, draft: &Draft) {
    let services = &draft.node.services;
    for cycle in order::cycles(services) {
        let first = cycle[0];
        let second = &services[*cycle.get(1).unwrap_or(&first)].name;
        let places = services[first].depends_on.iter().zip(&draft.services[first].depends_on);
        let at = places.clone().find(|(name, _)| *name == second).map(|(_, at)| at.clone());
        let mut names: Vec<&str> = cycle.iter().map(|&it| services[it].name.as_str()).collect();
        names.push(names[0]);
        let what = format!("dependencies run in a circle: {}", names.join(" -> "));
        reading.fault(at.unwrap_or_default(), what, "none of them could start: take one out");
    }
}

fn groups(reading: &mut Reading, draft: &Draft) {
    let known = service_names(draft);
    let mut groups_of: BTreeMap<&str, &str> = BTreeMap::new();
    for (group, places) in draft.node.groups.iter().zip(&draft.groups) {
        let is_service = known.contains(&group.name.as_str());
        if is_service && !group.members.contains(&group.name) {
            let what = format!("the group {0} is called like the service {0}", group.name);
            reading.fault(places.name.clone(), what, "rename it, or make the service a member");
        }
        for (member, at) in group.members.iter().zip(&places.members) {
            if !known.contains(&member.as_str()) {
                let what =
                    format!("{} has the member {}, which is not here", group.name, quoted(member));
                reading.fault(at.clone(), what, instead(member, &known, "services are"));
            } else if let Some(other) = groups_of.insert(member, &group.name) {
                let what = if other == group.name {
                    format!("{member} is twice in the group {other}")
                } else {
                    format!("{member} is in the groups {other} and {}", group.name)
                };
                reading.fault(at.clone(), what, "leave it in one place");
            }
        }
        if group.strategy == Strategy::RestForOne {
            order_of_members(reading, draft, &group.members, &places.members);
        }
    }
}

/// Warns where one stays when what it depends on is restarted, although the group restarts the
/// rest.
fn order_of_members(reading: &mut Reading, draft: &Draft, members: &[String], places: &[Span]) {
    for (index, (member, at)) in members.iter().zip(places).enumerate() {
        let service = draft.node.services.iter().find(|service| service.name == *member);
        let later = &members[index + 1..];
        let Some(service) = service else { continue };
        if let Some(other) = service.depends_on.iter().find(|it| later.contains(it)) {
            let what = format!("{member} depends on {other}, which comes after it");
            let hint = format!("rest_for_one does not restart it with {other}: put {other} first");
            reading.warn(at.clone(), what, hint);
        }
    }
}

fn subjects(reading: &mut Reading, draft: &Draft) {
    let known = service_names(draft);
    for (rule, at) in draft.node.rules.iter().zip(&draft.rules) {
        if let Subject::Service(name) = &rule.subject
            && !known.contains(&name.as_str())
        {
            let what = format!("the rule is from {}, which is not here", quoted(name));
            reading.fault(at.from.clone(), what, instead(name, &known, "services are"));
        }
    }
}

fn unreached_rules(reading: &mut Reading, draft: &Draft) {
    let rules = &draft.node.rules;
    for (index, (rule, at)) in rules.iter().zip(&draft.rules).enumerate() {
        let by = rules::covering(&rules[..index], rule);
        if by.is_empty() {
            continue;
        }
        let numbers: Vec<String> = by.iter().map(|index| (index + 1).to_string()).collect();
        let which = if by.len() == 1 { "rule" } else { "rules" };
        let what = format!("rule {} never decides: {which} {} did", index + 1, numbers.join(", "));
        reading.warn(at.whole.clone(), what, "the first that matches counts: move it up, or out");
    }
}

fn system_calls(reading: &mut Reading, draft: &Draft) {
    for (service, places) in draft.node.services.iter().zip(&draft.services) {
        let Sandbox::On(grants) = &service.sandbox else { continue };
        for (name, at) in grants.system_calls.iter().zip(&places.system_calls) {
            if names::number(name).is_none() {
                let what = format!("there is no system call {}", quoted(name));
                let hint = "write it as strace shows it; `man 2 syscalls` lists them";
                reading.fault(at.clone(), what, hint);
            }
        }
    }
}

fn service_names(draft: &Draft) -> Vec<&str> {
    draft.node.services.iter().map(|service| service.name.as_str()).collect()
}
