//! What the kernel says about this process, under the names that Prometheus' client libraries use.
//!
//! Read from `/proc` when Prometheus asks; what cannot be read is left out.

use std::fmt;
use std::fs;
use std::str::FromStr;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use rustix::process::{Resource, getrlimit};

/// Ticks of a second in `/proc`, the same on every architecture that this runs on (`USER_HZ`).
const TICKS: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        if let Some(times) = Times::read() {
            encoder
                .encode_descriptor(
                    "process_cpu_seconds",
                    "Time on a CPU, of user and system",
                    None,
                    MetricType::Counter,
                )?
                .encode_counter::<NoLabelSet, _, u64>(&times.cpu, None)?;
            if let Some(start) = times.start {
                let help = "When the process began, since the Unix epoch";
                gauge(encoder, "process_start_time_seconds", help, &start)?;
            }
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(bytes) = kibibytes(&status, "VmRSS:") {
            gauge(encoder, "process_resident_memory_bytes", "Memory in use", &bytes)?;
        }
        if let Some(bytes) = kibibytes(&status, "VmSize:") {
            gauge(encoder, "process_virtual_memory_bytes", "Address space in use", &bytes)?;
        }
        if let Some(open) = open_descriptors() {
            gauge(encoder, "process_open_fds", "Open file descriptors", &open)?;
        }
        match getrlimit(Resource::Nofile).current {
            Some(max) => gauge(encoder, "process_max_fds", "The limit of open_fds", &max),
            None => Ok(()),
        }
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: &impl EncodeGaugeValue,
) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(value)
}

/// In seconds.
struct Times {
    cpu: f64,
    start: Option<f64>,
}

impl Times {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let boot = fs::read_to_string("/proc/stat").ok();
        Self::parse(&stat, boot.as_deref())
    }

    /// Of proc(5): `stat` of the process has utime, stime and starttime in fields 14, 15 and 22,
    /// and a name in parentheses that may hold anything; `stat` of the system has `btime`.
    fn parse(stat: &str, system: Option<&str>) -> Option<Self> {
        let (_, after_name) = stat.rsplit_once(')')?;
        let fields: Vec<_> = after_name.split_ascii_whitespace().collect();
        let ticks = |number: usize| f64::from_str(fields.get(number - 3)?).ok();
        let boot: Option<f64> = system.and_then(|system| {
            system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
        });
        Some(Self {
            cpu: (ticks(14)? + ticks(15)?) / TICKS,
            start: boot.and_then(|boot| Some(boot + ticks(22)? / TICKS)),
        })
    }
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(number * 1024)
}

/// Without the one that looks.
fn open_descriptors() -> Option<u64> {
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 90 0 0 0 150 50 0 0 20 0 1 0 12300 9 9";
        let times = Times::parse(stat, Some("cpu 1 2\nbtime 1700000000\n")).unwrap();
        assert_eq!((times.cpu, times.start), (2.0, Some(1_700_000_123.0)));
        assert_eq!(Times::parse(stat, None).unwrap().start, None);
        assert!(Times::parse("7 (short) S 1", None).is_none());
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tkpng\nVmRSS:\t    12 kB\n";
        assert_eq!(kibibytes(status, "VmRSS:"), Some(12_288));
        assert_eq!(kibibytes(status, "VmSize:"), None);
    }

    #[test]
    fn this_process_has_all_of_it() {
        let times = Times::read().unwrap();
        let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let age = age.as_secs_f64() - times.start.unwrap();
        assert!((-1.0..86_400.0).contains(&age), "{age} s old");
        assert!(times.cpu < 86_400.0);
        let open = open_descriptors().unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(open_descriptors().unwrap() > 0 && open > 0, "{open} without {file:?}");
    }
}
