mod shelf;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::plan::{
    InputSource, Mount, MountKind, OutputSource, Plan, PlannedInput, PlannedOutput,
    PlannedResources, VERSION,
};
use crate::rooted::{Root, Symlinks};
use crate::tes::FileType;
use shelf::Shelf;

/// A scratch directory, a storage, and a plan between them.
struct Stage {
    directory: tempfile::TempDir,
    scratch: Arc<Root>,
    shelf: Arc<Shelf>,
    plan: Plan,
}

impl Stage {
    /// With the mount `/w`.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Root::open(directory.path(), Symlinks::InRoot).unwrap();
        std::fs::create_dir(directory.path().join("w")).unwrap();
        let mount = |path: &str, kind| Mount {
            path: path.into(),
            kind,
        };
        Self {
            directory,
            scratch: Arc::new(scratch),
            shelf: Arc::default(),
            plan: Plan {
                version: VERSION,
                task: "t".into(),
                inputs: Vec::new(),
                executors: Vec::new(),
                outputs: Vec::new(),
                mounts: vec![
                    mount("/etc/one.conf", MountKind::File),
                    mount("/tmp", MountKind::Directory),
                    mount("/w", MountKind::Directory),
                ],
                directories: vec!["/w/made/deep".into()],
                resources: PlannedResources::default(),
            },
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, content: &str) {
        std::fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        std::fs::write(self.at(path), content).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        symlink(target, self.at(path)).unwrap();
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap()
    }

    fn input(&mut self, path: &str, kind: FileType, from: InputSource) {
        self.plan.inputs.push(PlannedInput {
            index: self.plan.inputs.len(),
            from,
            path: path.into(),
            kind,
            streamable: false,
            mounted: None,
        });
    }

    fn file_input(&mut self, path: &str, url: &str) {
        self.input(path, FileType::File, InputSource::Url(url.into()));
    }

    fn content_input(&mut self, path: &str, content: &str) {
        self.input(path, FileType::File, InputSource::Content(content.into()));
    }

    fn directory_input(&mut self, path: &str, url: &str) {
        self.input(path, FileType::Directory, InputSource::Url(url.into()));
    }

    fn output(&mut self, from: OutputSource, url: &str) -> &mut PlannedOutput {
        self.plan.outputs.push(PlannedOutput {
            index: self.plan.outputs.len(),
            url: url.into(),
            from,
            collected_at: None,
        });
        self.plan.outputs.last_mut().unwrap()
    }

    fn pattern(&mut self, pattern: &str, prefix: &str, url: &str) {
        let (pattern, prefix) = (pattern.into(), prefix.into());
        self.output(OutputSource::Pattern { pattern, prefix }, url);
    }

    async fn place(&self) -> Result<(), Failure> {
        prepare(&self.plan, &self.scratch)?;
        inputs(&self.plan, &self.scratch, &self.shelf.engine()).await
    }

    async fn deliver(&self) -> Delivered {
        outputs(&self.plan, &self.scratch, &self.shelf.engine()).await
    }
}

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

fn file(path: &str) -> OutputSource {
    OutputSource::File(path.into())
}

fn directory(path: &str) -> OutputSource {
    OutputSource::Directory(path.into())
}

fn messages(delivered: &Delivered) -> Vec<&str> {
    delivered
        .failures
        .iter()
        .map(|f| f.message.as_str())
        .collect()
}

#[test]
fn what_is_prepared_is_usable_by_anybody_and_may_be_prepared_again() {
    let stage = Stage::new();
    for _ in 0..2 {
        prepare(&stage.plan, &stage.scratch).unwrap();
        for path in ["/w", "/w/made", "/w/made/deep", "/etc", "/etc/one.conf"] {
            assert_eq!(mode(&stage.at(path)), 0o777, "{path}");
        }
        assert_eq!(mode(&stage.at("/tmp")), 0o1777);
        assert!(stage.at("/etc/one.conf").is_file());
    }
}

#[tokio::test]
async fn inputs_are_private_copies_that_anybody_may_change_and_run() {
    let mut stage = Stage::new();
    stage.shelf.put("/a", "from the shelf");
    stage.shelf.put("/d/x/y", "deep");
    stage.file_input("/w/a", "mem://h/a");
    stage.directory_input("/w/d", "mem://h/d/");
    stage.content_input("/w/c/script", "#!/bin/sh\n");
    stage.content_input("/w/empty", "");
    stage.place().await.unwrap();
    assert_eq!(stage.read("/w/a"), "from the shelf");
    assert_eq!(stage.read("/w/d/x/y"), "deep");
    assert_eq!(stage.read("/w/c/script"), "#!/bin/sh\n");
    assert_eq!(stage.read("/w/empty"), "");
    for path in [
        "/w/a",
        "/w/d",
        "/w/d/x",
        "/w/d/x/y",
        "/w/c",
        "/w/c/script",
        "/w/empty",
    ] {
        assert_eq!(mode(&stage.at(path)), 0o777, "{path}");
    }
}

#[tokio::test]
async fn trees_merge_and_a_later_input_wins() {
    let mut stage = Stage::new();
    stage.shelf.put("/one/a", "one");
    stage.shelf.put("/one/b", "one");
    stage.shelf.put("/two/b", "two");
    stage.shelf.put("/three", "three");
    stage.directory_input("/w/d", "mem://h/one");
    stage.directory_input("/w/d", "mem://h/two");
    stage.file_input("/w/d/c", "mem://h/three");
    stage.content_input("/w/e", "first, and longer");
    stage.content_input("/w/e", "second");
    stage.place().await.unwrap();
    let found = ["a", "b", "c"].map(|name| stage.read(&format!("/w/d/{name}")));
    assert_eq!(found, ["one", "two", "three"]);
    assert_eq!(stage.read("/w/e"), "second");
}

#[tokio::test]
async fn a_single_file_mount_is_written_in_place() {
    let mut stage = Stage::new();
    stage.shelf.put("/conf", "new");
    stage.file_input("/etc/one.conf", "mem://h/conf");
    prepare(&stage.plan, &stage.scratch).unwrap();
    let mounted = std::fs::metadata(stage.at("/etc/one.conf")).unwrap().ino();
    inputs(&stage.plan, &stage.scratch, &stage.shelf.engine())
        .await
        .unwrap();
    assert_eq!(stage.read("/etc/one.conf"), "new");
    assert_eq!(
        std::fs::metadata(stage.at("/etc/one.conf")).unwrap().ino(),
        mounted
    );
}

#[tokio::test]
async fn a_failed_input_is_named_without_its_credentials() {
    for (url, kind, retryable) in [
        ("mem://me:s3cret@h/missing?sig=t0ken", FileType::File, false),
        ("mem://me:s3cret@h/d?sig=t0ken", FileType::File, false),
        (
            "mem://me:s3cret@h/d/x?sig=t0ken",
            FileType::Directory,
            false,
        ),
        ("mem://me:s3cret@h/later?sig=t0ken", FileType::File, true),
        ("foo://me:s3cret@h/x?sig=t0ken", FileType::File, false),
    ] {
        let mut stage = Stage::new();
        stage.shelf.put("/d/x", "");
        stage.content_input("/w/fine", "");
        stage.input("/w/a", kind, InputSource::Url(url.into()));
        let Failure {
            message,
            retryable: again,
        } = stage.place().await.unwrap_err();
        let shown = url.split('?').next().unwrap().replace("me:s3cret@", "");
        assert!(message.starts_with("inputs[1] (/w/a): "), "{message}");
        assert!(message.contains(&shown), "{message}");
        assert!(
            !message.contains("s3cret") && !message.contains("t0ken"),
            "{message}"
        );
        assert_eq!(again, retryable, "{message}");
    }
}

#[tokio::test]
async fn every_row_of_outputs_is_delivered_where_it_belongs() {
    let mut stage = Stage::new();
    for path in [
        "a",
        "d/.hidden",
        "d/sub/x",
        "out/1.txt",
        "out/2.txt",
        "out/.3.txt",
        "out/t.txt/in",
    ] {
        stage.put(&format!("/w/{path}"), path);
    }
    std::fs::create_dir_all(stage.at("/w/d/empty")).unwrap();
    stage.output(file("/w/a"), "mem://u:p@h/file?sig=1");
    stage.output(directory("/w/d"), "mem://h/dir");
    stage.pattern("/w/out/*.txt", "/w", "mem://h/x");
    stage.pattern("/w/none/*", "/w", "mem://h/x");
    let delivered = stage.deliver().await;
    let shown: Vec<_> = delivered
        .outputs
        .iter()
        .map(|o| (o.path.as_str(), o.url.as_str(), o.size_bytes))
        .collect();
    assert_eq!(
        shown,
        [
            ("/w/a", "mem://h/file", 1),
            ("/w/d/.hidden", "mem://h/dir/.hidden", 9),
            ("/w/d/sub/x", "mem://h/dir/sub/x", 7),
            ("/w/out/1.txt", "mem://h/x/out/1.txt", 9),
            ("/w/out/2.txt", "mem://h/x/out/2.txt", 9),
            ("/w/out/t.txt/in", "mem://h/x/out/t.txt/in", 12),
        ]
    );
    assert_eq!(stage.shelf.get("/x/out/2.txt").unwrap(), b"out/2.txt");
    assert_eq!(stage.shelf.directories(), ["/dir/empty"]);
    assert_eq!(
        delivered.notes,
        ["warning: outputs[3]: nothing matches /w/none/*"]
    );
    assert_eq!(delivered.failures, []);
    assert_eq!(verdict(false, &delivered), Outcome::Complete);
}

#[tokio::test]
async fn declared_outputs_that_are_not_there_are_each_named_and_the_rest_is_delivered() {
    let mut stage = Stage::new();
    stage.put("/w/good", "");
    std::fs::create_dir(stage.at("/w/d")).unwrap();
    stage.output(file("/w/missing"), "mem://h/1");
    stage.output(file("/w/d"), "mem://h/2");
    stage.output(directory("/w/good"), "mem://h/3");
    stage.output(directory("/w/none"), "mem://h/4");
    stage.output(file("/w/good"), "mem://h/5");
    let delivered = stage.deliver().await;
    assert_eq!(
        messages(&delivered),
        [
            "outputs[0]: /w/missing does not exist",
            "outputs[1]: /w/d is a directory, not a file",
            "outputs[2]: /w/good is a file, not a directory",
            "outputs[3]: /w/none does not exist",
        ]
    );
    assert_eq!(delivered.outputs.len(), 1);
    assert_eq!(verdict(false, &delivered), Outcome::SystemError);
    assert_eq!(verdict(true, &delivered), Outcome::ExecutorError);
}

#[tokio::test]
async fn a_failed_delivery_does_not_stop_the_others_and_may_be_tried_again() {
    let mut stage = Stage::new();
    for name in ["a", "b", "c"] {
        stage.put(&format!("/w/{name}"), "");
    }
    stage.output(file("/w/a"), "mem://h/later");
    stage.output(file("/w/b"), "mem://h/b");
    let delivered = stage.deliver().await;
    assert_eq!(delivered.outputs.len(), 1);
    assert!(messages(&delivered)[0].starts_with("outputs[0] (/w/a): mem://h/later: "));
    assert_eq!(verdict(false, &delivered), Outcome::Retry);
    // One that can never succeed decides.
    stage.output(file("/w/c"), "mem://h/denied");
    assert_eq!(verdict(false, &stage.deliver().await), Outcome::SystemError);
}

#[tokio::test]
async fn symlinks_count_only_inside_the_tasks_own_mounts() {
    let mut stage = Stage::new();
    stage.put("/w/real/x", "inside");
    stage.put("/etc/shadow", "of scratch, but in no mount");
    std::fs::create_dir_all(stage.at("/w/d")).unwrap();
    stage.link("/w/d/inside", "../real/x");
    stage.link("/w/d/absolute", "/w/real");
    stage.link("/w/d/shadow", "/etc/shadow");
    stage.link("/w/d/above", "../../../../../../../../etc/shadow");
    stage.link("/w/d/dangling", "nothing");
    stage.link("/w/d/loop", "loop");
    stage.link("/w/d/self", ".");
    stage.link("/w/d/up", "..");
    stage.link("/w/d/root", "/");
    stage.link("/w/declared", "/etc/shadow");
    stage.output(directory("/w/d"), "mem://h/d");
    stage.output(file("/w/declared"), "mem://h/declared");
    let delivered = stage.deliver().await;
    let paths: Vec<_> = delivered.outputs.iter().map(|o| o.path.as_str()).collect();
    // `up` leads to /w: its `d` is where we are, and not entered again.
    let expected = ["/w/d/absolute/x", "/w/d/inside", "/w/d/up/real/x"];
    assert_eq!(paths, expected);
    for refused in [
        "/w/d/shadow is a symlink that leads out of the task's directories",
        "/w/d/above is a symlink that leads out",
        "/w/d/dangling is a symlink to nothing",
        "/w/d/loop is a symlink in a loop",
        "/w/d/self is a symlink to a directory it lies in",
        "/w/d/root is a symlink that leads out",
        "/w/d/up/d is a symlink to a directory it lies in",
    ] {
        let refused = format!("warning: outputs[0]: {refused}");
        assert!(
            delivered.notes.iter().any(|n| n.starts_with(&refused)),
            "{refused}"
        );
    }
    assert_eq!(
        messages(&delivered),
        ["outputs[1]: /w/declared is a symlink that leads out of the task's directories"]
    );
    assert!(!stage.shelf.holds("scratch"));
}

#[tokio::test]
async fn pipes_and_names_that_are_not_text_are_left_out_and_noted() {
    let mut stage = Stage::new();
    std::fs::create_dir_all(stage.at("/w/d")).unwrap();
    let mode = rustix::fs::Mode::from(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, stage.at("/w/d/pipe"), kind, mode, 0).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff");
    std::fs::write(stage.at("/w/d").join(odd), "").unwrap();
    stage.output(directory("/w/d"), "mem://h/d");
    stage.output(file("/w/d/pipe"), "mem://h/p");
    stage.pattern("/w/d/*", "/w", "mem://h/x");
    let delivered = stage.deliver().await;
    assert_eq!(delivered.outputs, []);
    assert_eq!(delivered.notes.len(), 4);
    assert!(delivered.notes[0].contains("/w/d/odd\u{fffd} has a name that is not UTF-8"));
    assert!(delivered.notes[1].contains("/w/d/pipe is neither a file nor a directory"));
    assert!(messages(&delivered)[0].contains("/w/d/pipe is neither"));
}

#[tokio::test]
async fn a_file_under_two_outputs_is_delivered_for_each_but_an_identical_pair_once() {
    let mut stage = Stage::new();
    stage.put("/w/d/x", "");
    stage.output(directory("/w/d"), "mem://h/d");
    stage.output(file("/w/d/x"), "mem://h/d/x");
    stage.output(file("/w/d/x"), "mem://h/other");
    let delivered = stage.deliver().await;
    let urls: Vec<_> = delivered.outputs.iter().map(|o| o.url.as_str()).collect();
    assert_eq!(urls, ["mem://h/d/x", "mem://h/other"]);
}

#[tokio::test]
async fn symlinks_in_a_circle_do_not_make_an_output_endless() {
    let mut stage = Stage::new();
    std::fs::create_dir_all(stage.at("/w/d")).unwrap();
    for name in ["a", "b", "c"] {
        stage.link(&format!("/w/d/{name}"), ".");
    }
    stage.pattern(&format!("/w/d{}/x", "/*".repeat(60)), "/w", "mem://h/d");
    let delivered = stage.deliver().await;
    let said = messages(&delivered);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("symlinks in a circle?"), "{said:?}");
    assert_eq!(verdict(false, &delivered), Outcome::SystemError);
    // Not even where each of very many matches is a directory to be walked.
    stage.pattern(&format!("/w/d{}", "/*".repeat(60)), "/w", "mem://h/d");
    assert_eq!(stage.deliver().await.outputs, []);
}

#[tokio::test]
async fn a_chain_of_symlinks_makes_no_path_without_end() {
    let mut stage = Stage::new();
    let long = "l".repeat(254);
    for n in 0..60 {
        stage.put(&format!("/w/d/{n}/x"), "");
        stage.link(&format!("/w/d/{n}/{long}"), &format!("/w/d/{}", n + 1));
    }
    stage.output(directory("/w/d/0"), "mem://h/d");
    stage.pattern(&format!("/w/d/0{}/x", "/l*".repeat(30)), "/w", "mem://h/p");
    let delivered = stage.deliver().await;
    assert_eq!(delivered.outputs.len(), 17);
    assert!(delivered.outputs.iter().all(|o| o.path.len() < 4200));
    assert_eq!(delivered.notes, <[&str; 0]>::default());
    let said = messages(&delivered);
    assert_eq!(said.len(), 2, "{said:?}");
    for (index, said) in said.iter().enumerate() {
        assert!(said.starts_with(&format!("outputs[{index}]: /w/d/0/lll")));
        assert!(said.ends_with(" cannot be read: its path is too long (a chain of symlinks?)"));
        assert!(said.len() <= 4096, "{}", said.len());
    }
    assert_eq!(verdict(false, &delivered), Outcome::SystemError);
}

#[tokio::test]
async fn ten_thousand_files_are_delivered_and_ten_thousand_notes_are_not() {
    let mut stage = Stage::new();
    std::fs::create_dir_all(stage.at("/w/d")).unwrap();
    for n in 0..4000 {
        std::fs::write(stage.at(&format!("/w/d/{n}")), "").unwrap();
        symlink("nowhere", stage.at(&format!("/w/d/link{n}"))).unwrap();
    }
    stage.output(directory("/w/d"), "mem://h/d");
    let delivered = stage.deliver().await;
    assert_eq!(delivered.outputs.len(), 4000);
    assert_eq!(delivered.notes.len(), 101);
    assert_eq!(delivered.notes[100], "and 3900 more such lines");
}

#[tokio::test]
async fn what_supervisors_collect_beside_the_mounts_is_shown_at_its_own_path() {
    let mut stage = Stage::new();
    let container = tempfile::tempdir().unwrap();
    let inside = |path: &str| container.path().join(path);
    std::fs::create_dir_all(inside("root/d")).unwrap();
    std::fs::write(inside("root/out"), "file").unwrap();
    std::fs::write(inside("root/d/x"), "in directory").unwrap();
    std::fs::write(inside("root/1.log"), "matched").unwrap();
    std::fs::write(inside("secret"), "of the image").unwrap();
    symlink("/secret", inside("root/d/link")).unwrap();
    stage.output(file("/root/out"), "mem://h/f").collected_at = Some("/.tesk/c/0".into());
    stage.output(directory("/root/d"), "mem://h/d").collected_at = Some("/.tesk/c/1".into());
    stage.pattern("/root/*.log", "/root", "mem://h/p");
    stage.plan.outputs[2].collected_at = Some("/.tesk/c/2".into());
    let root = Arc::new(Root::open(container.path(), Symlinks::InRoot).unwrap());
    // A later executor's file takes the place of an earlier one's.
    stage.put("/.tesk/c/0", "what an earlier executor left");
    let Collected { notes, failures } = collect(&stage.plan, &root, &stage.scratch);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("/root/d/link is not collected"),
        "{notes:?}"
    );
    assert_eq!(failures, []);
    let delivered = stage.deliver().await;
    let shown: Vec<_> = delivered
        .outputs
        .iter()
        .map(|o| (&*o.path, &*o.url))
        .collect();
    assert_eq!(
        shown,
        [
            ("/root/1.log", "mem://h/p/1.log"),
            ("/root/d/x", "mem://h/d/x"),
            ("/root/out", "mem://h/f"),
        ]
    );
    assert_eq!(stage.shelf.get("/f").unwrap(), b"file");
    assert_eq!(delivered.failures, []);
}

#[test]
fn what_is_collected_keeps_its_mode_as_far_as_anybody_may_read_it() {
    let mut stage = Stage::new();
    let container = tempfile::tempdir().unwrap();
    for (index, (bits, _)) in MODES.into_iter().enumerate() {
        let path = container.path().join(index.to_string());
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(bits)).unwrap();
        stage
            .output(file(&format!("/{index}")), "mem://h/x")
            .collected_at = Some(format!("/.tesk/c/{index}"));
    }
    let root = Arc::new(Root::open(container.path(), Symlinks::InRoot).unwrap());
    assert_eq!(collect(&stage.plan, &root, &stage.scratch).failures, []);
    for (index, (bits, kept)) in MODES.into_iter().enumerate() {
        let found = mode(&stage.at(&format!("/.tesk/c/{index}")));
        assert_eq!(found, kept, "{found:o} of {bits:o}");
    }
}

const MODES: [(u32, u32); 3] = [(0o600, 0o644), (0o755, 0o755), (0o6710, 0o754)];

/// Does `work` as a user who may not read what its mode forbids, which root may.
fn as_a_common_user<T: Send>(work: impl Future<Output = T> + Send) -> T {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let work = || {
        // Of this thread, and of those that it starts.
        let mut sets = capabilities(None).unwrap();
        sets.effective
            .remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, sets).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(work)
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn an_output_that_could_only_partly_be_read_is_a_failure_and_the_rest_is_delivered() {
    let mut stage = Stage::new();
    for name in [
        "d/a",
        "d/locked/x",
        "d/z",
        "p/locked/x",
        "p/open/x",
        "other",
    ] {
        stage.put(&format!("/w/{name}"), "");
    }
    let lock = |path: &str, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(stage.at(path), mode).unwrap();
    };
    for path in ["/w/d/locked", "/w/p/locked"] {
        lock(path, 0);
    }
    let unlock = ["/w/d/locked", "/w/p/locked"].map(|path| stage.at(path));
    stage.output(directory("/w/d"), "mem://h/d");
    stage.pattern("/w/p/*/x", "/w/p", "mem://h/p");
    stage.pattern("/w/d/locked/*", "", "mem://h/q");
    stage.pattern("/w/d/locked/below/*", "", "mem://h/r");
    stage.output(file("/w/d/locked/x"), "mem://h/x");
    stage.output(file("/w/other"), "mem://h/other");
    let delivered = as_a_common_user(stage.deliver());
    for path in unlock {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    let paths: Vec<_> = delivered.outputs.iter().map(|o| o.path.as_str()).collect();
    assert_eq!(paths, ["/w/d/a", "/w/d/z", "/w/other", "/w/p/open/x"]);
    let denied = "cannot be read: Permission denied (os error 13)";
    assert_eq!(
        messages(&delivered),
        [
            format!("outputs[0]: /w/d/locked {denied}"),
            format!("outputs[1]: /w/p/locked/x {denied}"),
            format!("outputs[2]: /w/d/locked {denied}"),
            format!("outputs[3]: /w/d/locked/below {denied}"),
            format!("outputs[4]: /w/d/locked/x {denied}"),
        ]
    );
    assert_eq!(delivered.notes, <[&str; 0]>::default());
    assert_eq!(verdict(false, &delivered), Outcome::SystemError);
}

#[tokio::test]
async fn more_entries_than_are_looked_at_are_a_failure() {
    let mut stage = Stage::new();
    std::fs::create_dir_all(stage.at("/w/d")).unwrap();
    for n in 0..=10_000 {
        std::fs::write(stage.at(&format!("/w/d/{n:05}")), "").unwrap();
    }
    stage.output(directory("/w/d"), "mem://h/d");
    let delivered = stage.deliver().await;
    assert_eq!(delivered.outputs.len(), 10_000);
    let said = messages(&delivered);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("outputs[0]: /w/d/10000 comes after 10000 others"),
        "{said:?}"
    );
    assert_eq!(verdict(false, &delivered), Outcome::SystemError);
}

#[test]
fn what_is_there_and_cannot_be_collected_is_a_failure() {
    let mut stage = Stage::new();
    let container = tempfile::tempdir().unwrap();
    let inside = |path: &str| container.path().join(path);
    std::fs::create_dir_all(inside("root/d/locked")).unwrap();
    for name in ["a", "b"] {
        std::fs::write(inside("root/d").join(name), name).unwrap();
    }
    let mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(inside("root/d/locked"), mode).unwrap();
    };
    mode(0);
    // In the way.
    std::fs::create_dir_all(stage.at("/.tesk/c/0/a")).unwrap();
    stage.output(directory("/root/d"), "mem://h/d").collected_at = Some("/.tesk/c/0".into());
    // What the command's user may not look at it has not made.
    stage.pattern("/root/d/locked/sub/*", "", "mem://h/p");
    stage.plan.outputs[1].collected_at = Some("/.tesk/c/1".into());
    let root = Arc::new(Root::open(container.path(), Symlinks::InRoot).unwrap());
    let collected = as_a_common_user(async { collect(&stage.plan, &root, &stage.scratch) });
    mode(0o700);
    assert_eq!(stage.read("/.tesk/c/0/b"), "b");
    assert_eq!(collected.notes, <[&str; 0]>::default());
    let said: Vec<_> = collected.failures.iter().map(|f| &*f.message).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with("outputs[0]: /root/d/a is not collected: "));
    assert!(said[1].starts_with("outputs[0]: /root/d/locked cannot be read: "));
    assert!(collected.failures.iter().all(|failure| !failure.retryable));
}

#[cfg(feature = "local")]
#[tokio::test]
async fn what_was_copied_of_a_container_is_brought_over_link_by_link_and_changes_nothing_outside() {
    let mut stage = Stage::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), "mine").unwrap();
    stage.put("/w/made", "in a mount");
    stage.output(file("/opt/out"), "mem://h/f").collected_at = Some("/.tesk/c/0".into());
    stage.output(directory("/opt/d"), "mem://h/d").collected_at = Some("/.tesk/c/1".into());
    let collect = |stage: &Stage, index: usize| {
        let output = &stage.plan.outputs[index];
        let collected = collect_copied(&stage.plan, output, "/.tesk/copied", &stage.scratch);
        assert_eq!(collected.failures, []);
        collected.notes
    };
    std::fs::create_dir_all(stage.at("/.tesk")).unwrap();
    // What it leads to is not there for the task.
    symlink(outside.path().join("file"), stage.at("/.tesk/copied")).unwrap();
    assert_eq!(collect(&stage, 0), [""; 0]);
    assert!(!stage.at("/.tesk/c/0").exists());
    std::fs::remove_file(stage.at("/.tesk/copied")).unwrap();
    stage.put("/.tesk/copied", "of the second executor");
    assert_eq!(collect(&stage, 0), [""; 0]);
    std::fs::remove_file(stage.at("/.tesk/copied")).unwrap();
    stage.put("/.tesk/c/1/earlier", "of the first executor");
    stage.put("/.tesk/copied/sub/x", "deep");
    symlink(outside.path(), stage.at("/.tesk/copied/away")).unwrap();
    symlink("/w/made", stage.at("/.tesk/copied/link")).unwrap();
    let notes = collect(&stage, 1);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("/opt/d/away is not collected"),
        "{notes:?}"
    );
    std::fs::remove_dir_all(stage.at("/.tesk/copied")).unwrap();
    let delivered = stage.deliver().await;
    let shown: Vec<_> = delivered.outputs.iter().map(|o| &*o.path).collect();
    let expected = ["/opt/d/earlier", "/opt/d/link", "/opt/d/sub/x", "/opt/out"];
    assert_eq!(shown, expected);
    assert_eq!(stage.shelf.get("/f").unwrap(), b"of the second executor");
    assert_eq!(stage.shelf.get("/d/link").unwrap(), b"in a mount");
    assert_eq!(std::fs::read(outside.path().join("file")).unwrap(), b"mine");
}

#[test]
fn what_a_command_keeps_to_itself_is_opened_for_the_one_who_delivers_it() {
    let mut stage = Stage::new();
    stage.put("/w/d/sub/x", "");
    stage.put("/w/d/other", "");
    for (path, bits) in [
        ("/w/d/sub/x", 0o600),
        ("/w/d/sub", 0o700),
        ("/w/d/other", 0o600),
    ] {
        let bits = std::fs::Permissions::from_mode(bits);
        std::fs::set_permissions(stage.at(path), bits).unwrap();
    }
    stage.output(file("/w/d/sub/x"), "mem://h/x");
    release(&stage.plan, &stage.scratch);
    assert_eq!(mode(&stage.at("/w/d/sub/x")), 0o644);
    assert_eq!(mode(&stage.at("/w/d/sub")), 0o755);
    assert_eq!(mode(&stage.at("/w/d/other")), 0o600, "is no output");
}

#[test]
fn inputs_that_touch_each_other_keep_their_order() {
    let independent = |paths: &[&str]| {
        let mut stage = Stage::new();
        for path in paths {
            stage.content_input(path, "");
        }
        super::place::independent(&stage.plan.inputs)
    };
    assert_eq!(independent(&["/a", "/b", "/ab", "/a.b"]), 4);
    assert_eq!(independent(&["/a", "/b", "/a"]), 2);
    assert_eq!(independent(&["/a", "/a/b"]), 1);
    assert_eq!(independent(&["/a/b/c", "/d", "/a"]), 2);
}
