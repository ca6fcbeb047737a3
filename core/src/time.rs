//! Points in time as TES writes them: UTC, RFC 3339, milliseconds, `Z`.

use std::fmt;
use std::str::FromStr;
#[cfg(any(feature = "local", feature = "kubernetes"))]
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Milliseconds since the Unix epoch, UTC.
///
/// Shown and serialised as `2026-01-31T12:00:00.000Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The present time of this machine's clock.
    pub fn now() -> Self {
        #[cfg(all(test, any(feature = "local", feature = "kubernetes")))]
        if let Some(now) = simulated::now() {
            return now;
        }
        Self(jiff::Timestamp::now().as_millisecond())
    }

    /// A time from milliseconds since the Unix epoch; out-of-range values are clamped to
    /// what RFC 3339 can show.
    pub fn from_millis(millis: i64) -> Self {
        Self(millis.clamp(
            jiff::Timestamp::UNIX_EPOCH.as_millisecond(),
            jiff::Timestamp::MAX.as_millisecond(),
        ))
    }

    /// A time of a system clock, as file systems and HTTP's dates are.
    pub fn from_system(time: std::time::SystemTime) -> Self {
        let since = time.duration_since(std::time::UNIX_EPOCH);
        let millis = since.unwrap_or_default().as_millis();
        Self::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
    }

    /// Milliseconds since the Unix epoch.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.saturating_sub(earlier.0).max(0) as u64)
    }

    /// The time `duration` after this one.
    #[must_use]
    pub fn after(self, duration: std::time::Duration) -> Self {
        Self::from_millis(
            self.0
                .saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)),
        )
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_millisecond(self.0).map_err(|_| fmt::Error)?;
        write!(f, "{time:.3}")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;

    /// Reads a full RFC 3339 date-time; a bare date is refused.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse::<jiff::Timestamp>()
            .map(|t| Self::from_millis(t.as_millisecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// The times of what one process makes one after another: each is later than the one before, also
/// within one millisecond, so that an order by time is the order in which they were made.
///
/// A burst runs ahead of the clock for that, by [`LEAD`] at most; from then on times may be equal. A
/// clock that is set back further is believed.
#[cfg(any(feature = "local", feature = "kubernetes"))]
#[derive(Debug, Default)]
pub(crate) struct Ascending(AtomicI64);

/// How far [`Ascending`] times may be ahead of the clock, in milliseconds.
#[cfg(any(feature = "local", feature = "kubernetes"))]
const LEAD: i64 = 1_000;

/// What is further ahead of the clock than this was made before the clock was set back.
#[cfg(any(feature = "local", feature = "kubernetes"))]
const SET_BACK: i64 = 2 * LEAD;

#[cfg(any(feature = "local", feature = "kubernetes"))]
impl Ascending {
    pub(crate) fn now(&self) -> Timestamp {
        let now = Timestamp::now().as_millis();
        let next = |last: i64| match last - now {
            ..0 => now,
            0..LEAD => last + 1,
            LEAD..=SET_BACK => last,
            _ => now,
        };
        let order = Ordering::Relaxed;
        let last = self.0.fetch_update(order, order, |last| Some(next(last)));
        Timestamp::from_millis(next(last.unwrap_or_else(|last| last)))
    }
}

/// The clock of simulations: that of Tokio's paused time, for one thread.
#[cfg(test)]
#[cfg(any(feature = "local", feature = "kubernetes"))]
pub(crate) mod simulated {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::Timestamp;

    thread_local! {
        static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    /// While it lives, [`Timestamp::now`] of this thread is the time of the Tokio runtime.
    pub(crate) struct Clock;

    impl Clock {
        pub(crate) fn begin() -> Self {
            BEGAN.set(Some(Instant::now()));
            Self
        }
    }

    impl Drop for Clock {
        fn drop(&mut self) {
            BEGAN.set(None);
        }
    }

    pub(super) fn now() -> Option<Timestamp> {
        const BEGIN: Timestamp = Timestamp(1_000_000_000_000);
        BEGAN.get().map(|began| BEGIN.after(began.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_shows_milliseconds_and_z_even_on_a_whole_second() {
        assert_eq!(
            Timestamp::from_millis(0).to_string(),
            "1970-01-01T00:00:00.000Z"
        );
        assert_eq!(
            Timestamp::from_millis(1_700_000_000_120).to_string(),
            "2023-11-14T22:13:20.120Z"
        );
    }

    #[test]
    fn a_bare_date_is_not_a_time() {
        assert!("2026-01-31".parse::<Timestamp>().is_err());
        assert_eq!(
            "2026-01-31T01:00:00+01:00"
                .parse::<Timestamp>()
                .unwrap()
                .to_string(),
            "2026-01-31T00:00:00.000Z"
        );
    }

    #[test]
    #[cfg(any(feature = "local", feature = "kubernetes"))]
    fn times_ascend_until_the_clock_is_set_back_far() {
        let clock = Ascending::default();
        let times: Vec<_> = (0..100_000).map(|_| clock.now()).collect();
        assert!(times[..900].is_sorted_by(|a, b| a < b));
        assert!(times.is_sorted());
        let ahead = times[99_999].since(Timestamp::now());
        assert!(ahead.as_millis() <= 1_000, "{ahead:?}");

        let set_back = |by: i64| {
            let last = Timestamp::now().as_millis() + by;
            Ascending(AtomicI64::new(last)).now().as_millis() - last
        };
        assert_eq!(set_back(LEAD + 500), 0);
        assert!(set_back(3_600_000) < -3_000_000);
    }
}
