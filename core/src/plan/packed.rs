//! A plan on its way into a pod: text that fits into annotations and `ConfigMap`s.

use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::Plan;

/// The largest plan that is unpacked, in bytes of JSON.
const MAX_JSON: u64 = if cfg!(test) { 8 << 20 } else { 256 << 20 };

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
    let packed = packed.trim();
    if packed.is_empty() {
        return Err("it is empty".to_owned());
    }
    let deflated = STANDARD
        .decode(packed)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tes::{Task, UrlSecrets};

    fn deflated(bytes: &[u8]) -> String {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
        deflate.write_all(bytes).unwrap();
        STANDARD.encode(deflate.finish().unwrap())
    }

    #[test]
    fn a_plan_comes_out_as_it_was_packed() {
        let task = serde_json::json!({
            "executors": [{"image": "i", "command": ["$(X)", "\u{0}", "ä\n"]}],
        });
        let task: Task = serde_json::from_value(task).unwrap();
        let plan = Plan::new("t1", &task, &UrlSecrets::default()).unwrap();
        let packed = pack(&plan);
        assert!(packed.bytes().all(|b| b.is_ascii_graphic()));
        let json = unpack(&format!("\n{packed}\n")).unwrap();
        assert_eq!(serde_json::from_slice::<Plan>(&json).unwrap(), plan);
        // The same plan is the same text: parts that are there already are these.
        assert_eq!(pack(&plan), packed);
    }

    #[test]
    fn what_is_no_packed_plan_is_refused() {
        for (packed, expected) in [
            ("", "it is empty"),
            (" \n", "it is empty"),
            ("{}", "not base64"),
            ("AAAA\nAAAA", "not base64"),
            ("/////w==", "cannot be decompressed"),
        ] {
            let refused = unpack(packed).unwrap_err();
            assert!(refused.contains(expected), "{packed}: {refused}");
        }
        let whole = deflated(b"{\"version\": 1, \"task\": \"a rather long text\"}");
        let cut = &whole[..whole.len() / 8 * 4];
        assert!(unpack(cut).is_err());
    }

    #[test]
    fn a_plan_that_would_fill_the_memory_is_refused() {
        let zeros = vec![0; MAX_JSON as usize + 1];
        assert_eq!(
            unpack(&deflated(&zeros[1..])).unwrap().len() as u64,
            MAX_JSON
        );
        let refused = unpack(&deflated(&zeros)).unwrap_err();
        assert!(refused.contains("more than"), "{refused}");
    }
}
