//! Container paths, and whose they are.
//!
//! # Whose a directory is
//!
//! Mounting a scratch directory hides what the image has there. So directories that images fill
//! are *owned by the image* and never mounted for the sake of a single file in them: `/` itself,
//! the system's trees (`/etc`, `/usr`, `/bin`, `/lib`, …), `/opt` with all below it (where images
//! keep their software), home directories (`/root`, `/home/*`), and the first level of `/var`.
//! Everything else, and whatever a task names as a volume or DIRECTORY, is the task's to use.
//! Owned directories form the top of the tree: all above an owned one are owned.
//!
//! Some places are *reserved*: a task cannot have files there at all.

use std::cmp::Ordering;

/// Where collected outputs lie in scratch; executors do not see it.
pub const COLLECTED: &str = "/.tesk/collected";

/// Linux takes no longer path (`PATH_MAX`, its NUL not counted).
const LONGEST: usize = 4095;

/// Trees that belong to the kernel or to this engine.
const RESERVED: [&str; 4] = ["/proc", "/sys", "/dev", "/.tesk"];

/// Top-level directories of an image, and how many levels below each are the image's too.
const OWNED: [(&str, usize); 16] = [
    ("/bin", usize::MAX),
    ("/boot", usize::MAX),
    ("/dev", usize::MAX),
    ("/etc", usize::MAX),
    ("/home", 1),
    ("/lib", usize::MAX),
    ("/lib32", usize::MAX),
    ("/lib64", usize::MAX),
    ("/libx32", usize::MAX),
    ("/opt", usize::MAX),
    ("/proc", usize::MAX),
    ("/root", 0),
    ("/run", 0),
    ("/sbin", usize::MAX),
    ("/usr", usize::MAX),
    ("/var", 1),
];

/// An absolute path in its one form: no `.`, empty or final component but the root's. An error
/// says what is wrong with it.
pub fn normal(path: &str) -> Result<String, &'static str> {
    if !path.starts_with('/') {
        return Err("must be an absolute path");
    }
    let mut normal = String::with_capacity(path.len());
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => return Err("must not contain a .. component"),
            name => {
                normal.push('/');
                normal.push_str(name);
            }
        }
    }
    if normal.is_empty() {
        normal.push('/');
    }
    if normal.len() > LONGEST {
        return Err("is longer than the 4095 bytes that a path can have");
    }
    Ok(normal)
}

/// The same for the beginning of a path, where a final slash means something.
pub fn tidy(prefix: &str) -> String {
    match normal(prefix) {
        Ok(normal) if prefix.ends_with('/') && normal != "/" => normal + "/",
        Ok(normal) => normal,
        Err(_) => prefix.to_owned(),
    }
}

/// Why a task cannot have files at the normal path `path`, if it cannot.
pub fn reserved(path: &str) -> Option<String> {
    let tree = RESERVED.iter().find(|tree| is_within(path, tree))?;
    Some(format!(
        "must not lie in {tree}, which belongs to the system"
    ))
}

/// Why an executor cannot work or have its streams at the normal path `path`, if it cannot. Some
/// want `/dev/null`.
pub fn reserved_for_executors(path: &str) -> Option<String> {
    if is_within(path, "/dev") {
        return None;
    }
    reserved(path)
}

/// Whether the directory at the normal path `path` belongs to the image.
pub fn owned_by_image(path: &str) -> bool {
    path == "/"
        || OWNED.iter().any(|(top, levels)| {
            is_within(path, top) && path[top.len()..].matches('/').count() <= *levels
        })
}

/// The directory of a normal path; the root's is the root.
pub fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(slash) => &path[..slash],
    }
}

/// Whether the normal path `path` is `tree` or lies below it.
pub fn is_within(path: &str, tree: &str) -> bool {
    tree == "/"
        || path
            .strip_prefix(tree)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Orders normal paths by their components: what lies below a path follows right behind it.
pub fn order(a: &str, b: &str) -> Ordering {
    a.split('/').cmp(b.split('/'))
}

/// The deepest directory that has both normal paths in it (or is one of them).
pub fn common_ancestor<'a>(a: &'a str, b: &str) -> &'a str {
    let mut end = 0;
    for (component, other) in a.split('/').skip(1).zip(b.split('/').skip(1)) {
        if component != other {
            break;
        }
        end += 1 + component.len();
    }
    if end == 0 { "/" } else { &a[..end] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_normal_form() {
        assert_eq!(normal("/a//b/./c/").unwrap(), "/a/b/c");
        assert_eq!(normal("/..a/b..").unwrap(), "/..a/b..");
        assert_eq!(normal("//").unwrap(), "/");
        assert!(normal("a/b").is_err());
        assert!(normal("").is_err());
        assert!(normal("/a/../b").is_err());
        assert!(normal(&"/a".repeat(2048)).is_err());
    }

    #[test]
    fn what_lies_below_a_path_follows_right_behind_it() {
        let mut paths = ["/a-b", "/a/b", "/a", "/a!", "/a/b/c", "/"];
        paths.sort_by(|a, b| order(a, b));
        assert_eq!(paths, ["/", "/a", "/a/b", "/a/b/c", "/a!", "/a-b"]);
    }

    #[test]
    fn directories_that_images_fill_are_theirs() {
        for owned in [
            "/",
            "/etc",
            "/etc/x/y",
            "/usr/local/bin",
            "/lib64",
            "/root",
            "/home/me",
        ] {
            assert!(owned_by_image(owned), "{owned}");
        }
        for owned in ["/opt/conda/bin", "/var", "/var/lib", "/home", "/run"] {
            assert!(owned_by_image(owned), "{owned}");
        }
        for free in [
            "/work",
            "/usr2",
            "/library",
            "/var/lib/cwl",
            "/root/x",
            "/home/me/x",
        ] {
            assert!(!owned_by_image(free), "{free}");
        }
    }

    #[test]
    fn the_common_ancestor_ends_at_a_component() {
        assert_eq!(common_ancestor("/a/b/c", "/a/bc/d"), "/a");
        assert_eq!(common_ancestor("/a/b", "/a/b/c"), "/a/b");
        assert_eq!(common_ancestor("/a", "/b"), "/");
        assert_eq!(common_ancestor("/", "/b"), "/");
    }
}
