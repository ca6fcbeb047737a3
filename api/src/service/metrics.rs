//! Numbers for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tesk_core::tes::State;

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<OperationLabels, Histogram>,
    tasks: Family<StateLabels, Gauge>,
    leader: Gauge,
    stale: Gauge,
}

/// What is so now.
#[derive(Debug)]
pub(crate) struct Gauges<'a> {
    pub(crate) tasks: &'a [(State, u64)],
    /// Whether this server schedules.
    pub(crate) schedules: bool,
    /// How old the records are, if they are not of now.
    pub(crate) stale: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    ])
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("tesk");
        let requests = Family::<RequestLabels, Counter>::default();
        let latency = Family::<OperationLabels, Histogram>::new_with_constructor(histogram);
        let tasks = Family::<StateLabels, Gauge>::default();
        let (leader, stale) = (Gauge::default(), Gauge::default());
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "Time from a request's headers to the reply's",
            Unit::Seconds,
            latency.clone(),
        );
        registry.register("tasks", "Tasks in the store", tasks.clone());
        registry.register(
            "scheduler_leader",
            "1 if this server schedules, 0 if another does or will",
            leader.clone(),
        );
        registry.register_with_unit(
            "store_stale",
            "Age of the records that are shown; 0 while they are of now",
            Unit::Seconds,
            stale.clone(),
        );
        registry.register(
            "build",
            "The version of this server",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        Self {
            registry,
            requests,
            latency,
            tasks,
            leader,
            stale,
        }
    }

    /// Counts an answered request.
    pub(crate) fn answered(
        &self,
        operation: &'static str,
        method: &axum::http::Method,
        status: u16,
        took: Duration,
    ) {
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            // Made-up methods must not make up labels.
            _ => "other",
        };
        let labels = RequestLabels {
            operation,
            method,
            status,
        };
        self.requests.get_or_create(&labels).inc();
        self.latency
            .get_or_create(&OperationLabels { operation })
            .observe(took.as_secs_f64());
    }

    /// All of it in the `OpenMetrics` text format.
    pub(crate) fn show(&self, now: &Gauges<'_>) -> Result<String, std::fmt::Error> {
        for state in State::ALL {
            let count = now
                .tasks
                .iter()
                .find(|(s, _)| *s == state)
                .map_or(0, |(_, n)| *n);
            let labels = StateLabels {
                state: state.as_str(),
            };
            self.tasks
                .get_or_create(&labels)
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.leader.set(now.schedules.into());
        // Whole seconds, and never 0 for what is not of now.
        let stale = now.stale.map_or(0, |age| age.as_secs().max(1));
        self.stale.set(i64::try_from(stale).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
