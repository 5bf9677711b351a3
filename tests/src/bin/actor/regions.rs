//! What a node can be told to do with shared regions.

use std::{collections::HashMap, time::Duration};

use ipc::{Node, Region, RegionAccess, RegionError, RegionOptions, ServiceId};

use crate::say;

/// Regions by the names that the test gives them.
#[derive(Default)]
pub(crate) struct Regions {
    all: HashMap<String, Region>,
}

impl Regions {
    /// - `make NAME SIZE`: says the id; `map NAME ID`: says the size
    /// - `grant NAME ID read|write|none`
    /// - `write NAME OFFSET TEXT`, `sync NAME`, `version NAME`, `read NAME OFFSET LENGTH`
    /// - `wait NAME SEEN TIMEOUT_MS`
    /// - `storm NAME`: writes all of it, and syncs, until it cannot
    /// - `rotate NAME NEW`: says the new id
    /// - `drop NAME`
    pub(crate) fn act(&mut self, node: &Node, words: &[&str]) {
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let outcome = match *words {
            ["make", name, size] => node
                .create_region(number(size), &RegionOptions::default())
                .map(|region| self.keep(name, region).id().to_string()),
            ["map", name, id] => {
                node.map_region(number(id)).map(|region| self.keep(name, region).size().to_string())
            }
            ["grant", name, id, access] => {
                let (region, to) = (&self.all[name], ServiceId::new(number(id) as u32));
                match access {
                    "none" => region.revoke(to),
                    "read" => region.grant(to, RegionAccess::Read),
                    _ => region.grant(to, RegionAccess::Write),
                }
                .map(|()| "granted".to_owned())
            }
            ["write", name, offset, text] => {
                let written = self.all[name].write_at(number(offset) as usize, text.as_bytes());
                written.map(|()| "written".to_owned())
            }
            ["read", name, offset, length] => {
                let mut bytes = Vec::new();
                let (offset, length) = (number(offset) as usize, number(length) as usize);
                self.all[name]
                    .copy_to(offset, length, &mut bytes)
                    .map(|()| String::from_utf8_lossy(&bytes).into_owned())
            }
            ["sync", name] => self.all[name].sync().map(|version| version.to_string()),
            ["version", name] => Ok(self.all[name].version().to_string()),
            ["wait", name, seen, timeout] => {
                say("waiting");
                let timeout = Duration::from_millis(number(timeout));
                self.all[name].wait(number(seen), Some(timeout)).map(|it| it.to_string())
            }
            ["storm", name] => {
                storm(self.all[name].clone());
                Ok("raging".to_owned())
            }
            ["rotate", name, new] => {
                self.all[name].rotate().map(|region| self.keep(new, region).id().to_string())
            }
            ["drop", name] => {
                self.all.remove(name);
                Ok("dropped".to_owned())
            }
            _ => panic!("no such command: region {words:?}"),
        };
        let outcome: Result<String, RegionError> = outcome;
        say(&match outcome {
            Ok(text) => format!("region {text}"),
            Err(error) => format!("region {}", error.status().name()),
        });
    }

    fn keep(&mut self, name: &str, region: Region) -> &Region {
        self.all.insert(name.to_owned(), region);
        &self.all[name]
    }
}

fn storm(region: Region) {
    std::thread::spawn(move || {
        for round in (0..=u8::MAX).cycle() {
            let bytes = vec![round; region.size()];
            if region.write_at(0, &bytes).and_then(|()| region.sync()).is_err() {
                return;
            }
        }
    });
}
