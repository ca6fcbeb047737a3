//! The files that a sandboxed command sees.
//!
//! A new root is put together on a small file system in memory: everything of this machine's
//! root is bound in, read-only; where the plan mounts something that this machine does not
//! have, the directories on the way are made anew and filled with what is in them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;

use super::Request;
use crate::plan::{MountKind, OutputSource, glob::Pattern};

/// What may be written beside the mounts; it is lost with the executor.
const ROOT_SIZE: &str = "size=64m,mode=755";
/// Devices that every container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// What of `/proc` steers the machine: for root the name spaces alone do not protect it.
const STEERING: [&str; 7] = ["sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi"];
/// What of `/proc` tells of the machine's memory and of other users.
const TELLING: [&str; 3] = ["kcore", "keys", "timer_list"];
/// What programs need of `/run`, which else holds the sockets of this machine's services.
const RUN: [&str; 4] = [
    "systemd/resolve",
    "resolvconf",
    "NetworkManager/resolv.conf",
    "current-system",
];

/// What a view has of its own, or not at all, and shows of this machine by no other name.
const PRIVATE: [&str; 4] = ["/dev", "/proc", "/run", "/tmp"];

/// A path that the view has to have.
#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<OsString, Node>,
    mount: Option<(MountKind, PathBuf)>,
}

/// Builds the view of a request and makes it the root of this process.
pub(super) fn build(request: &Request) -> io::Result<()> {
    let root = &request.root;
    mount_at(
        None,
        Path::new("/"),
        None,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None,
    )?;
    mount_at(
        Some("tesk".as_ref()),
        root,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(ROOT_SIZE),
    )?;

    let mut tree = Node::default();
    for mount in &request.plan.mounts {
        let source = request.scratch.join(mount.path.trim_start_matches('/'));
        tree.at(&mount.path).mount = Some((mount.kind, source));
    }
    for output in request
        .plan
        .outputs
        .iter()
        .filter(|o| o.collected_at.is_some())
    {
        // It is to be written where the machine's files are read-only.
        let parent = match &output.from {
            OutputSource::File(path) | OutputSource::Directory(path) => path
                .rsplit_once('/')
                .map_or("", |(parent, _)| parent)
                .to_owned(),
            OutputSource::Pattern { pattern, .. } => Pattern::new(pattern).directory(),
        };
        tree.at(&parent);
    }
    for own in ["proc", "dev"] {
        tree.children.remove(OsStr::new(own));
    }
    let run = tree.children.remove(OsStr::new("run")).unwrap_or_default();
    let private = PRIVATE.iter().map(Path::new).chain([&*request.hidden]);
    let private: Vec<_> = private.filter_map(|p| fs::canonicalize(p).ok()).collect();
    let own = PRIVATE.map(|place| place.trim_start_matches('/'));
    fill(Some(Path::new("/")), root, &tree, &private, &own)?;
    for place in &private {
        hide(root, place)?;
    }
    seal(root, |inside| !is_of_plan(&tree, inside))?;

    own_devices(&root.join("dev"))?;
    own_run(&root.join("run"), &run)?;
    own_processes(root)?;
    become_root(root)
}

impl Node {
    /// The node of an absolute path, made with those that lead to it.
    fn at(&mut self, path: &str) -> &mut Self {
        let mut node = self;
        for component in Path::new(path).components() {
            if let Component::Normal(name) = component {
                node = node.children.entry(name.to_owned()).or_default();
            }
        }
        node
    }
}

/// Fills the new directory `into` with what `from` has, which is a path without symlinks, except
/// what lies in `private`; and with the paths of `node`.
fn fill(
    from: Option<&Path>,
    into: &Path,
    node: &Node,
    private: &[PathBuf],
    leave_out: &[&str],
) -> io::Result<()> {
    use io::ErrorKind::{AlreadyExists, NotFound};
    let is_private = |path: &Path| private.iter().any(|place| path.starts_with(place));
    // What cannot be listed, the command could not see either.
    let entries = from.into_iter().flat_map(fs::read_dir).flatten();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let target = into.join(&name);
        let own = leave_out.iter().any(|own| name == **own);
        if own || node.children.contains_key(&name) || is_private(&entry.path()) {
            continue;
        }
        match show(&entry, &target) {
            // It came or went meanwhile.
            Err(error) if matches!(error.kind(), NotFound | AlreadyExists) => {}
            shown => shown?,
        }
    }
    for (name, child) in &node.children {
        let target = into.join(name);
        if let Some((kind, scratch)) = &child.mount {
            bind(scratch, &target, *kind == MountKind::Directory)?;
            continue;
        }
        // A symlink on the way counts as the directory that it leads to.
        let source = from.and_then(|from| fs::canonicalize(from.join(name)).ok());
        let source = source.filter(|source| !is_private(source));
        let metadata = source.as_ref().and_then(|source| fs::metadata(source).ok());
        let mode = metadata.map_or(0o755, |m| m.permissions().mode());
        fs::DirBuilder::new().mode(0o700).create(&target)?;
        fill(source.as_deref(), &target, child, private, &[])?;
        // Writable for us, whatever it is outside.
        fs::set_permissions(&target, fs::Permissions::from_mode(mode | 0o700))?;
    }
    Ok(())
}

/// Shows an entry of a directory of this machine at `target`.
fn show(entry: &fs::DirEntry, target: &Path) -> io::Result<()> {
    let (source, kind) = (entry.path(), entry.file_type()?);
    if kind.is_symlink() {
        return symlink(fs::read_link(source)?, target);
    }
    // A file system that will not be bound, as automounts do: the view has an empty place there.
    let _ = bind(&source, target, kind.is_dir());
    Ok(())
}

fn bind(source: &Path, target: &Path, directory: bool) -> io::Result<()> {
    if directory {
        fs::create_dir(target)?;
    } else {
        File::create(target)?;
    }
    mount_at(
        Some(source),
        target,
        None,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None,
    )
}

/// A line of mountinfo.
#[derive(Debug)]
struct Mounted {
    /// Major and minor number of the file system.
    device: Vec<u8>,
    /// What of the file system is mounted.
    part: PathBuf,
    place: PathBuf,
    options: Vec<u8>,
}

/// The mounts of this process.
fn mounted() -> io::Result<Vec<Mounted>> {
    let lines = fs::read("/proc/self/mountinfo")?;
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let read = |line: &[u8]| {
        // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
        let mut fields = line.split(|b| *b == b' ').skip(2);
        Some(Mounted {
            device: fields.next()?.to_owned(),
            part: path(fields.next()?),
            place: path(fields.next()?),
            options: fields.next()?.to_owned(),
        })
    };
    Ok(lines.split(|b| *b == b'\n').filter_map(read).collect())
}

/// Makes the mounts below `root` read-only whose path, seen from there, is `chosen`.
fn seal(root: &Path, chosen: impl Fn(&Path) -> bool) -> io::Result<()> {
    for Mounted { place, options, .. } in mounted()? {
        let Ok(inside) = place.strip_prefix(root) else {
            continue;
        };
        if inside.as_os_str().is_empty() || !chosen(inside) {
            continue;
        }
        let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        // A remount may not drop what the machine has set.
        for option in options.split(|b| *b == b',') {
            flags |= match option {
                b"nosuid" => MsFlags::MS_NOSUID,
                b"nodev" => MsFlags::MS_NODEV,
                b"noexec" => MsFlags::MS_NOEXEC,
                b"noatime" => MsFlags::MS_NOATIME,
                b"nodiratime" => MsFlags::MS_NODIRATIME,
                b"relatime" => MsFlags::MS_RELATIME,
                _ => MsFlags::empty(),
            };
        }
        let sealed = mount_at(None, &place, None, flags, None);
        // One below another mount cannot be reached, by us or by the command.
        if let Err(error) = sealed
            && !matches!(error.raw_os_error(), Some(libc) if libc == nix::errno::Errno::EINVAL as i32 || libc == nix::errno::Errno::ENOENT as i32)
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Whether a path lies in one of the plan's mounts.
fn is_of_plan(tree: &Node, path: &Path) -> bool {
    let mut node = tree;
    for component in path.components() {
        if node.mount.is_some() {
            return true;
        }
        match node.children.get(component.as_os_str()) {
            Some(child) => node = child,
            None => return false,
        }
    }
    node.mount.is_some()
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) if byte == b'\\' => {
                out.push(code);
                rest = &after[3..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

fn own_devices(dev: &Path) -> io::Result<()> {
    small_file_system(dev, "mode=755,size=64k")?;
    for name in DEVICES {
        let source = Path::new("/dev").join(name);
        if source.exists() {
            bind(&source, &dev.join(name), false)?;
        }
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name))?;
    }
    small_file_system(&dev.join("shm"), "mode=1777")?;
    let terminals = dev.join("pts");
    fs::create_dir(&terminals)?;
    // Without terminals of its own a command still runs.
    let options = "newinstance,ptmxmode=0666,mode=620";
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let _ = mount_at(None, &terminals, Some("devpts"), flags, Some(options));
    Ok(())
}

/// `/run`, with the paths of `node` in it.
fn own_run(run: &Path, node: &Node) -> io::Result<()> {
    if let Some((kind, scratch)) = &node.mount {
        return bind(scratch, run, *kind == MountKind::Directory);
    }
    small_file_system(run, "mode=755,size=16m")?;
    fill(None, run, node, &[], &[])?;
    for name in RUN {
        let (source, target) = (Path::new("/run").join(name), run.join(name));
        let Ok(kind) = fs::metadata(&source) else {
            continue;
        };
        // The task's own comes first.
        if is_of_plan(node, Path::new(name)) || target.exists() {
            continue;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        bind(&source, &target, kind.is_dir())?;
    }
    seal(run, |inside| !is_of_plan(node, inside))
}

fn own_processes(root: &Path) -> io::Result<()> {
    let proc = &root.join("proc");
    fs::create_dir(proc)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let again = MsFlags::MS_BIND | MsFlags::MS_REC;
    let own = mount_at(Some("proc".as_ref()), proc, Some("proc"), flags, None);
    // In a container whose /proc is partly covered the kernel refuses a new one.
    own.or_else(|_| mount_at(Some("/proc".as_ref()), proc, None, again, None))?;
    for place in STEERING.map(|name| proc.join(name)) {
        if place.exists() {
            mount_at(Some(&place), &place, None, again, None)?;
        }
    }
    seal(proc, |inside| {
        STEERING.iter().any(|name| inside.starts_with(name))
    })?;
    let nothing = root.join("dev/null");
    for place in TELLING.map(|name| proc.join(name)) {
        if place.exists() {
            mount_at(Some(&nothing), &place, None, MsFlags::MS_BIND, None)?;
        }
    }
    Ok(())
}

/// Covers a directory of this machine, `hidden` without symlinks, wherever the view shows it: a
/// mount may have it in it under another name.
fn hide(root: &Path, hidden: &Path) -> io::Result<()> {
    let itself = fs::metadata(hidden)?;
    let mounts = mounted()?;
    let home = mounts.iter().filter(|m| hidden.starts_with(&m.place));
    // Of those in one place the last is on top.
    let home = home.max_by_key(|m| m.place.components().count());
    let part = home.and_then(|home| {
        let below = hidden.strip_prefix(&home.place).ok()?;
        Some((&home.device, home.part.join(below)))
    });
    let others = mounts.iter().filter_map(|m| {
        let (device, part) = part.as_ref()?;
        let below = part.strip_prefix(&m.part).ok()?;
        let is_shown = m.place.starts_with(root) && m.place != root;
        (m.device == **device && is_shown).then(|| m.place.join(below))
    });
    let same_name = hidden.strip_prefix("/").ok().map(|below| root.join(below));
    for target in same_name.into_iter().chain(others) {
        let is_it = fs::symlink_metadata(&target)
            .is_ok_and(|found| (found.dev(), found.ino()) == (itself.dev(), itself.ino()));
        if !is_it || !itself.is_dir() {
            continue;
        }
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let options = Some("mode=555,size=4k");
        mount_at(
            Some("tesk".as_ref()),
            &target,
            Some("tmpfs"),
            flags,
            options,
        )?;
    }
    Ok(())
}

fn become_root(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    // Both in one place: the old root then lies on top and is taken away.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

fn small_file_system(place: &Path, options: &str) -> io::Result<()> {
    fs::create_dir(place)?;
    let flags = MsFlags::MS_NOSUID;
    mount_at(
        Some("tesk".as_ref()),
        place,
        Some("tmpfs"),
        flags,
        Some(options),
    )
}

/// `mount(2)`; an error names the place.
fn mount_at(
    source: Option<&Path>,
    place: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> io::Result<()> {
    mount(source, place, kind, flags, options).map_err(|errno| {
        let error = io::Error::from(errno);
        // Kept as it is where the caller looks at the number.
        if flags.contains(MsFlags::MS_REMOUNT) {
            error
        } else {
            io::Error::new(
                error.kind(),
                format!("cannot mount {}: {error}", place.display()),
            )
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_plan_is_not_sealed() {
        let mut tree = Node::default();
        tree.at("/data/a").mount = Some((MountKind::Directory, PathBuf::new()));
        assert!(is_of_plan(&tree, Path::new("data/a")));
        assert!(is_of_plan(&tree, Path::new("data/a/b")));
        assert!(!is_of_plan(&tree, Path::new("data")));
        assert!(!is_of_plan(&tree, Path::new("data/b")));
    }

    #[test]
    fn what_goes_while_a_view_is_filled_is_left_out() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let place = tempfile::tempdir().unwrap();
        let from = place.path().join("from");
        fs::create_dir(&from).unwrap();
        let links: Vec<_> = (0..20).map(|n| from.join(n.to_string())).collect();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for link in &links {
                        symlink("target", link).unwrap();
                    }
                    for link in &links {
                        fs::remove_file(link).unwrap();
                    }
                }
            });
            let filled = (0..300).try_for_each(|n| {
                let into = place.path().join(format!("into-{n}"));
                fs::create_dir(&into)?;
                fill(Some(&from), &into, &Node::default(), &[], &[])
            });
            done.store(true, Ordering::Relaxed);
            filled.unwrap();
        });
    }

    #[test]
    fn names_in_mountinfo_are_read_as_they_are() {
        assert_eq!(unescape(br"/a\040b\134c"), b"/a b\\c");
        assert_eq!(unescape(br"/a\x"), br"/a\x");
    }
}
