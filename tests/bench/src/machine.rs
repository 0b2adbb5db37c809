//! The machine, and the processor time and memory of processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

/// The kernel's unit of processor time: hundredths of a second on every Linux.
const TICKS_PER_SEC: f64 = 100.0;

/// Directory of this program and the programs it starts.
pub fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("a directory")?.to_owned())
}

/// Description of the machine for the JSON file.
pub fn machine_facts() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once(':'));
        value.map(|(_, value)| value.trim().to_owned())
    };
    let memory_kb = after(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").trim().parse::<u64>().ok());
    json!({
        "date": chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string(),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory_mib": memory_kb.map(|kb| kb / 1024),
        "cpu": after(&read("/proc/cpuinfo"), "model name"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// Description of the machine in one line.
pub fn describe() -> String {
    let facts = machine_facts();
    let word = |key: &str| match &facts[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    format!(
        "{}: {} cores ({}), {} MiB of memory, Linux {}",
        word("date"),
        word("cores"),
        word("cpu"),
        word("memory_mib"),
        word("kernel")
    )
}

/// A memory figure of a process in MiB, such as `VmRSS` or its peak `VmHWM`.
#[expect(clippy::cast_precision_loss, reason = "mebibytes for people to read")]
pub fn memory_mib(pid: u32, figure: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kb = status
        .lines()
        .find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'))
        .and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kb.map_or(f64::NAN, |kb| kb as f64 / 1024.0)
}

struct ProcessStat {
    parent: u32,
    /// Processor seconds of the process.
    cpu_secs: f64,
    ended_children_cpu_secs: f64,
}

fn process_stat(pid: u32) -> Option<ProcessStat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain spaces and brackets, so fields are counted after its last bracket.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |n: usize| fields.get(n)?.parse::<f64>().ok();
    Some(ProcessStat {
        parent: fields.get(1)?.parse().ok()?,
        cpu_secs: (ticks(11)? + ticks(12)?) / TICKS_PER_SEC,
        ended_children_cpu_secs: (ticks(13)? + ticks(14)?) / TICKS_PER_SEC,
    })
}

/// Parent of a process.
pub fn parent_pid(pid: u32) -> Option<u32> {
    Some(process_stat(pid)?.parent)
}

/// Processor seconds of a process; with those of its children if it forks.
fn cpu_secs(pid: u32, forks: bool) -> f64 {
    let Some(own) = process_stat(pid) else {
        return 0.0;
    };
    if !forks {
        return own.cpu_secs;
    }
    let children = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let children =
        children.filter_map(|entry| process_stat(entry.file_name().to_str()?.parse().ok()?));
    let living: f64 = children
        .filter(|child| child.parent == pid)
        .map(|child| child.cpu_secs)
        .sum();
    own.cpu_secs + own.ended_children_cpu_secs + living
}

/// Processes whose processor time is measured, by their role.
#[derive(Clone, Default)]
pub struct WatchedProcesses(Vec<(&'static str, u32, bool)>);

impl WatchedProcesses {
    pub fn add(&mut self, what: &'static str, pid: u32) {
        self.0.push((what, pid, false));
    }

    /// Adds a server that forks.
    pub fn add_family(&mut self, what: &'static str, pid: u32) {
        self.0.push((what, pid, true));
    }

    fn cpu_secs(&self) -> BTreeMap<&'static str, f64> {
        let mut all = BTreeMap::new();
        for (what, pid, forks) in &self.0 {
            *all.entry(*what).or_insert(0.0) += cpu_secs(*pid, *forks);
        }
        all
    }

    /// Starts counting.
    pub fn meter(self) -> CpuMeter {
        CpuMeter {
            before: self.cpu_secs(),
            since: Instant::now(),
            watched: self,
        }
    }
}

/// A running measurement of processor time.
pub struct CpuMeter {
    watched: WatchedProcesses,
    before: BTreeMap<&'static str, f64>,
    since: Instant,
}

impl CpuMeter {
    /// Processor time since the start.
    pub fn read(&self) -> CpuUsage {
        let mut secs = self.watched.cpu_secs();
        for (what, after) in &mut secs {
            *after -= self.before.get(what).unwrap_or(&0.0);
        }
        CpuUsage {
            secs,
            over: self.since.elapsed(),
        }
    }
}

/// Processor seconds by process, over a span of time.
pub struct CpuUsage {
    secs: BTreeMap<&'static str, f64>,
    over: Duration,
}

impl CpuUsage {
    pub fn json(&self) -> Value {
        let rounded = |secs: f64| (secs * 100.0).round() / 100.0;
        let mut all: serde_json::Map<String, Value> = self
            .secs
            .iter()
            .map(|(what, secs)| ((*what).to_owned(), json!(rounded(*secs))))
            .collect();
        all.insert(
            "over_secs".to_owned(),
            json!(rounded(self.over.as_secs_f64())),
        );
        Value::Object(all)
    }
}
