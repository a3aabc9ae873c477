//! What this process and others have used: time and memory; and this one's output.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::param::clock_ticks_per_second;
use rustix::time::{ClockId, clock_gettime};

use super::table::Figures;

/// Wall time and processor time of a stretch of work. Processor time is that of the calling thread,
/// in user space and in the kernel on its behalf: nf_tables commits in our `sendmsg`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Time that passed.
    pub(crate) wall: Duration,
    /// Time of the processor.
    pub(crate) cpu: Duration,
}

/// Measures what `work` costs.
pub(crate) fn cost<T>(work: impl FnOnce() -> Result<T>) -> Result<(Cost, T)> {
    let (wall, cpu) = (Instant::now(), cpu_time()?);
    let result = work()?;
    Ok((Cost { wall: wall.elapsed(), cpu: cpu_time()?.saturating_sub(cpu) }, result))
}

/// Measures what `work` costs all threads of this process, and the programs that it starts.
pub(crate) fn process_cost<T>(work: impl FnOnce() -> Result<T>) -> Result<(Cost, T)> {
    let (wall, cpu) = (Instant::now(), process_cpu_time()?);
    let result = work()?;
    Ok((Cost { wall: wall.elapsed(), cpu: process_cpu_time()?.saturating_sub(cpu) }, result))
}

fn process_cpu_time() -> Result<Duration> {
    let own = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime));
    let own = own.context("read the process's clock")?;
    let [.., children_user, children_system] = times(std::process::id())?;
    Ok(own + children_user + children_system)
}

/// The processor time of a process and of the children that it waited for.
pub(crate) fn cpu_time_of(process: u32) -> Result<Duration> {
    Ok(times(process)?.into_iter().sum())
}

/// utime, stime, cutime and cstime of a process (proc(5)).
fn times(process: u32) -> Result<[Duration; 4]> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
    let mut times = [Duration::ZERO; 4];
    for (time, ticks) in times.iter_mut().zip(fields.split_whitespace().skip(11)) {
        let ticks = Duration::from_secs(ticks.parse().context("times are numbers")?);
        *time = ticks / u32::try_from(clock_ticks_per_second())?;
    }
    Ok(times)
}

fn cpu_time() -> Result<Duration> {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).context("read the thread's clock")
}

/// The resident set of this process: now and at its highest, in MiB.
pub(crate) fn resident() -> Result<(f64, f64)> {
    resident_of(std::process::id())
}

/// The resident set of a process: now and at its highest, in MiB.
pub(crate) fn resident_of(process: u32) -> Result<(f64, f64)> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let of = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
        let kib = kib.with_context(|| format!("find {name} in {path}"))?;
        Ok(kib.trim().parse::<f64>()? / 1024.0)
    };
    Ok((of("VmRSS:")?, of("VmHWM:")?))
}

/// Milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Microseconds.
pub(crate) fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Adds the median and the 99th percentile of many costs, in microseconds.
pub(crate) fn push_spread(figures: &mut Figures, name: &str, costs: &[Cost]) {
    for (clock, of) in [("wall", (|cost| cost.wall) as fn(&Cost) -> Duration), ("CPU", |c| c.cpu)] {
        let mut times: Vec<_> = costs.iter().map(of).collect();
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        figures.push(format!("{name}, {clock} median us"), us(at(50)));
        figures.push(format!("{name}, {clock} p99 us"), us(at(99)));
    }
}

/// Prints a result.
#[expect(clippy::print_stdout, reason = "figures are what this is for")]
pub(crate) fn print(text: &str) {
    println!("{text}");
}
