//! Reading a task file, and making its relative urls absolute.
//!
//! A server never does this: what is relative to a client means nothing to it.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The text of a task file; `-` is standard input.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    if file == Path::new("-") {
        std::io::stdin()
            .read_to_end(&mut text)
            .map_err(|error| format!("cannot read standard input: {error}"))?;
    } else {
        text = std::fs::read(file)
            .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    }
    // As editors on Windows write it; it is no part of the document.
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3);
    }
    Ok(text)
}

/// The document with every relative url made absolute: of inputs against the folder of `file`
/// (of standard input: the current one), of outputs against `output_dir`. What is not JSON, or
/// not a task, is left for validation to refuse.
pub(super) fn absolute(text: Vec<u8>, file: &Path, output_dir: &Path) -> Result<Vec<u8>, String> {
    let Ok(mut document) = serde_json::from_slice::<Value>(&text) else {
        return Ok(text);
    };
    let folder = match file.parent() {
        Some(parent) if file != Path::new("-") => parent.to_owned(),
        _ => PathBuf::new(),
    };
    let changed = rewrite(document.get_mut("inputs"), &folder)?
        | rewrite(document.get_mut("outputs"), output_dir)?;
    if changed {
        serde_json::to_vec(&document).map_err(|error| error.to_string())
    } else {
        // As the client wrote it: line and column of an error are then right.
        Ok(text)
    }
}

fn rewrite(list: Option<&mut Value>, folder: &Path) -> Result<bool, String> {
    let mut changed = false;
    for item in list.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(Value::String(url)) = item.get_mut("url")
            && is_relative(url)
        {
            // Of a bare file name the folder is empty, and means the current one.
            let folder = std::path::absolute(Path::new(".").join(folder))
                .map_err(|error| format!("cannot find {}: {error}", folder.display()))?;
            let folder = url::Url::from_directory_path(&folder)
                .map_err(|()| format!("{} cannot be written as a url", folder.display()))?;
            let directory = url.ends_with('/');
            let mut absolute = folder;
            if let Ok(mut segments) = absolute.path_segments_mut() {
                segments.pop_if_empty();
                for segment in url.split('/').filter(|s| !s.is_empty() && *s != ".") {
                    match segment {
                        // `push` would ignore it.
                        ".." => drop(segments.pop()),
                        segment => drop(segments.push(segment)),
                    }
                }
                if directory {
                    segments.push("");
                }
            }
            *url = absolute.into();
            changed = true;
        }
    }
    Ok(changed)
}

/// No scheme, and not an absolute path.
fn is_relative(url: &str) -> bool {
    let scheme = url
        .split_once(':')
        .map(|(scheme, _)| scheme)
        .filter(|scheme| !scheme.contains('/'));
    !url.is_empty() && !url.starts_with('/') && scheme.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bare_file_name_and_standard_input_mean_the_current_folder() {
        let here = url::Url::from_file_path(std::env::current_dir().unwrap().join("x.txt"));
        let here = here.unwrap().to_string();
        for file in ["task.json", "./task.json", "-"] {
            let text = json!({ "inputs": [{ "url": "x.txt" }] }).to_string();
            let text = absolute(text.into_bytes(), Path::new(file), Path::new(".")).unwrap();
            let document: Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(document["inputs"][0]["url"], here, "{file}");
        }
    }

    #[test]
    fn relative_urls_become_file_urls_and_others_stay() {
        let sent = json!({
            "inputs": [
                { "url": "data/a b%.txt" }, { "url": "../up/" }, { "url": "s3://b/k" },
                { "url": "/abs" }, { "url": "" }, { "content": "x" }, { "url": "_:uuid" }, null,
            ],
            "outputs": [{ "url": "./out" }, { "url": "file:///x" }],
        });
        let text = sent.to_string().into_bytes();
        let file = Path::new("/home/ada/tasks/t.json");
        let text = absolute(text, file, Path::new("/results")).unwrap();
        let document: Value = serde_json::from_slice(&text).unwrap();
        let urls = |list: &str| -> Vec<_> {
            let items = document[list].as_array().unwrap();
            items
                .iter()
                .filter_map(|item| item["url"].as_str())
                .collect()
        };
        assert_eq!(
            urls("inputs"),
            [
                "file:///home/ada/tasks/data/a%20b%25.txt",
                "file:///home/ada/up/",
                "s3://b/k",
                "/abs",
                "",
                "_:uuid",
            ]
        );
        assert_eq!(urls("outputs"), ["file:///results/out", "file:///x"]);
        assert_eq!(document["inputs"].as_array().unwrap().len(), 8);
    }

    #[test]
    fn what_is_not_a_task_is_left_to_validation() {
        for text in ["{ not json", "[1]", "5", r#"{"inputs": 3}"#, "null"] {
            let same = absolute(text.into(), Path::new("-"), Path::new("."));
            assert_eq!(same.unwrap(), text.as_bytes());
        }
    }
}
