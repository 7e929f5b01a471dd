//! The metrics of one server: its registry, the text that `/metrics` answers, buckets as etcd has them, the process.
//!
//! Every part that measures registers its own families; this page holds what is common. The text follows the client
//! library of Go to the digit, because dashboards and tests compare it.

use std::fmt::Write as _;

use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::core::Collector;
use prometheus::proto::LabelPair;
use prometheus::proto::Metric;
use prometheus::proto::MetricFamily;
use prometheus::proto::MetricType;

mod process;

pub use process::ProcessCollector;
pub use process::fd_limit;
pub use process::memory_bytes;

/// Content type of the exposition, as etcd 3.7 answers a client without wishes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// A registry for one server. The process families are in it.
pub fn new_registry() -> Registry {
    let registry = Registry::new();
    add(&registry, ProcessCollector::new());
    registry
}

/// Registers a collector. Names are constants of ours, so a clash is a mistake in the program.
pub fn add<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("metric names are unique and well formed");
    collector
}

pub fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    add(registry, IntCounter::new(name, help).expect("the name is well formed"))
}

pub fn counter_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels).expect("the name is well formed"))
}

pub fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    add(registry, IntGauge::new(name, help).expect("the name is well formed"))
}

pub fn gauge_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    add(registry, IntGaugeVec::new(Opts::new(name, help), labels).expect("the name is well formed"))
}

/// Upper bounds of H(start, factor, count) of server.md 11.
pub fn buckets(start: f64, factor: f64, count: usize) -> Vec<f64> {
    prometheus::exponential_buckets(start, factor, count).expect("start and count are positive, factor above 1")
}

pub fn histogram(registry: &Registry, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(buckets);
    add(registry, Histogram::with_opts(options).expect("the name is well formed"))
}

pub fn histogram_vec(registry: &Registry, name: &str, help: &str, buckets: Vec<f64>, labels: &[&str]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets);
    add(registry, HistogramVec::new(options, labels).expect("the name is well formed"))
}

/// Everything the registry knows, in the text format 0.0.4: families by name, series by label values.
pub fn exposition(registry: &Registry) -> String {
    let mut text = String::with_capacity(64 * 1024);
    for family in registry.gather() {
        write_family(&mut text, &family);
    }
    text
}

fn write_family(text: &mut String, family: &MetricFamily) {
    let (name, kind) = (family.name(), family.get_field_type());
    let type_name = match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::HISTOGRAM => "histogram",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "untyped",
    };
    let help = family.help().replace('\\', "\\\\").replace('\n', "\\n");
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {type_name}\n");
    for metric in family.get_metric() {
        let labels = metric.get_label();
        match kind {
            MetricType::COUNTER => sample(text, name, labels, None, metric.get_counter().get_value()),
            MetricType::HISTOGRAM => write_histogram(text, name, metric),
            _ => sample(text, name, labels, None, metric.get_gauge().get_value()),
        }
    }
}

fn write_histogram(text: &mut String, name: &str, metric: &Metric) {
    let (labels, histogram) = (metric.get_label(), metric.get_histogram());
    let count = histogram.get_sample_count() as f64;
    let bucket_name = format!("{name}_bucket");
    for bucket in histogram.get_bucket() {
        sample(text, &bucket_name, labels, Some(bucket.upper_bound()), bucket.cumulative_count() as f64);
    }
    sample(text, &bucket_name, labels, Some(f64::INFINITY), count);
    sample(text, &format!("{name}_sum"), labels, None, histogram.get_sample_sum());
    sample(text, &format!("{name}_count"), labels, None, count);
}

fn sample(text: &mut String, name: &str, labels: &[LabelPair], bound: Option<f64>, value: f64) {
    text.push_str(name);
    let mut separator = '{';
    for label in labels {
        let value = label.value().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{separator}{}=\"{value}\"", label.name());
        separator = ',';
    }
    if let Some(bound) = bound {
        let _ = write!(text, "{separator}le=\"{}\"", go_float(bound));
        separator = ',';
    }
    if separator == ',' {
        text.push('}');
    }
    let _ = writeln!(text, " {}", go_float(value));
}

/// Decimal exponents from here on are written as such: Go's strconv in its shortest `g` form.
const EXPONENT_MIN: i32 = 6;

/// A float as Go's strconv writes it in the shortest `g` form: `0.0001`, `12`, `1.048576e+06`.
fn go_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..EXPONENT_MIN).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_gos() {
        let check = |value: f64, expected: &str| assert_eq!(go_float(value), expected);
        check(0.0, "0");
        check(-1.0, "-1");
        check(0.0001, "0.0001");
        check(0.00001, "1e-05");
        check(123_456.0, "123456");
        check(1_048_576.0, "1.048576e+06");
        check(4_294_967_295.0, "4.294967295e+09");
        check(52.4288, "52.4288");
        check(f64::INFINITY, "+Inf");
        check(1e21, "1e+21");
    }

    #[test]
    fn families_are_written_in_the_text_format() {
        let registry = Registry::new();
        gauge(&registry, "b_now", "Two\nlines.").set(3);
        counter_vec(&registry, "a_total", "Counted.", &["kind"]).with_label_values(&["x\"y"]).inc();
        histogram(&registry, "c_seconds", "Time.", buckets(0.001, 2.0, 2)).observe(0.0015);
        let expected = "# HELP a_total Counted.\n# TYPE a_total counter\na_total{kind=\"x\\\"y\"} 1\n\
            # HELP b_now Two\\nlines.\n# TYPE b_now gauge\nb_now 3\n\
            # HELP c_seconds Time.\n# TYPE c_seconds histogram\nc_seconds_bucket{le=\"0.001\"} 0\n\
            c_seconds_bucket{le=\"0.002\"} 1\nc_seconds_bucket{le=\"+Inf\"} 1\nc_seconds_sum 0.0015\nc_seconds_count 1\n";
        assert_eq!(exposition(&registry), expected);
    }

    #[test]
    fn buckets_are_those_of_the_transcript() {
        let texts: Vec<String> = buckets(1.0, 2.0, 24).into_iter().map(go_float).collect();
        assert_eq!(texts.last().map(String::as_str), Some("8.388608e+06"));
        let texts: Vec<String> = buckets(0.0001, 2.0, 20).into_iter().map(go_float).collect();
        assert_eq!(
            texts.join("|"),
            "0.0001|0.0002|0.0004|0.0008|0.0016|0.0032|0.0064|0.0128|0.0256|0.0512|0.1024|0.2048|\
            0.4096|0.8192|1.6384|3.2768|6.5536|13.1072|26.2144|52.4288"
        );
    }

    #[test]
    fn the_process_families_exist_from_start() {
        let text = exposition(&new_registry());
        for name in [
            "process_cpu_seconds_total",
            "process_open_fds",
            "process_max_fds",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_start_time_seconds",
            "os_fd_used",
            "os_fd_limit",
        ] {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name} in {text}");
        }
    }
}
