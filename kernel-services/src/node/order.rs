//! In what order services start and stop.

use std::collections::BTreeMap;

use super::Service;

/// Returns the services in waves: each depends on earlier waves only, and starts in the first wave
/// that it can. Within a wave they keep the order of the file.
///
/// Every service is in exactly one wave. Dependencies that are not among `services` are passed
/// over; those who wait for each other, which a checked node has not, form the last wave.
pub fn start_order(services: &[Service]) -> Vec<Vec<&Service>> {
    let (mut waves, waiting) = waves(services);
    if !waiting.is_empty() {
        waves.push(waiting);
    }
    waves.iter().map(|wave| wave.iter().map(|&index| &services[index]).collect()).collect()
}

/// Returns the waves of [`start_order`] backwards: nobody loses what it depends on before it has
/// stopped itself.
pub fn stop_order(services: &[Service]) -> Vec<Vec<&Service>> {
    let mut waves = start_order(services);
    waves.reverse();
    for wave in &mut waves {
        wave.reverse();
    }
    waves
}

/// Returns cycles of dependencies, each service in one at most. Without those services there may be
/// more.
pub(super) fn cycles(services: &[Service]) -> Vec<Vec<usize>> {
    let (_, waiting) = waves(services);
    let requirements = requirements(services);
    let mut in_play = vec![false; services.len()];
    for &index in &waiting {
        in_play[index] = true;
    }
    let mut cycles = Vec::new();
    for &start in &waiting {
        let mut path: Vec<usize> = Vec::new();
        let mut next = in_play[start].then_some(start);
        while let Some(at) = next {
            // Whoever was passed leads to nothing but cycles that are known.
            in_play[at] = false;
            path.push(at);
            let ahead = &requirements[at];
            if let Some(begin) = path.iter().position(|passed| ahead.contains(passed)) {
                cycles.push(path.split_off(begin));
                break;
            }
            next = ahead.iter().copied().find(|&index| in_play[index]);
        }
    }
    cycles
}

/// Returns the waves, and who is in none because of a cycle.
fn waves(services: &[Service]) -> (Vec<Vec<usize>>, Vec<usize>) {
    let requirements = requirements(services);
    let mut open: Vec<usize> = requirements.iter().map(Vec::len).collect();
    let mut dependents = vec![Vec::new(); services.len()];
    for (index, required) in requirements.iter().enumerate() {
        for &other in required {
            dependents[other].push(index);
        }
    }
    let mut waves = Vec::new();
    let mut wave: Vec<usize> = (0..services.len()).filter(|&index| open[index] == 0).collect();
    while !wave.is_empty() {
        let mut next = Vec::new();
        for &dependent in wave.iter().flat_map(|&index| &dependents[index]) {
            open[dependent] -= 1;
            if open[dependent] == 0 {
                next.push(dependent);
            }
        }
        next.sort_unstable();
        waves.push(std::mem::replace(&mut wave, next));
    }
    let waiting = (0..services.len()).filter(|&index| open[index] > 0).collect();
    (waves, waiting)
}

/// Returns, for each service, the places of those it depends on, once each.
fn requirements(services: &[Service]) -> Vec<Vec<usize>> {
    let places: BTreeMap<&str, usize> =
        services.iter().enumerate().map(|(index, it)| (it.name.as_str(), index)).collect();
    let found = |service: &Service| {
        let mut found: Vec<usize> =
            service.depends_on.iter().filter_map(|name| places.get(&**name).copied()).collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    services.iter().map(found).collect()
}
