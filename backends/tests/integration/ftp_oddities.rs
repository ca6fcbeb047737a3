//! Servers that answer oddly, lie, refuse or fall over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tesk_core::storage::{ByteRange, Entry, EntryKind, ErrorKind, Result, Source, Version};

use super::scripted_ftp::{Act, Scripted, say, send};
use super::{Bench, registry, url};

const ENTRY: &str = "[[storage]]\ntype = 'ftp'\nprefix = 'ftp://'";
/// For servers that fall silent.
const IMPATIENT: &str = "[[storage]]\ntype = 'ftp'\nprefix = 'ftp://'\ncommand_timeout_secs = 1";

async fn list(server: &Scripted, path: &str) -> Result<Vec<Entry>> {
    use futures_util::TryStreamExt as _;
    let at = url(&server.url(path));
    let storage = registry(ENTRY).unwrap().route(&at).unwrap();
    storage.list(&at).await?.try_collect().await
}

async fn read(server: &Scripted, config: &str, path: &str) -> Result<Vec<u8>> {
    use futures_util::TryStreamExt as _;
    let at = url(&server.url(path));
    let storage = registry(config).unwrap().route(&at).unwrap();
    let stream = storage
        .read(&at, tesk_core::storage::ByteRange::FULL, None)
        .await?
        .bytes;
    let chunks: Vec<bytes::Bytes> = stream.try_collect().await?;
    Ok(chunks.concat())
}

/// A server with the file `/f`, which is `here`, except for what `odd` says.
async fn with_file(odd: impl Fn(&str, usize) -> Option<Act> + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |command, connection| {
        odd(command, connection).unwrap_or_else(|| match command {
            "SIZE /f" => say("213 4"),
            "MDTM /f" => say("213 20240105103000"),
            "RETR /f" => send("here"),
            _ if command.starts_with("SIZE ") || command.starts_with("CWD ") => say("550 no"),
            _ => Act::Usual,
        })
    })
    .await
}

#[tokio::test]
async fn answers_of_many_lines_are_read_to_their_end() {
    let server = with_file(|command, _| {
        Some(match command {
            "" => say("220-hello\r\n220-  230 not yet\r\nanything\r\n220 now"),
            "PASS anonymous@" => say("230-rules:\r\n 1. be kind\r\n230 welcome"),
            "FEAT" => say("211-these:\r\n SIZE\r\n UTF8\r\n211 end"),
            "SIZE /f" => say("213-wait\r\n213 4"),
            _ => return None,
        })
    })
    .await;
    assert_eq!(
        Bench::with(ENTRY).fetch(&server.url("/f")).await.unwrap(),
        b"here"
    );
    assert_eq!(server.count("OPTS UTF8 ON"), server.count("USER"));
}

#[tokio::test]
async fn lists_of_dos_and_unix_servers_are_read_and_garbage_is_left_out() {
    for (text, expected) in [
        (
            "01-05-24  10:30AM       <DIR>          a dir\r\n\
             01-05-24  10:30PM                    7 a file\r\n",
            ["a dir", "a file"],
        ),
        (
            "total 8\r\n~~~\r\ndrwxr-sr-t 2 ftp-user g 4096 Jan  5 10:30 a dir\r\n\
             -rw-r--r-- 1 1 1 7 Jan  5  2024 a file\r\n",
            ["a dir", "a file"],
        ),
    ] {
        let server = Scripted::start(move |command, _| match command {
            "LIST -a" => send(""),
            "LIST" => send(text),
            _ => Act::Usual,
        })
        .await;
        // One level: both levels would be the same.
        use futures_util::StreamExt as _;
        let at = url(&server.url("/x"));
        let storage = registry(ENTRY).unwrap().route(&at).unwrap();
        let entries: Vec<_> = storage.list(&at).await.unwrap().take(2).collect().await;
        let entries: Vec<Entry> = entries.into_iter().map(Result::unwrap).collect();
        assert_eq!(
            entries.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(),
            expected
        );
        assert_eq!(entries[0].kind, EntryKind::Directory);
        let EntryKind::File(info) = &entries[1].kind else {
            panic!("no file");
        };
        assert_eq!((info.size, &info.version), (Some(7), &None));
    }
}

#[tokio::test]
async fn a_listing_of_which_nothing_is_understood_is_not_an_empty_directory() {
    let server = Scripted::start(|command, _| match command {
        "LIST -a" | "LIST" => send("FILE.TXT;1  2/4  5-JAN-2024 10:30 [SYSTEM]\r\n"),
        _ => Act::Usual,
    })
    .await;
    let error = list(&server, "/x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let server = Scripted::start(|command, _| match command {
        "LIST -a" | "LIST" => say("550 no files"),
        _ => Act::Usual,
    })
    .await;
    assert_eq!(list(&server, "/x").await.unwrap(), []);
}

#[tokio::test]
async fn links_are_followed_to_what_they_lead_to() {
    let server = Scripted::start(|command, _| match command {
        "CWD /x" | "CWD /x/d" => say("250 ok"),
        "LIST -a" => send(
            "lrwxrwxrwx 1 u g 1 Jan  5 10:30 f -> /else/where\r\n\
             lrwxrwxrwx 1 u g 1 Jan  5 10:30 dangling -> nowhere\r\n",
        ),
        "SIZE /x/f" => say("213 5"),
        "MDTM /x/f" => say("213 20240105103000"),
        _ if command.starts_with("SIZE ") || command.starts_with("CWD ") => say("550 no"),
        _ => Act::Usual,
    })
    .await;
    let entries = list(&server, "/x").await.unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0].path, "f");

    let server = Scripted::start(|command, _| match command {
        "LIST -a" => send("lrwxrwxrwx 1 u g 1 Jan  5 10:30 up -> ../../x\r\n"),
        _ => Act::Usual,
    })
    .await;
    let error = list(&server, "/x/y").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("leads back"), "{error}");
}

#[tokio::test]
async fn directories_that_go_round_in_circles_are_left() {
    for marked in [true, false] {
        let server = Scripted::start(move |command, _| match command {
            "FEAT" => say("211-these:\r\n MLST type*;size*;unique*;\r\n211 end"),
            "MLSD" if marked => send("type=cdir;unique=A; .\r\ntype=dir;unique=A; again\r\n"),
            "MLSD" => send("type=dir; again\r\n"),
            _ => Act::Usual,
        })
        .await;
        let error = list(&server, "/x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        let listings = server.count("MLSD");
        assert!(
            listings <= if marked { 1 } else { 101 },
            "{listings} listings"
        );
    }
}

#[tokio::test]
async fn a_hostile_name_in_a_listing_is_neither_entered_nor_made() {
    let server = Scripted::start(|command, _| match command {
        "FEAT" => say("211-these:\r\n MLST type*;size*;\r\n211 end"),
        "MLSD" => send("type=dir; ../../etc\r\n"),
        _ => Act::Usual,
    })
    .await;
    let bench = Bench::with(ENTRY);
    let to = bench.local("tree");
    let fetched = bench
        .engine
        .fetch_directory(&url(&server.url("/x")), &to)
        .await;
    assert_eq!(fetched.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(server.count("CWD"), 1, "{:?}", server.commands());
}

#[tokio::test]
async fn names_that_are_no_utf8_fail_the_listing() {
    let server = Scripted::start(|command, _| match command {
        "LIST -a" => send(b"-rw-r--r-- 1 u g 1 Jan  5 10:30 caf\xe9\r\n"),
        _ => Act::Usual,
    })
    .await;
    let error = list(&server, "/x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn pasv_is_used_where_epsv_is_refused() {
    let server = with_file(|command, _| (command == "EPSV").then(|| say("500 what?"))).await;
    let bench = Bench::with(ENTRY);
    for _ in 0..3 {
        assert_eq!(bench.fetch(&server.url("/f")).await.unwrap(), b"here");
    }
    assert_eq!(server.count("EPSV"), 1, "it is not asked again");
    assert_eq!(server.count("PASV"), 3);
    let bench = Bench::with(&format!("{ENTRY}\npassive = 'epsv'"));
    assert!(bench.fetch(&server.url("/f")).await.is_err());
}

#[tokio::test]
async fn the_address_in_an_answer_to_pasv_is_not_gone_to_unless_it_is_trusted() {
    let lying = |address: &'static str| {
        with_file(move |command, _| match command {
            "EPSV" => Some(say("502 no")),
            "PASV" => Some(say(format!("227 there ({address},0,9)"))),
            _ => None,
        })
    };
    let trusting = format!("{ENTRY}\ntrust_pasv_address = true");
    for address in ["169,254,169,254", "0,0,0,0", "224,0,0,1"] {
        let server = lying(address).await;
        let error = read(&server, &trusting, "/f").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(
            error.to_string().contains("is not reached from here"),
            "{error}"
        );
        // By default it is this host that is asked, where nobody listens.
        let error = read(&server, ENTRY, "/f").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(server.count("RETR"), 0);
    }
    let denying = format!("{trusting}\ndeny_networks = ['10.0.0.0/8']");
    let server = lying("10,1,2,3").await;
    let error = read(&server, &denying, "/f").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn servers_at_refused_addresses_are_not_asked() {
    let server = with_file(|_, _| None).await;
    let denying = format!("{ENTRY}\nallow_private = false");
    for (config, from) in [
        (ENTRY, "ftp://169.254.169.254/f".to_owned()),
        (ENTRY, "ftp://[::ffff:169.254.169.254]/f".into()),
        (ENTRY, "ftp://0/f".into()),
        (&denying, server.url("/f")),
        (
            &denying,
            format!("ftp://localhost:{}/f", server.address.port()),
        ),
    ] {
        let error = Bench::with(config).fetch(&from).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{from}: {error}");
    }
    assert_eq!(server.commands(), [""; 0]);
}

#[tokio::test]
async fn a_file_is_whole_only_when_the_server_says_so() {
    for (end, kind) in [
        ("426 cut", ErrorKind::Unavailable),
        ("451 disk", ErrorKind::Unavailable),
        ("550 no", ErrorKind::Denied),
        ("421 bye", ErrorKind::Unavailable),
        ("?!", ErrorKind::Unavailable),
        // Silence.
        ("", ErrorKind::Unavailable),
    ] {
        let server = with_file(move |command, _| {
            let act = Act::Send("150 here".into(), b"here".to_vec(), end.into());
            (command == "RETR /f").then_some(act)
        })
        .await;
        let entry = if end.is_empty() { IMPATIENT } else { ENTRY };
        let error = read(&server, entry, "/f").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{end}: {error}");
    }
    // What it says may be true of its own side only.
    let server = with_file(|command, _| (command == "RETR /f").then(|| send("her"))).await;
    let error = read(&server, ENTRY, "/f").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // The engine knows the size besides.
    let error = Bench::with(ENTRY)
        .fetch(&server.url("/f"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn data_that_came_well_is_not_whole_if_the_control_connection_broke_meanwhile() {
    let server = with_file(|command, _| {
        let sent = Act::Send("150 here".into(), b"here".to_vec(), String::new());
        (command == "RETR /f").then(|| Act::Last(Box::new(sent)))
    })
    .await;
    let error = read(&server, ENTRY, "/f").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.is_retryable());

    let server = Scripted::start(|command, _| {
        let taken = Act::Take("150 go".into(), String::new());
        if command.starts_with("STOR ") {
            Act::Last(Box::new(taken))
        } else {
            Act::Usual
        }
    })
    .await;
    let at = url(&server.url("/f"));
    let storage = registry(ENTRY).unwrap().route(&at).unwrap();
    let written = storage.write(&at, &Source::bytes("here")).await;
    let error = written.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.is_retryable());
    assert_eq!((server.count("RNTO"), server.count("DELE")), (0, 1));
}

#[tokio::test]
async fn a_missing_file_is_found_missing_however_late_the_server_says_so() {
    for act in [
        say("550 nothing"),
        say("450 nothing"),
        Act::Refuse("150 here".into(), "550 nothing".into()),
    ] {
        let server = Scripted::start(move |command, _| match command {
            "RETR /f" => act.clone(),
            "SIZE /f" | "CWD /f" => say("550 no"),
            _ => Act::Usual,
        })
        .await;
        let error = read(&server, ENTRY, "/f").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_or_falls_silent_is_asked_again() {
    for act in [say("421 bye"), Act::Close, Act::Stall, say("garbage")] {
        for at in ["", "PASS anonymous@", "SIZE /f", "EPSV", "RETR /f"] {
            // A server that hangs up before a login has no room, and is given time.
            if matches!(&act, Act::Say(text) if text.starts_with("421")) && !at.contains('/') {
                continue;
            }
            let (act, failures) = (act.clone(), AtomicUsize::new(0));
            let server = with_file(move |command, _| {
                (command == at && failures.fetch_add(1, Ordering::Relaxed) == 0)
                    .then(|| act.clone())
            })
            .await;
            let fetched = Bench::with(IMPATIENT).fetch(&server.url("/f")).await;
            assert_eq!(fetched.unwrap(), b"here", "at {at:?}");
        }
    }
}

#[tokio::test]
async fn a_server_with_room_for_two_serves_many_files() {
    let server = Scripted::start(move |command, connection| match command {
        "" if connection >= 2 => say("421 too many connections"),
        "SIZE /f" => say("213 4"),
        "RETR /f" => send("here"),
        _ => Act::Usual,
    })
    .await;
    let bench = Bench::with(&format!("{ENTRY}\nlisting_connections = 1"));
    let (from, fetches) = (url(&server.url("/f")), 30);
    let fetched = (0..fetches).map(|i| {
        let (bench, from) = (&bench, &from);
        async move {
            bench
                .engine
                .fetch_file(from, &bench.local(&format!("f{i}")), false)
                .await
        }
    });
    for fetched in futures_util::future::join_all(fetched).await {
        fetched.unwrap();
    }
    assert_eq!(server.count("RETR"), fetches);
    assert_eq!(server.count("USER"), 2);
}

#[tokio::test]
async fn a_full_disk_is_told_whenever_the_server_notices() {
    for act in [
        say("452 full"),
        Act::Take("150 go".into(), "552 full".into()),
        Act::Refuse("150 go".into(), "552 full".into()),
    ] {
        let server = Scripted::start(move |command, _| {
            if command.starts_with("STOR ") {
                act.clone()
            } else {
                Act::Usual
            }
        })
        .await;
        for size in [10, 5_000_000] {
            let stored = Bench::with(ENTRY)
                .store(&vec![7; size], &server.url("/f"))
                .await;
            let error = stored.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Full, "{size}: {error}");
            assert!(!error.is_retryable());
        }
        let commands = server.commands();
        let temporary = commands
            .iter()
            .find_map(|c| c.strip_prefix("STOR "))
            .unwrap();
        assert!(
            commands.contains(&format!("DELE {temporary}")),
            "{commands:?}"
        );
        assert_eq!(server.count("RNTO"), 0);
    }
}

#[tokio::test]
async fn a_directory_that_many_want_is_made_once() {
    let server = with_file(|_, _| None).await;
    let at = url(&server.url("/a/b/c"));
    let storage = registry(ENTRY).unwrap().route(&at).unwrap();
    let made = (0..8).map(|_| storage.make_directory(&at));
    futures_util::future::try_join_all(made).await.unwrap();
    assert_eq!(server.count("MKD "), 3, "{:?}", server.commands());
}

#[tokio::test]
async fn a_directory_that_cannot_be_entered_is_written_to() {
    let server = Scripted::start(|command, _| match command.split(' ').next() {
        Some("FEAT") => say("211-these:\r\n MLST type*;\r\n211 end"),
        Some("CWD") if command != "CWD /" => say("550 no"),
        Some("MKD") => say("550 it is there"),
        Some("MLST") => say(format!("250-it\r\n type=dir; {}\r\n250 end", &command[5..])),
        Some("STOR") => Act::Take("150 go on".into(), "226 done".into()),
        Some("SIZE") => say("213 4"),
        Some("RNFR") => say("350 to what?"),
        Some("RNTO") => say("250 done"),
        _ => Act::Usual,
    })
    .await;
    let bench = Bench::with(ENTRY);
    bench.store(b"here", &server.url("/d/f")).await.unwrap();
    assert_eq!(server.count("MKD /d"), 1);
}

#[tokio::test]
async fn an_upload_that_arrived_short_is_not_given_its_name() {
    let server = Scripted::start(|command, _| match command.split(' ').next() {
        Some("STOR") => Act::Take("150 go".into(), "226 done".into()),
        Some("SIZE") => say("213 3"),
        _ => Act::Usual,
    })
    .await;
    let error = Bench::with(ENTRY)
        .store(b"here", &server.url("/f"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(server.count("RNTO"), 0);
}

#[tokio::test]
async fn a_server_that_renames_over_no_file_keeps_the_old_one_until_the_new_is_there() {
    let there = AtomicUsize::new(1);
    let server = Scripted::start(move |command, _| match command {
        "RNFR /f" => {
            there.store(0, Ordering::Relaxed);
            say("350 and?")
        }
        "RNTO /f" if there.load(Ordering::Relaxed) == 1 => say("553 file exists"),
        "SIZE /f" => say("213 4"),
        _ if command.starts_with("STOR ") => Act::Take("150 go".into(), "226 done".into()),
        _ if command.starts_with("SIZE ") => say("213 3"),
        _ => Act::Usual,
    })
    .await;
    Bench::with(ENTRY)
        .store(b"new", &server.url("/f"))
        .await
        .unwrap();
    let all = server.commands();
    let renames: Vec<_> = all
        .iter()
        .filter(|c| c.starts_with("RN") || c.starts_with("DELE"))
        .collect();
    assert_eq!(renames.len(), 7, "{all:?}");
    assert_eq!(renames[2], "RNFR /f");
    assert_eq!(renames[5], "RNTO /f");
    assert_eq!(
        renames[6].strip_prefix("DELE"),
        renames[3].strip_prefix("RNTO")
    );
}

/// What is on a server that renames over no file: names, and what is in them.
type Files = Arc<Mutex<BTreeMap<String, &'static str>>>;

/// The server, where the last renaming of a write meets `fault`, before it is done or after.
async fn renaming_over_nothing(fault: Act, done: bool) -> (Scripted, Files) {
    let files = Files::default();
    files.lock().unwrap().insert("/f".to_owned(), "old");
    let (there, from) = (files.clone(), Mutex::new(String::new()));
    let server = Scripted::start(move |command, connection| {
        let (name, path) = command.split_once(' ').unwrap_or((command, ""));
        let mut there = there.lock().unwrap();
        match name {
            "STOR" => {
                there.insert(path.to_owned(), "new");
                Act::Take("150 go".into(), "226 done".into())
            }
            "SIZE" if there.contains_key(path) => say("213 3"),
            "SIZE" => say("550 no"),
            "CWD" if path != "/" => say("550 no"),
            "DELE" if there.remove(path).is_none() => say("550 no"),
            "RNFR" if there.contains_key(path) => {
                path.clone_into(&mut from.lock().unwrap());
                say("350 and?")
            }
            "RNFR" => say("550 no"),
            "RNTO" if there.contains_key(path) => say("553 file exists"),
            "RNTO" => {
                let content = there[&*from.lock().unwrap()];
                let is_last = content == "new" && connection == 0;
                if !is_last || done {
                    let content = there.remove(&*from.lock().unwrap()).unwrap();
                    there.insert(path.to_owned(), content);
                }
                if is_last {
                    fault.clone()
                } else {
                    say("250 ok")
                }
            }
            _ => Act::Usual,
        }
    })
    .await;
    (server, files)
}

#[tokio::test]
async fn a_file_that_stepped_aside_comes_back_or_goes_when_the_renaming_breaks_off() {
    let stalls = Act::Stall;
    for (fault, done, expected) in [
        (Act::Close, false, "old"),
        (Act::Close, true, "new"),
        (say("550 no"), false, "old"),
        (stalls, false, "old"),
    ] {
        let is_dropped = matches!(fault, Act::Stall);
        let (server, files) = renaming_over_nothing(fault.clone(), done).await;
        let at = url(&server.url("/f"));
        let storage = registry(ENTRY).unwrap().route(&at).unwrap();
        let source = Source::bytes("new");
        let writing = tokio::spawn(async move { storage.write(&at, &source).await });
        if is_dropped {
            while server.count("RNTO /f") < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            writing.abort();
        } else {
            writing.await.unwrap().unwrap_err();
        }
        let expected = BTreeMap::from([("/f".to_owned(), expected)]);
        for _ in 0..200 {
            if *files.lock().unwrap() == expected {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(*files.lock().unwrap(), expected, "{fault:?} {done}");
    }
}

#[tokio::test]
async fn a_directory_with_too_many_names_is_given_up() {
    let server = Scripted::start(|command, _| match command {
        "FEAT" => say("211-these:\r\n MLST type*;\r\n211 end"),
        "MLSD" => send("type=file; a\n".repeat(1_000_001)),
        _ => Act::Usual,
    })
    .await;
    let error = list(&server, "/x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(!error.is_retryable(), "{error}");
    assert!(error.to_string().contains("1000000 entries"), "{error}");
}

#[tokio::test]
async fn no_url_smuggles_a_command() {
    let server = with_file(|_, _| None).await;
    for path in ["/f%0d%0aDELE%20/g", "/%0aDELE", "/f%00"] {
        let error = Bench::with(ENTRY)
            .fetch(&server.url(path))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let login = server.url("/f").replace("://", "://me%0d%0aDELE:x@");
    let error = Bench::with(ENTRY).fetch(&login).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert_eq!(server.commands(), [""; 0]);
}

#[tokio::test]
async fn a_server_that_repeats_the_password_does_not_give_it_away() {
    let server = with_file(|command, _| {
        command
            .strip_prefix("PASS ")
            .map(|password| say(format!("530 not {password}!")))
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "hunter2").unwrap();
    let entry = format!(
        "{ENTRY}\nusername = 'me'\npassword_file = '{}'",
        file.display()
    );
    let error = Bench::with(&entry)
        .fetch(&server.url("/f"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert!(
        !format!("{error} {error:?}").contains("hunter2"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_reading_resumes_where_the_line_broke() {
    let broken = AtomicUsize::new(0);
    let rest = std::sync::Mutex::new(0);
    let server = with_file(move |command, _| {
        if let Some(offset) = command.strip_prefix("REST ") {
            *rest.lock().unwrap() = offset.parse().unwrap();
            return Some(say("350 and?"));
        }
        Some(match command {
            "SIZE /f" => say("213 8"),
            "RETR /f" if broken.fetch_add(1, Ordering::Relaxed) == 0 => {
                Act::Send("150 here".into(), b"0123".to_vec(), "426 cut".into())
            }
            "RETR /f" => send(&b"01234567"[*rest.lock().unwrap()..]),
            _ => return None,
        })
    })
    .await;
    assert_eq!(
        Bench::with(ENTRY).fetch(&server.url("/f")).await.unwrap(),
        b"01234567"
    );
    assert_eq!(server.count("REST 4"), 1, "{:?}", server.commands());
}

#[tokio::test]
async fn an_offset_of_an_interrupted_reading_does_not_reach_the_next_file() {
    use futures_util::StreamExt as _;
    let offset = AtomicUsize::new(0);
    let server = with_file(move |command, _| {
        if let Some(told) = command.strip_prefix("REST ") {
            offset.store(told.parse().unwrap(), Ordering::Relaxed);
            return Some(say("350 and?"));
        }
        Some(match command {
            "SIZE /f" => say("213 8"),
            "RETR /f" => {
                let rest = b"01234567"[offset.load(Ordering::Relaxed)..].to_vec();
                Act::Send("150 here".into(), rest, "426 you left".into())
            }
            "RETR /g" => send(&b"01234567"[offset.load(Ordering::Relaxed)..]),
            _ => return None,
        })
    })
    .await;
    let at = url(&server.url("/f"));
    let storage = registry(ENTRY).unwrap().route(&at).unwrap();
    let part = storage.read(&at, (2..4).into(), None).await.unwrap().bytes;
    let part: Vec<_> = part.collect().await;
    assert_eq!(part[0].as_ref().unwrap(), &b"23"[..]);
    let at = url(&server.url("/g"));
    let range = tesk_core::storage::ByteRange::FULL;
    let whole: Vec<_> = storage
        .read(&at, range, None)
        .await
        .unwrap()
        .bytes
        .collect()
        .await;
    assert_eq!(whole[0].as_ref().unwrap(), &b"01234567"[..]);
    assert_eq!(server.count("USER"), 1);
}

#[tokio::test]
async fn a_range_is_read_from_a_server_with_room_for_one_that_does_not_say_when_it_stops() {
    use futures_util::TryStreamExt as _;
    let open = Arc::<AtomicUsize>::default();
    let now = open.clone();
    let server = Scripted::counting(open, move |command, _| match command {
        "" if now.load(Ordering::Relaxed) > 1 => say("421 too many connections"),
        "SIZE /f" => say("213 8"),
        "MDTM /f" => say("213 20240105103000"),
        "RETR /f" => Act::Send("150 here".into(), b"01234567".to_vec(), String::new()),
        _ => Act::Usual,
    })
    .await;
    let at = url(&server.url("/f"));
    let storage = registry(ENTRY).unwrap().route(&at).unwrap();
    let Some(EntryKind::File(info)) = storage.stat(&at).await.unwrap().map(|found| found.kind)
    else {
        panic!("is a file");
    };
    let version = info.version.as_ref();
    let part = storage.read(&at, (0..4).into(), version).await.unwrap();
    let part: Vec<_> = part.bytes.try_collect().await.unwrap();
    assert_eq!(part.concat(), b"0123");
}

#[tokio::test]
async fn a_file_that_changed_is_not_read_as_the_old_one() {
    let time = AtomicUsize::new(0);
    let server = with_file(move |command, _| {
        (command == "MDTM /f").then(|| {
            let second = time.fetch_add(1, Ordering::Relaxed);
            say(format!("213 202401051030{second:02}"))
        })
    })
    .await;
    let error = Bench::with(ENTRY)
        .fetch(&server.url("/f"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn a_file_that_is_replaced_while_a_part_of_it_is_read_gives_no_version_its_last_bytes() {
    use futures_util::StreamExt as _;
    for (range, all) in [
        (ByteRange::FULL, 4),
        ((0..4).into(), 4),
        ((0..2).into(), 2),
        ((1..3).into(), 2),
        (ByteRange::from(1), 3),
    ] {
        // Between the look and the reading.
        let (replaced, offset) = (AtomicBool::new(false), AtomicUsize::new(0));
        let server = with_file(move |command, _| {
            if let Some(told) = command.strip_prefix("REST ") {
                offset.store(told.parse().unwrap(), Ordering::Relaxed);
                return Some(say("350 and?"));
            }
            Some(match command {
                "MDTM /f" if replaced.load(Ordering::Relaxed) => say("213 20240105103001"),
                "RETR /f" => {
                    replaced.store(true, Ordering::Relaxed);
                    send(&b"HERE"[offset.load(Ordering::Relaxed)..])
                }
                _ => return None,
            })
        })
        .await;
        let at = url(&server.url("/f"));
        let storage = registry(ENTRY).unwrap().route(&at).unwrap();
        let version = Version("20240105103000-4".into());
        let read = storage.read(&at, range, Some(&version)).await;
        let (mut error, mut given) = (read.as_ref().err().map(ToString::to_string), 0);
        if let Ok(mut opened) = read {
            while let Some(chunk) = opened.bytes.next().await {
                match chunk {
                    Ok(chunk) => given += chunk.len(),
                    Err(why) => error = Some(why.to_string()),
                }
            }
        }
        let error = error.unwrap_or_default();
        assert!(error.contains("another version"), "{range:?}: {error}");
        assert!(
            given < all,
            "{range:?}: who knows the size asks for no more"
        );
    }
}
