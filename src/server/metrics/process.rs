//! What the kernel knows about this process, read from /proc when somebody asks.

use std::fs;
use std::io;

use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::unistd::SysconfVar;
use nix::unistd::sysconf;
use prometheus::Opts;
use prometheus::core::Collector;
use prometheus::core::Desc;
use prometheus::proto;

use crate::common::procfs::Stat;

/// Name, kind and help of each family, in the order of `Reading::values`.
const FAMILIES: [(&str, bool, &str); 11] = [
    ("process_cpu_seconds_total", true, "Total user and system CPU time spent in seconds."),
    ("process_open_fds", false, "Number of open file descriptors."),
    ("process_max_fds", false, "Maximum number of open file descriptors."),
    ("process_virtual_memory_bytes", false, "Virtual memory size in bytes."),
    ("process_virtual_memory_max_bytes", false, "Maximum amount of virtual memory available in bytes."),
    ("process_resident_memory_bytes", false, "Resident memory size in bytes."),
    ("process_start_time_seconds", false, "Start time of the process since unix epoch in seconds."),
    ("process_network_receive_bytes_total", true, "Number of bytes received by the process over the network."),
    ("process_network_transmit_bytes_total", true, "Number of bytes sent by the process over the network."),
    ("os_fd_used", false, "The number of used file descriptors."),
    ("os_fd_limit", false, "The file descriptor limit."),
];

/// Families `process_*` and `os_fd_*`. What cannot be read is left out.
#[derive(Clone, Debug)]
pub struct ProcessCollector {
    descriptions: Vec<Desc>,
    page_bytes: f64,
    ticks_per_second: f64,
}

impl ProcessCollector {
    pub fn new() -> ProcessCollector {
        let descriptions = FAMILIES
            .iter()
            .map(|(name, _, help)| {
                let options = Opts::new(*name, *help);
                Desc::new(options.fq_name(), options.help, Vec::new(), Default::default()).expect("constant names")
            })
            .collect();
        let ask = |what: SysconfVar, usual: i64| sysconf(what).ok().flatten().unwrap_or(usual) as f64;
        ProcessCollector {
            descriptions,
            page_bytes: ask(SysconfVar::PAGE_SIZE, 4096),
            ticks_per_second: ask(SysconfVar::CLK_TCK, 100),
        }
    }

    fn values(&self) -> [Option<f64>; FAMILIES.len()] {
        let stat = Stat::of_ourselves();
        let open = open_fds().ok();
        let limit = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft as f64);
        let address_space = getrlimit(Resource::RLIMIT_AS).ok().map(|(soft, _)| soft as f64);
        let (received, sent) = network_bytes().map_or((None, None), |(received, sent)| (Some(received), Some(sent)));
        let start = stat.as_ref().and_then(|stat| Some(boot_seconds()? + stat.started as f64 / self.ticks_per_second));
        [
            stat.as_ref().map(|stat| stat.ticks() as f64 / self.ticks_per_second),
            open,
            limit,
            stat.as_ref().map(|stat| stat.virtual_bytes as f64),
            address_space,
            stat.as_ref().map(|stat| stat.resident_pages as f64 * self.page_bytes),
            start,
            received,
            sent,
            open,
            limit,
        ]
    }
}

impl Default for ProcessCollector {
    fn default() -> ProcessCollector {
        ProcessCollector::new()
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        FAMILIES
            .iter()
            .zip(self.values())
            .filter_map(|((name, is_counter, help), value)| value.map(|value| family(name, *is_counter, help, value)))
            .collect()
    }
}

/// A family of one sample without labels.
fn family(name: &str, is_counter: bool, help: &str, value: f64) -> proto::MetricFamily {
    let mut metric = proto::Metric::default();
    if is_counter {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    let mut family = proto::MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(if is_counter { proto::MetricType::COUNTER } else { proto::MetricType::GAUGE });
    family.set_metric(vec![metric]);
    family
}

/// Open descriptors, without the one that this reading opens.
fn open_fds() -> Result<f64, io::Error> {
    Ok(fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as f64)
}

fn boot_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Received and sent bytes: the pair of `IpExt` lines of /proc/self/net/netstat, names above values.
fn network_bytes() -> Option<(f64, f64)> {
    let text = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted: &str| {
        let at = names.split_whitespace().position(|name| name == wanted)?;
        values.split_whitespace().nth(at)?.parse::<f64>().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}

/// Soft limit of open files; what `/debug/vars` calls `file_descriptor_limit`.
pub fn fd_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// Resident and virtual bytes.
pub fn memory_bytes() -> (u64, u64) {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
    let stat = Stat::of_ourselves();
    stat.map_or((0, 0), |stat| (stat.resident_pages * page, stat.virtual_bytes))
}
