//! A large file that moves over a line which breaks at every sixteenth of it.

#![allow(
    dead_code,
    reason = "two test programs share this, and neither needs all of it"
)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use tesk_conformance::proxy::{Fault, Proxy};

/// How large, in MiB. `conformance/bench/run cuts` sets 1024, which breaks every 64 MiB.
const SIZE: &str = "TESK_TEST_CUTS_MIB";

fn mib() -> usize {
    std::env::var(SIZE).map_or(256, |mib| mib.parse().unwrap())
}

/// The content of the file: no two MiB of it are equal.
pub(crate) fn content() -> Vec<u8> {
    let mut content: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    content = content.repeat(mib());
    for (i, part) in content.chunks_mut(1 << 20).enumerate() {
        part[..8].copy_from_slice(&(i as u64).to_be_bytes());
    }
    content
}

/// The line breaks after so many bytes from the server, again and again.
pub(crate) fn breaks(proxy: &Proxy) {
    proxy.faults(vec![Fault::CutAfter((mib() << 20) as u64 / 16); 1000]);
}

/// The same for bytes to the server.
pub(crate) fn breaks_uploads(proxy: &Proxy) {
    proxy.faults(vec![Fault::CutUploadAfter((mib() << 20) as u64 / 16); 1000]);
}

/// No more than a tenth went twice, of `bytes` that went in all.
pub(crate) fn check(what: &str, proxy: &Proxy, bytes: u64) {
    let size = (mib() << 20) as u64;
    let more = bytes.saturating_sub(size) as f64 / size as f64 * 100.0;
    let connections = proxy.connections();
    println!("| {what} | {} MiB | {connections} | {more:.1} % |", mib());
    assert!(
        bytes >= size && connections >= 16,
        "it was not by this line"
    );
    assert!(more <= 10.0, "{what}: {more:.1} % went twice");
}
