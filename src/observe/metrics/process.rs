//! What the process takes of the machine, as every exporter tells it. Linux alone; elsewhere nothing is told.

use super::described::{PROCESS_CPU, PROCESS_FDS, PROCESS_MEMORY, PROCESS_START};
use super::text::Text;

/// `USER_HZ`: what /proc counts time in, on every architecture that the agent is built for (proc(5)).
const TICKS: f64 = 100.0;

/// The numbers of this process.
pub(super) fn read() -> Text {
    let mut text = Text::default();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let system = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    if let Some(cpu) = cpu_seconds(&stat) {
        text.set(&PROCESS_CPU, &[], cpu);
    }
    if let Some(start) = started(&stat, &system) {
        text.set(&PROCESS_START, &[], start);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(resident) = resident_bytes(&status) {
        text.set(&PROCESS_MEMORY, &[], resident);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // one of them is that of this reading
        #[allow(clippy::cast_precision_loss, reason = "no process has 2^52 files open")]
        text.set(&PROCESS_FDS, &[], open.count().saturating_sub(1) as f64);
    }
    text
}

/// The fields of /proc/PID/stat after the name of the program, which may hold anything: the first is the third (`state`).
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut times = fields(stat).skip(11).map(str::parse::<f64>);
    let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
    Some((user + system) / TICKS)
}

fn started(stat: &str, system: &str) -> Option<f64> {
    let after_boot: f64 = fields(stat).nth(19)?.parse().ok()?;
    let boot: f64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + after_boot / TICKS)
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_it_is_written() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 5000 1000000 2000 \
                    18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(started(stat, "cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_050.0));
        assert_eq!(resident_bytes("Name:\tentente\nVmRSS:\t   2048 kB\n"), Some(2_097_152.0));
        for broken in ["", "1 (a", "1 (a) S"] {
            assert_eq!((cpu_seconds(broken), started(broken, "btime 1")), (None, None));
        }
    }
}
