//! A plan on its way into a pod: text that fits into annotations and ConfigMaps.

use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::Plan;

/// The largest plan that is unpacked, in bytes of JSON.
const MAX_JSON: u64 = 256 * 1024 * 1024;

/// Base64 of the deflated JSON.
pub fn pack(plan: &Plan) -> String {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
    // Neither a plan's JSON nor writing to memory fails.
    let json = serde_json::to_vec(plan).unwrap_or_default();
    let _ = deflate.write_all(&json);
    STANDARD.encode(deflate.finish().unwrap_or_default())
}

/// The JSON of a packed plan; an error says what is wrong with it.
pub fn unpack(packed: &str) -> Result<Vec<u8>, String> {
    let deflated = STANDARD
        .decode(packed.trim())
        .map_err(|error| format!("it is not base64: {error}"))?;
    let mut json = Vec::new();
    let read = DeflateDecoder::new(&*deflated)
        .take(MAX_JSON + 1)
        .read_to_end(&mut json);
    match read {
        Ok(read) if read as u64 <= MAX_JSON => Ok(json),
        Ok(_) => Err(format!("it has more than {MAX_JSON} bytes")),
        Err(error) => Err(format!("it cannot be decompressed: {error}")),
    }
}
