use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;

use super::pod::{Container, Pod, until};

/// A server that takes writes and never says that they are done. What it is asked to remove it
/// removes a little later, and only for who waits for it.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let server = Self {
            address: listener.local_addr().unwrap().to_string(),
            asked: asked.clone(),
        };
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (connection, asked) = (connection.unwrap(), asked.clone());
                std::thread::spawn(move || serve(&connection, &asked));
            }
        });
        server
    }

    /// The paths that `method` has come for; some are removed twice.
    fn paths(&self, method: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let paths = asked.iter().filter_map(|asked| asked.strip_prefix(method));
        let mut paths: Vec<_> = paths.map(|path| path.trim().to_owned()).collect();
        paths.dedup();
        paths
    }
}

fn serve(mut connection: &TcpStream, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(connection);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            (reader.read_until(b'\n', &mut head).ok()? > 0).then_some(())?;
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let target = head.split(' ').nth(1)?.to_owned();
        let method = head.split(' ').next()?.to_ascii_uppercase();
        let length = head.split("content-length: ").nth(1);
        let length = length.map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
        let note = || asked.lock().unwrap().push(format!("{method} {target}"));
        let (status, body) = match method.as_str() {
            "PUT" => {
                note();
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                return None;
            }
            "DELETE" => {
                connection
                    .set_read_timeout(Some(Duration::from_millis(300)))
                    .ok()?;
                let gone = reader.read(&mut [0]);
                gone.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
                    .then(note)?;
                connection.set_read_timeout(None).ok()?;
                ("204 No Content", String::new())
            }
            "PROPFIND" => ("207 Multi-Status", directory(&target)),
            _ => ("200 OK", UPLOAD.to_owned()),
        };
        let mut sent = Vec::new();
        reader.by_ref().take(length).read_to_end(&mut sent).ok()?;
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
        connection.write_all(answer.as_bytes()).ok()?;
    }
}

const WEBDAV: &str = "[[storage]]\ntype = \"http\"\nprefix = \"http://SERVER/\"\nwebdav = true\n";

const UPLOAD: &str = "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>x</Key>\
                      <UploadId>up1</UploadId></InitiateMultipartUploadResult>";

fn directory(path: &str) -> String {
    format!(
        "<multistatus xmlns=\"DAV:\"><response><href>{path}</href><propstat><prop><resourcetype>\
         <collection/></resourcetype></prop><status>HTTP/1.1 200 OK</status></propstat></response>\
         </multistatus>"
    )
}

/// What a server was asked to write and to remove by a delivery to `url` that is told to end.
fn stopped(storage: &str, url: &str) -> [Vec<String>; 2] {
    let (server, mut pod) = (Server::start(), Pod::new());
    let at_server = |text: &str| text.replace("SERVER", &server.address);
    pod.serve(&at_server(storage));
    pod.shell("head -c 20000000 /dev/zero > out");
    pod.output("out", &at_server(url));
    assert!(pod.prepare().status.success());
    let [outputs, inputs] = ["outputs", "inputs"].map(|command| {
        let mut filer = pod.filer(command);
        filer.env("KEY", "key");
        Container::start(filer)
    });
    let others = [inputs, Container::start(pod.exec(0))];
    assert_eq!(others.map(|other| other.end().code()), [0, 0]);
    until(|| !server.paths("PUT").is_empty());
    outputs.signal(Signal::TERM);
    let end = outputs.end();
    assert_eq!(end.code(), 143, "{}", end.stderr());
    ["PUT", "DELETE"].map(|method| server.paths(method))
}

#[test]
fn a_file_that_was_being_delivered_to_a_webdav_server_is_removed() {
    let [written, removed] = stopped(WEBDAV, "http://SERVER/d/out");
    assert!(written[0].starts_with("/d/."), "{written:?}");
    assert_eq!(written, removed);
}

#[test]
fn a_copy_that_is_stopped_removes_what_it_had_begun() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let (server, pod) = (Server::start(), Pod::new());
        pod.serve(&WEBDAV.replace("SERVER", &server.address));
        std::fs::write(pod.at("file"), vec![0; 20_000_000]).unwrap();
        let mut copy = Command::new(env!("CARGO_BIN_EXE_filer"));
        copy.arg("copy").arg(pod.at("file"));
        copy.arg(format!("http://{}/d/file", server.address));
        copy.arg("--config").arg(pod.at("tesk.toml"));
        let copy = Container::start(copy);
        until(|| !server.paths("PUT").is_empty());
        copy.signal(signal);
        let end = copy.end();
        assert_eq!(end.code(), code, "{}", end.stderr());
        assert_eq!(server.paths("DELETE"), server.paths("PUT"));
    }
}

#[test]
fn an_upload_in_parts_that_was_under_way_is_thrown_away() {
    let storage = "[[storage]]\ntype = \"s3\"\nprefix = \"s3://bucket/\"\nendpoint = \"http://SERVER\"\n\
                   access_key_id_env = \"KEY\"\nsecret_access_key_env = \"KEY\"\n";
    let [_, removed] = stopped(storage, "s3://bucket/out");
    assert_eq!(removed.len(), 1, "{removed:?}");
    assert!(removed[0].contains("uploadid=up1"), "{removed:?}");
}
