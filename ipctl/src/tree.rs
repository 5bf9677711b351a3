//! `ipctl tree`: which service needs which?

use std::{
    collections::HashSet,
    fmt::{self, Write as _},
};

use clap::Args;
use ipc::Config;
use serde::Serialize;

use crate::{
    failure::Failure,
    output::Output,
    supervised::{Supervisor, Unit},
};

/// Draw the supervised services, each above those that it depends on.
#[derive(Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Arguments {}

const HELP: &str = "\
Examples:
  ipctl tree
  ipctl tree --json | jq -r '.[] | select(.depends_on | length == 0) | .service'

At the left stand the services that nobody depends on. A service is drawn once with all that it
needs; where it is needed again, it is followed by an arrow up.";

pub(crate) fn run(_: &Arguments, config: &Config, output: Output) -> Result<(), Failure> {
    let tree = Tree::new(&Supervisor::connect(config)?.units()?);
    if tree.0.is_empty() {
        output.remark("no services: the node file has none");
    }
    output.show(&tree)
}

#[derive(Serialize)]
struct Tree(Vec<Service>);

#[derive(Serialize)]
struct Service {
    #[serde(rename = "service")]
    name: String,
    group: Option<String>,
    depends_on: Vec<String>,
    needed_by: Vec<String>,
    units: Vec<State>,
}

#[derive(Serialize)]
struct State {
    name: String,
    state: String,
}

impl Tree {
    fn new(units: &[Unit]) -> Tree {
        let mut services: Vec<Service> = Vec::new();
        for unit in units {
            let state = State { name: unit.name.clone(), state: unit.state.clone() };
            match services.iter_mut().find(|it| it.name == unit.service) {
                Some(service) => service.units.push(state),
                None => services.push(Service {
                    name: unit.service.clone(),
                    group: unit.group.clone(),
                    depends_on: unit.depends_on.clone(),
                    needed_by: needed_by(units, &unit.service),
                    units: vec![state],
                }),
            }
        }
        Tree(services)
    }

    fn find(&self, name: &str) -> Option<&Service> {
        self.0.iter().find(|it| it.name == name)
    }

    /// Draws a service, and below it those that it needs unless they are drawn already.
    fn draw(&self, service: &Service, indent: &str, drawn: &mut HashSet<String>) -> String {
        let mut text = format!("{}  {}", service.name, service.states());
        if !drawn.insert(service.name.clone()) {
            // Nothing would follow of a service that needs nobody.
            text.push_str(if service.depends_on.is_empty() { "\n" } else { "  ↑\n" });
            return text;
        }
        text.push('\n');
        let needs: Vec<_> = service.depends_on.iter().filter_map(|it| self.find(it)).collect();
        for (index, needed) in needs.iter().enumerate() {
            let is_last = index + 1 == needs.len();
            let (branch, beside) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let below = self.draw(needed, &format!("{indent}{beside}"), drawn);
            let _ = write!(text, "{indent}{branch}{below}");
        }
        text
    }
}

fn needed_by(units: &[Unit], service: &str) -> Vec<String> {
    let needs = |unit: &&Unit| unit.depends_on.iter().any(|it| it == service);
    let mut names: Vec<String> =
        units.iter().filter(needs).map(|unit| unit.service.clone()).collect();
    names.dedup();
    names
}

impl Service {
    /// The state of the only replica, or how many are in which.
    fn states(&self) -> String {
        if let [only] = self.units.as_slice() {
            return only.state.clone();
        }
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for unit in &self.units {
            match counts.iter_mut().find(|(state, _)| *state == unit.state) {
                Some((_, count)) => *count += 1,
                None => counts.push((&unit.state, 1)),
            }
        }
        let counts: Vec<_> =
            counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
        counts.join(", ")
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut drawn = HashSet::new();
        for service in self.0.iter().filter(|it| it.needed_by.is_empty()) {
            f.write_str(&self.draw(service, "", &mut drawn))?;
        }
        // A circle cannot be in a node file. Nobody shall be missing all the same.
        for service in &self.0 {
            if !drawn.contains(&service.name) {
                f.write_str(&self.draw(service, "", &mut drawn))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervised::tests::unit;

    #[test]
    fn each_service_is_drawn_once_with_all_that_it_needs() {
        let tree = Tree::new(&[
            unit("disk", "finished", &[]),
            unit("store", "ready", &["disk"]),
            unit("auth", "failed", &["store"]),
            unit("api#1", "ready", &["store", "auth"]),
            unit("api#2", "backing-off", &["store", "auth"]),
            unit("api#3", "ready", &["store", "auth"]),
            unit("web", "waiting", &["api", "disk"]),
            unit("clock", "ready", &[]),
        ]);
        let lines = [
            "web  waiting",
            "├─ api  2 ready, 1 backing-off",
            "│  ├─ store  ready",
            "│  │  └─ disk  finished",
            "│  └─ auth  failed",
            "│     └─ store  ready  ↑",
            "└─ disk  finished",
            "clock  ready",
            "",
        ];
        assert_eq!(tree.to_string(), lines.join("\n"));
    }

    #[test]
    fn a_circle_is_drawn_and_ends() {
        let tree = Tree::new(&[unit("a", "ready", &["b"]), unit("b", "ready", &["a"])]);
        assert_eq!(tree.to_string(), "a  ready\n└─ b  ready\n   └─ a  ready  ↑\n");
    }

    #[test]
    fn programs_get_an_array_of_services() {
        let tree = Tree::new(&[
            unit("store", "ready", &[]),
            unit("api#1", "ready", &["store"]),
            unit("api#2", "failed", &["store"]),
        ]);
        let json = serde_json::to_value(&tree).expect("plain data");
        assert_eq!(json[0]["needed_by"], serde_json::json!(["api"]));
        assert_eq!(json[1]["units"][1], serde_json::json!({"name": "api#2", "state": "failed"}));
    }
}
