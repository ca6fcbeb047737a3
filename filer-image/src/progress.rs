//! Lines that tell how far transfers are.

use std::future::Future;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tesk_core::transfer::{Counters, Engine};

/// How often a line is written, if something has changed.
const EVERY: Duration = Duration::from_secs(10);

/// Runs `work` and writes a line to standard error now and then, and one at its end.
pub async fn shown<T>(step: &str, engine: &Engine, work: impl Future<Output = T>) -> T {
    let counters = engine.counters();
    let begin = Instant::now();
    let mut work = std::pin::pin!(work);
    let mut last = String::new();
    loop {
        let ended = tokio::time::timeout(EVERY, &mut work).await;
        let now = line(&counters);
        if let Ok(done) = ended {
            eprintln!("{step}: {now} in {:.1} s", begin.elapsed().as_secs_f64());
            return done;
        }
        if now != last {
            eprintln!("{step}: {now}");
            last = now;
        }
    }
}

fn line(counters: &Counters) -> String {
    format!(
        "{}/{} files, {}/{} bytes",
        counters.files_done.load(Relaxed),
        counters.files_total.load(Relaxed),
        counters.bytes_done.load(Relaxed),
        counters.bytes_total.load(Relaxed),
    )
}
