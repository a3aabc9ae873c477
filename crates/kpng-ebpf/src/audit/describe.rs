//! What the kernel holds for one frontend, for people.

use std::net::SocketAddr;

use kpng_core::plan::{At, FrontendKey, Plan, Pool};

use super::held::Held;
use super::{Numbers, text};
use crate::layout::{self, Choice};
use crate::links::{Links, State};
use crate::{Ebpf, Error, render};

impl Ebpf {
    /// What the kernel holds for a frontend, line by line: the frontend, the pools that it leads to, who
    /// may come in, and where programs look at that.
    pub(crate) fn describe(
        &mut self,
        plan: &Plan,
        frontend: &FrontendKey,
    ) -> Result<Vec<String>, Error> {
        let Some((key, service, frontend)) = plan.owner(frontend) else { return Ok(Vec::new()) };
        if !render::is_served(frontend.protocol) {
            return Ok(Vec::new());
        }
        let held = Held::read(&self.config.root)?;
        let numbers = Numbers::of(service, &held);
        let at = render::frontend_key(frontend);
        let title = format!("frontends {}", layout::frontend_text(&at));
        let wanted = numbers.value(key, service, frontend);
        let mut lines = Vec::new();
        match held.frontends.get(&at) {
            None => lines.push(format!("{title} (missing)")),
            Some(value) => {
                let found = layout::frontend_of(value);
                let differs = format!(" (differs: {})", layout::frontend_of(&wanted));
                let state = if *value == wanted { "" } else { &differs };
                lines.push(format!("{title}: {found}{state}"));
                lines.extend(held.pool_lines(&found.choices, &service.pools, &numbers));
                let wanted = frontend.sources.as_deref().unwrap_or_default();
                if found.sources > 0 {
                    let found_ranges = held.ranges_of(found.sources);
                    let mut wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
                    wanted.sort_unstable();
                    let set = format!("ranges set {}", found.sources);
                    lines.push(list(&set, &found_ranges, &wanted));
                }
            }
        }
        if let At::Vip(ip) = frontend.at
            && service.cluster_ips.contains(&ip)
        {
            let closed = layout::closed_key(ip);
            let state = match held.frontends.get(&closed) {
                Some(value) if *value == layout::closed() => "",
                Some(_) => " (differs)",
                None => " (missing)",
            };
            lines.push(format!("frontends {}: reject{state}", layout::frontend_text(&closed)));
        }
        lines.extend(self.attachments(&held)?);
        Ok(lines)
    }

    /// Where programs are attached, and where they are not but shall be.
    fn attachments(&mut self, held: &Held) -> Result<Vec<String>, Error> {
        let mut links = Links::open(&self.config)?;
        let devices = self.config.chosen(self.devices.links()?);
        let (mut attached, mut lines) = (0, Vec::new());
        let wanted = links.wanted(&devices);
        for attachment in &wanted {
            match links.state(attachment)? {
                State::Here(program) if held.are_used_by(program)? => attached += 1,
                State::Here(_) => lines.push(format!("{attachment} (looks at other tables)")),
                State::Elsewhere => lines.push(format!("{attachment} (attached elsewhere)")),
                State::Missing => lines.push(format!("{attachment} (missing)")),
            }
        }
        lines.insert(0, format!("{attached} of {} programs are attached", wanted.len()));
        Ok(lines)
    }
}

impl Held {
    /// A line for each pool that a frontend leads to.
    fn pool_lines(
        &self,
        choices: &[Option<Choice>; 3],
        pools: &[Pool],
        numbers: &Numbers,
    ) -> Vec<String> {
        let mut seen = Vec::new();
        for choice in choices.iter().flatten() {
            if let Choice::Forward { pool, count, .. } = *choice
                && !seen.contains(&(pool, count))
            {
                seen.push((pool, count));
            }
        }
        let mut lines = Vec::new();
        for (number, count) in seen {
            let pool = numbers.pools.iter().position(|known| *known == Some(number));
            let pool = pool.map(|pool| &pools[pool]);
            let wanted = texts(pool.into_iter().flat_map(|pool| &pool.targets).map(|t| text(*t)));
            let targets = (0..count.into()).filter_map(|index| {
                self.targets.get(&layout::target_key(number, index)).map(layout::endpoint_of)
            });
            lines.push(list(&format!("targets pool {number}"), &texts(targets), &wanted));
            if pool.is_some_and(|pool| pool.affinity.is_some()) {
                let of_pool = |key| {
                    let (set, endpoint) = layout::member_of(key);
                    (set == u64::from(number)).then_some(endpoint)
                };
                let mut members: Vec<_> = self.members.iter().filter_map(of_pool).collect();
                members.sort_unstable();
                lines.push(list(&format!("members pool {number}"), &texts(members), &wanted));
            }
        }
        lines
    }

    fn ranges_of(&self, set: u32) -> Vec<String> {
        let ranges = self.ranges.iter().map(layout::range_of);
        let of_set = ranges.filter(|(of, _)| *of == set).filter_map(|(_, range)| range);
        let mut texts: Vec<_> = of_set.map(|range| range.to_string()).collect();
        texts.sort_unstable();
        texts
    }
}

fn texts(endpoints: impl IntoIterator<Item = SocketAddr>) -> Vec<String> {
    endpoints.into_iter().map(|endpoint| endpoint.to_string()).collect()
}

/// `TITLE: FOUND …`, and what is wanted if that differs.
fn list(title: &str, found: &[String], wanted: &[String]) -> String {
    let line = format!("{title}: {}", found.join(" "));
    match found == wanted {
        true => line,
        false => format!("{line} (differs: {})", wanted.join(" ")),
    }
}
