use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use super::*;

fn rel(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

/// A root below a directory that also holds `secret`.
fn fixture(symlinks: Symlinks) -> (tempfile::TempDir, Arc<Root>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "no").unwrap();
    std::fs::create_dir_all(dir.path().join("root/d")).unwrap();
    std::fs::write(dir.path().join("root/d/f"), "yes").unwrap();
    let root = Root::open(dir.path().join("root"), symlinks).unwrap();
    (dir, Arc::new(root))
}

#[test]
fn a_path_with_dot_dot_or_nul_is_none() {
    assert!(RelPath::new("a/../b").is_none());
    assert!(RelPath::new("a\0").is_none());
    assert_eq!(rel("/a//./b/").as_path(), Path::new("a/b"));
    assert!(rel("/").is_root());
}

#[test]
fn symlinks_beneath_are_followed_and_those_out_are_denied() {
    let (dir, root) = fixture(Symlinks::Beneath);
    symlink("d/f", root.path().join("in")).unwrap();
    symlink("../secret", root.path().join("out")).unwrap();
    symlink(dir.path().join("root/d/f"), root.path().join("absolute")).unwrap();
    assert_eq!(
        io::read_to_string(root.open_file(&rel("in")).unwrap()).unwrap(),
        "yes"
    );
    for path in ["out", "absolute"] {
        let error = root.open_file(&rel(path)).unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::PermissionDenied,
            "{path}: {error}"
        );
    }
}

#[test]
fn in_root_takes_the_root_for_slash() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    symlink("/d/f", root.path().join("absolute")).unwrap();
    symlink("../../../../d/f", root.path().join("up")).unwrap();
    symlink("/secret", root.path().join("out")).unwrap();
    for path in ["absolute", "up"] {
        assert_eq!(
            io::read_to_string(root.open_file(&rel(path)).unwrap()).unwrap(),
            "yes"
        );
    }
    let error = root.open_file(&rel("out")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn magic_links_are_refused() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    symlink("/proc/self/root/etc/passwd", root.path().join("m")).unwrap();
    assert!(root.open_file(&rel("m")).is_err());
    let proc = Root::open("/proc", Symlinks::InRoot).unwrap();
    assert!(proc.open_file(&rel("self/root/etc/passwd")).is_err());
}

#[test]
fn pipes_sockets_and_devices_are_refused_without_blocking() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        Mode::from(0o600),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
    for path in ["pipe", "socket"] {
        assert!(
            root.open_file(&rel(path))
                .unwrap_err()
                .to_string()
                .contains(path)
        );
        assert!(
            root.create_file(&rel(path), 0o600)
                .unwrap_err()
                .to_string()
                .contains(path)
        );
    }
    let dev = Root::open("/dev", Symlinks::Beneath).unwrap();
    assert!(
        dev.open_file(&rel("null"))
            .unwrap_err()
            .to_string()
            .contains("device")
    );
}

#[test]
fn modes_are_exact_whatever_the_umask() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    let mode = |p| root.metadata(&rel(p)).unwrap().mode() & 0o7777;
    root.create_dir_all(&rel("x/y/z"), 0o777).unwrap();
    root.create_file(&rel("x/f"), 0o666).unwrap();
    assert_eq!(
        [mode("x"), mode("x/y"), mode("x/y/z"), mode("x/f")],
        [0o777, 0o777, 0o777, 0o666]
    );
    root.set_mode(&rel("x/f"), 0o000).unwrap();
    root.set_mode(&rel("x/f"), 0o751).unwrap();
    assert_eq!(mode("x/f"), 0o751);
}

#[test]
fn creating_never_writes_through_a_symlink() {
    let (dir, root) = fixture(Symlinks::InRoot);
    symlink("d/f", root.path().join("l")).unwrap();
    symlink("nowhere", root.path().join("dangling")).unwrap();
    assert!(root.create_file(&rel("l"), 0o600).is_err());
    assert!(root.create_file(&rel("dangling"), 0o600).is_err());
    assert!(root.create_new(&rel("dangling"), 0o600).is_err());
    assert!(root.set_mode(&rel("l"), 0o600).is_err());
    let temp = root.create_replacement(&rel("l"), 0o600, 0o700).unwrap();
    temp.keep().unwrap();
    assert!(!root.symlink_metadata(&rel("l")).unwrap().is_symlink());
    assert_eq!(std::fs::read(dir.path().join("root/d/f")).unwrap(), b"yes");
}

#[test]
fn a_file_created_over_one_keeps_its_inode() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    let before = root.metadata(&rel("d/f")).unwrap().ino();
    root.create_file(&rel("d/f"), 0o600).unwrap();
    let after = root.metadata(&rel("d/f")).unwrap();
    assert_eq!((after.ino(), after.len()), (before, 0));
}

/// A temporary file for `target`, with a name and, where that is possible here, without.
fn temporary(root: &Root, target: &str) -> Vec<TempFile> {
    let (target, mode) = (rel(target), 0o604);
    let directory = || root.open_dir(&target.parent().unwrap()).unwrap();
    let nameless = create_nameless(&directory(), mode).map(|file| TempFile {
        directory: directory(),
        name: None,
        target: target.clone(),
        file: Arc::new(file),
    });
    let named = TempFile::named(directory(), &target, mode).unwrap();
    [named].into_iter().chain(nameless).collect()
}

#[test]
fn a_temporary_file_that_is_not_kept_is_gone() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    let temporary = temporary(&root, "d/new");
    let names = root.read_dir(&rel("d")).unwrap();
    assert_eq!(names.iter().filter(|n| is_temp_name(n)).count(), 1);
    drop(temporary);
    assert_eq!(root.read_dir(&rel("d")).unwrap(), ["f"]);
}

#[test]
fn a_temporary_file_takes_the_place_of_a_file_with_its_own_mode() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    for target in ["d/new", "d/f"] {
        for (round, temp) in temporary(&root, target).into_iter().enumerate() {
            temp.file().write_all_at(&[round as u8], 0).unwrap();
            let kept = temp.keep().unwrap().metadata().unwrap();
            let found = root.metadata(&rel(target)).unwrap();
            assert_eq!((kept.ino(), kept.mode() & 0o7777), (found.ino(), 0o604));
            let content = std::fs::read(root.path().join(target)).unwrap();
            assert_eq!(content, [round as u8]);
        }
    }
    assert_eq!(root.read_dir(&rel("d")).unwrap().len(), 2);
    let copied = temporary(&root, "d/new").pop().unwrap();
    copied.file().write_all_at(b"same", 0).unwrap();
    let copied = copied.copy_named().unwrap().keep().unwrap();
    assert_eq!(copied.metadata().unwrap().mode() & 0o7777, 0o604);
    let content = std::fs::read(root.path().join("d/new")).unwrap();
    assert_eq!(content, b"same");
}

#[test]
fn a_temporary_file_takes_the_place_of_no_directory() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    root.create_dir_all(&rel("d/there"), 0o700).unwrap();
    for temp in temporary(&root, "d/there") {
        assert!(temp.keep().is_err());
    }
    let mut names = root.read_dir(&rel("d")).unwrap();
    names.sort();
    assert_eq!(names, ["f", "there"]);
}

#[test]
fn removing_a_tree_leaves_what_its_links_point_to() {
    let (dir, root) = fixture(Symlinks::InRoot);
    symlink("../..", root.path().join("d/up")).unwrap();
    root.remove_all(&rel("d")).unwrap();
    root.remove_all(&rel("d")).unwrap();
    assert!(root.read_dir(&rel("")).unwrap().is_empty());
    assert!(dir.path().join("secret").exists());
}

#[test]
fn a_walk_follows_links_within_and_reports_the_others() {
    let (_dir, root) = fixture(Symlinks::Beneath);
    let at = root.path();
    std::fs::create_dir_all(at.join("d/deep/empty")).unwrap();
    symlink("../f", at.join("d/deep/link")).unwrap();
    symlink("..", at.join("d/deep/loop")).unwrap();
    symlink("../../secret", at.join("d/out")).unwrap();
    symlink("nowhere", at.join("d/dangling")).unwrap();
    std::fs::set_permissions(at.join("d/f"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    for item in root.walk(&rel("d")).unwrap() {
        match item {
            Ok(item) => found.push((item.path.to_string(), item.is_link, item.metadata.is_dir())),
            Err(error) => refused.push(error.path.to_string()),
        }
    }
    found.sort();
    refused.sort();
    let expected = [
        ("deep", false, true),
        ("deep/empty", false, true),
        ("deep/link", true, false),
        ("f", false, false),
    ];
    assert_eq!(
        found,
        expected.map(|(path, link, dir)| (path.to_owned(), link, dir))
    );
    assert_eq!(refused, ["dangling", "deep/loop", "out"]);
}

#[test]
fn a_walk_reads_small_regular_files_and_opens_nothing_else() {
    let (_dir, root) = fixture(Symlinks::Beneath);
    let at = root.path();
    std::fs::write(at.join("d/large"), [7; 5]).unwrap();
    std::fs::write(at.join("d/empty"), "").unwrap();
    symlink("f", at.join("d/link")).unwrap();
    // To open it would wait for a writer.
    rustix::fs::mknodat(CWD, at.join("d/pipe"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let found = root.walk(&rel("d")).unwrap().with_content(4);
    let mut found: Vec<_> = found
        .map(|found| found.unwrap())
        .map(|found| (found.path.to_string(), found.content, found.metadata.len()))
        .collect();
    found.sort();
    found.retain(|(name, ..)| name != "link" && name != "pipe");
    let expected = [
        ("empty", Some(""), 0),
        ("f", Some("yes"), 3),
        ("large", None, 5),
    ];
    let expected =
        expected.map(|(name, content, size)| (name.to_owned(), content.map(Into::into), size));
    assert_eq!(found, expected);
}

#[test]
fn a_copy_of_a_source_that_became_shorter_is_an_error() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    let from = root.open_file(&rel("d/f")).unwrap();
    let to = root.create_new(&rel("copy"), 0o600).unwrap();
    let go_on = |_| std::ops::ControlFlow::Continue(());
    copy_contents(&from, &to, 3, go_on).unwrap();
    assert_eq!(
        io::read_to_string(root.open_file(&rel("copy")).unwrap()).unwrap(),
        "yes"
    );
    let error = copy_contents(&from, &to, 4, go_on).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let stop = |_| std::ops::ControlFlow::Break(());
    let error = copy_contents(&from, &to, 3, stop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
}

#[test]
fn a_tree_deeper_than_any_path_can_name_is_removed() {
    let (_dir, root) = fixture(Symlinks::InRoot);
    let mut at = root.open_dir(&rel("d")).unwrap();
    let name = "n".repeat(200);
    for _ in 0..100 {
        rustix::fs::mkdirat(&at, &name, Mode::from(0o700)).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, &name, flags, Mode::empty()).unwrap();
    }
    root.set_mode(&rel("d"), 0o500).unwrap();
    root.remove_all(&rel("d")).unwrap();
    assert!(root.read_dir(&rel("")).unwrap().is_empty());
}
