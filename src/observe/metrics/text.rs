//! Gauges as text (OpenMetrics 1.0), in the order of their description, then of their labels: equal numbers are equal bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::described::{ALL, Described, Sort};

/// Samples of metrics that are read off when they are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Text(BTreeMap<&'static str, BTreeMap<Vec<String>, f64>>);

impl Text {
    /// One sample; `labels` are the values, in the order of the description.
    pub(super) fn set(&mut self, metric: &Described, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let labels = labels.iter().map(ToString::to_string).collect();
        self.0.entry(metric.name).or_default().insert(labels, value);
    }

    /// Counts one more in a sample.
    pub(super) fn add(&mut self, metric: &Described, labels: &[&str]) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let labels = labels.iter().map(ToString::to_string).collect();
        *self.0.entry(metric.name).or_default().entry(labels).or_default() += 1.0;
    }

    /// The samples of all.
    pub(super) fn encode(&self, into: &mut String) {
        for metric in ALL {
            let Some(samples) = self.0.get(metric.name) else { continue };
            // OpenMetrics names a counter without its suffix.
            let family = if metric.sort == Sort::Counter {
                metric.name.trim_end_matches("_total")
            } else {
                metric.name
            };
            let _ = writeln!(into, "# HELP {family} {}", escaped(metric.help.trim()));
            let _ = writeln!(into, "# TYPE {family} {}", metric.sort.as_str());
            for (labels, value) in samples {
                into.push_str(metric.name);
                let pairs = metric.labels.iter().zip(labels);
                let pairs: Vec<String> =
                    pairs.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
                if !pairs.is_empty() {
                    let _ = write!(into, "{{{}}}", pairs.join(","));
                }
                let _ = writeln!(into, " {value}");
            }
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::described::{PEER_SERVICES, PROCESS_CPU, READY};
    use super::*;

    #[test]
    fn samples_are_written_in_order_and_escaped() {
        let mut text = Text::default();
        text.set(&PROCESS_CPU, &[], 1.5);
        text.set(&PEER_SERVICES, &["b.example", "imported"], 2.0);
        text.add(&PEER_SERVICES, &["a\"\n\\", "imported"]);
        text.add(&PEER_SERVICES, &["a\"\n\\", "imported"]);
        text.set(&READY, &[], 1.0);
        let mut written = String::new();
        text.encode(&mut written);
        let samples: Vec<&str> = written.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "entente_ready 1",
                r#"entente_peer_services{trust_domain="a\"\n\\",outcome="imported"} 2"#,
                r#"entente_peer_services{trust_domain="b.example",outcome="imported"} 2"#,
                "process_cpu_seconds_total 1.5",
            ]
        );
        assert!(written.contains("# TYPE process_cpu_seconds counter\n"), "{written}");
    }
}
