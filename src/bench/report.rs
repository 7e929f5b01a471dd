//! What a run has shown: a few lines for people, one object for scripts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::floors::Floor;
use super::latency::Percentiles;
use super::load::Load;
use super::load::Outcome;
use super::usage::Memory;
use super::usage::Reading;
use super::watching::Seen;
use super::watching::Watching;

/// Everything that is told of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub workload: &'static str,
    pub conns: u32,
    pub clients: u32,
    pub rate: u64,
    pub floors: Vec<Floor>,
    pub requests: u64,
    pub failed: u64,
    pub failures: BTreeMap<String, u64>,
    pub seconds: f64,
    pub requests_per_second: f64,
    pub latency_ms: Option<Percentiles>,
    /// Where reads and writes are mixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reads_ms: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes_ms: Option<Percentiles>,
    pub keys_read: u64,
    pub pages_read: u64,
    /// CPU time of this program, which shares the machine with the server.
    pub client_cpu_us: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
}

/// The processes that were looked at, together.
#[derive(Debug, Serialize)]
pub struct Server {
    pub pids: Vec<u32>,
    /// Microseconds a request that succeeded.
    pub cpu_us: f64,
    pub cpu_user_us: f64,
    pub cpu_system_us: f64,
    /// Cores busy on average.
    pub cores: f64,
    pub memory: Memory,
}

/// What the server's processes and our own had used, before or after.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readings {
    pub server: Reading,
    pub client: Reading,
}

impl Report {
    pub fn new(load: &Load, outcome: Outcome, pids: &[u32], before: Readings, after: Readings) -> Report {
        let requests = outcome.succeeded();
        let each = each_of(requests);
        let mixed = outcome.reads.is_some() && outcome.writes.is_some();
        Report {
            workload: load.name,
            conns: load.conns,
            clients: load.clients,
            rate: load.rate,
            floors: Vec::new(),
            requests,
            failed: outcome.failed(),
            seconds: outcome.elapsed.as_secs_f64(),
            requests_per_second: outcome.requests_per_second(),
            latency_ms: outcome.all,
            reads_ms: outcome.reads.filter(|_| mixed),
            writes_ms: outcome.writes.filter(|_| mixed),
            keys_read: outcome.keys_read,
            pages_read: outcome.pages_read,
            client_cpu_us: after.client.cpu().saturating_sub(before.client.cpu()).as_secs_f64() * each,
            server: Server::of(pids, before, after, requests, outcome.elapsed),
            failures: outcome.failures,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let clients = counted(u64::from(self.clients), "client");
        let conns = counted(u64::from(self.conns), "connection");
        line(&mut text, &format!("{}: {clients} on {conns}", self.workload));
        for floor in &self.floors {
            line(
                &mut text,
                &format!("  {:<15} {}", format!("floor, {}", floor.service.replace(" service", "")), floor.text()),
            );
        }
        line(
            &mut text,
            &format!("  requests        {} in {:.2} s, {} failed", self.requests, self.seconds, self.failed),
        );
        for (error, count) in &self.failures {
            line(&mut text, &format!("  failed          {count} times: {error}"));
        }
        line(&mut text, &format!("  throughput      {:.0} requests/s", self.requests_per_second));
        let kinds =
            [("latency, ms", &self.latency_ms), ("  of reads", &self.reads_ms), ("  of writes", &self.writes_ms)];
        for (name, found) in kinds {
            if let Some(found) = found {
                line(&mut text, &format!("  {name:<15} {}", percentiles(found)));
            }
        }
        if self.keys_read > 0 {
            line(&mut text, &format!("  read            {} keys in {} answers", self.keys_read, self.pages_read));
        }
        if let Some(server) = &self.server {
            server.write(&mut text, "request");
        }
        line(&mut text, &format!("  client CPU      {:.1} µs a request", self.client_cpu_us));
        text
    }

    /// For scripts.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and texts can be written as JSON");
        text.push('\n');
        text
    }
}

impl Server {
    /// What `done` requests or events cost; nothing if no process was named.
    fn of(pids: &[u32], before: Readings, after: Readings, done: u64, elapsed: Duration) -> Option<Server> {
        let each = each_of(done);
        let spent = after.server.cpu().saturating_sub(before.server.cpu());
        let user = after.server.user.saturating_sub(before.server.user);
        let system = after.server.system.saturating_sub(before.server.system);
        let server = Server {
            pids: pids.to_vec(),
            cpu_us: spent.as_secs_f64() * each,
            cpu_user_us: user.as_secs_f64() * each,
            cpu_system_us: system.as_secs_f64() * each,
            cores: spent.as_secs_f64() / elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            memory: after.server.memory,
        };
        (!pids.is_empty()).then_some(server)
    }

    fn write(&self, text: &mut String, each: &str) {
        let Server { cpu_us, cpu_user_us, cpu_system_us, cores, memory, .. } = self;
        let split = format!("user {cpu_user_us:.1}, system {cpu_system_us:.1}");
        line(text, &format!("  server CPU      {cpu_us:.1} µs a {each} ({split}); {cores:.2} cores"));
        let [now, own, peak] =
            [memory.resident_bytes, memory.anonymous_bytes, memory.peak_bytes].map(|bytes| bytes as f64 / 1e6);
        line(text, &format!("  server memory   {now:.1} MB, of that {own:.1} not from files; highest {peak:.1}"));
    }
}

/// Microseconds of a second's share; without a success the figures are those of one.
fn each_of(done: u64) -> f64 {
    1e6 / done.max(1) as f64
}

/// Everything that is told of a run with watchers.
#[derive(Debug, Serialize)]
pub struct WatchReport {
    pub workload: &'static str,
    pub conns: u32,
    pub streams: u32,
    pub watchers: u64,
    pub rate: u64,
    pub events: u64,
    pub seconds: f64,
    pub events_per_second: f64,
    /// From the put's sending to the watcher.
    pub delivery_ms: Option<Percentiles>,
    pub puts_ms: Option<Percentiles>,
    pub failures: BTreeMap<String, u64>,
    /// CPU time of this program for an event.
    pub client_cpu_us: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
}

impl WatchReport {
    pub fn new(watching: &Watching, seen: Seen, pids: &[u32], before: Readings, after: Readings) -> WatchReport {
        let client = after.client.cpu().saturating_sub(before.client.cpu());
        WatchReport {
            workload: watching.name,
            conns: watching.conns,
            streams: watching.streams,
            watchers: watching.watchers(),
            rate: watching.rate,
            events: seen.events,
            seconds: seen.elapsed.as_secs_f64(),
            events_per_second: seen.events_per_second(),
            delivery_ms: seen.delivery,
            puts_ms: seen.puts,
            client_cpu_us: client.as_secs_f64() * each_of(seen.events),
            server: Server::of(pids, before, after, seen.events, seen.elapsed),
            failures: seen.failures,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let (watchers, streams) = (counted(self.watchers, "watcher"), counted(u64::from(self.streams), "stream"));
        let conns = counted(u64::from(self.conns), "connection");
        line(&mut text, &format!("{}: {watchers} on {streams} over {conns}", self.workload));
        line(&mut text, &format!("  events          {} in {:.2} s", self.events, self.seconds));
        for (error, count) in &self.failures {
            line(&mut text, &format!("  failed          {count} times: {error}"));
        }
        line(&mut text, &format!("  throughput      {:.0} events/s", self.events_per_second));
        for (name, found) in [("delivery, ms", &self.delivery_ms), ("puts, ms", &self.puts_ms)] {
            if let Some(found) = found {
                line(&mut text, &format!("  {name:<15} {}", percentiles(found)));
            }
        }
        if let Some(server) = &self.server {
            server.write(&mut text, "event");
        }
        line(&mut text, &format!("  client CPU      {:.1} µs an event", self.client_cpu_us));
        text
    }

    /// For scripts.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("numbers and texts can be written as JSON");
        text.push('\n');
        text
    }
}

impl Floor {
    /// In one line.
    pub fn text(&self) -> String {
        format!(
            "{:.0} requests/s, server CPU {:.1} µs a request, p50 {} ms, p99 {} ms",
            self.requests_per_second,
            self.server_cpu_us,
            number(self.p50_ms),
            number(self.p99_ms)
        )
    }
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{}", line.trim_end()).expect("a String takes everything");
}

fn percentiles(found: &Percentiles) -> String {
    let Percentiles { mean, p50, p90, p95, p99, p999, max, .. } = found;
    let told = [("p50", p50), ("p90", p90), ("p95", p95), ("p99", p99), ("p99.9", p999), ("max", max), ("mean", mean)];
    told.map(|(name, value)| format!("{name} {}", number(*value))).join("  ")
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::Work;

    fn report() -> Report {
        let keys = crate::bench::keys::Keys { size: 8, space: 1, sequential: false };
        let work = Work::Put { keys, value: bytes::Bytes::new() };
        let load = Load { name: "put", conns: 1, clients: 2, total: 10, rate: 0, work };
        let all =
            Percentiles { count: 9, mean: 1.0, p50: 0.5, p90: 10.0, p95: 20.0, p99: 123.4, p999: 1234.5, max: 2000.0 };
        let failures = BTreeMap::from([("etcdserver: too many requests".to_owned(), 1)]);
        let elapsed = Duration::from_secs(3);
        let outcome = Outcome { elapsed, all: Some(all), writes: Some(all), failures, ..Outcome::default() };
        let spent = Reading { user: Duration::from_micros(90), system: Duration::from_micros(9), ..Reading::default() };
        let after = Readings { server: spent, client: spent };
        Report::new(&load, outcome, &[7], Readings::default(), after)
    }

    #[test]
    fn people_read_this() {
        let expected = "\
put: 2 clients on 1 connection
  requests        9 in 3.00 s, 1 failed
  failed          1 times: etcdserver: too many requests
  throughput      3 requests/s
  latency, ms     p50 0.500  p90 10.0  p95 20.0  p99 123  p99.9 1234  max 2000  mean 1.00
  server CPU      11.0 µs a request (user 10.0, system 1.0); 0.00 cores
  server memory   0.0 MB, of that 0.0 not from files; highest 0.0
  client CPU      11.0 µs a request
";
        assert_eq!(report().text(), expected);
    }

    #[test]
    fn scripts_read_the_same_figures() {
        let told: serde_json::Value = serde_json::from_str(&report().json()).expect("JSON");
        assert_eq!(told["requests"], 9);
        assert_eq!(told["failed"], 1);
        assert_eq!(told["latency_ms"]["p99.9"], 1234.5);
        assert_eq!(told["server"]["cpu_us"], 11.0);
        assert!(told.get("reads_ms").is_none(), "only a mixture is told apart");
    }
}
