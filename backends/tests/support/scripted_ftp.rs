//! An FTP server that says whatever a test wants it to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What happens after a command.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// These lines are said, as they are.
    Say(String),
    /// The data connection is used: said before, sent on it, said after. Nothing is said after
    /// when that is empty.
    Send(String, Vec<u8>, String),
    /// The data connection is read to its end: said before, said after.
    Take(String, String),
    /// The same without reading: it is closed at once.
    Refuse(String, String),
    /// This, and then the connection is closed.
    Last(Box<Self>),
    /// Nothing is ever said again.
    Stall,
    /// The connection is closed.
    Close,
    /// What a plain server does.
    Usual,
}

/// `150`, the content, `226`.
pub(crate) fn send(content: impl AsRef<[u8]>) -> Act {
    let done = "226 done".to_owned();
    Act::Send("150 here".into(), content.as_ref().to_vec(), done)
}

pub(crate) fn say(text: impl Into<String>) -> Act {
    Act::Say(text.into())
}

type Script = Box<dyn Fn(&str, usize) -> Act + Send + Sync>;

/// A running server. It stops with the runtime it was started on.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    commands: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// `script` is asked about every command, and about the greeting as `""`; it is told the
    /// number of the connection too, from 0.
    pub(crate) async fn start(script: impl Fn(&str, usize) -> Act + Send + Sync + 'static) -> Self {
        Self::counting(Arc::default(), script).await
    }

    /// The same; `open` is how many connections there are now.
    pub(crate) async fn counting(
        open: Arc<AtomicUsize>,
        script: impl Fn(&str, usize) -> Act + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let commands = Arc::<Mutex<Vec<String>>>::default();
        let (said, script): (_, Arc<Script>) = (commands.clone(), Arc::new(Box::new(script)));
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((control, _)) = listener.accept().await else {
                    break;
                };
                let (script, said, open) = (script.clone(), said.clone(), open.clone());
                open.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let _ = serve(control, number, script, said).await;
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, commands }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("ftp://{}{path}", self.address)
    }

    /// Every command of all connections.
    pub(crate) fn commands(&self) -> Vec<String> {
        self.commands.lock().unwrap().clone()
    }

    /// How often a command was given that begins like this.
    pub(crate) fn count(&self, start: &str) -> usize {
        let commands = self.commands();
        commands.iter().filter(|c| c.starts_with(start)).count()
    }
}

async fn serve(
    control: TcpStream,
    number: usize,
    script: Arc<Script>,
    said: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    control.set_nodelay(true)?;
    let mut control = BufReader::new(control);
    let mut passive: Option<TcpListener> = None;
    let mut command = String::new();
    loop {
        let act = match script(&command, number) {
            Act::Usual => {
                if matches!(command.as_str(), "EPSV" | "PASV") {
                    let listener = TcpListener::bind("127.0.0.1:0").await?;
                    let port = listener.local_addr()?.port();
                    passive = Some(listener);
                    say(if command == "EPSV" {
                        format!("229 here (|||{port}|)")
                    } else {
                        format!("227 here (127,0,0,1,{},{})", port >> 8, port & 255)
                    })
                } else {
                    usual(&command)
                }
            }
            act => act,
        };
        let (act, is_last) = match act {
            Act::Last(act) => (*act, true),
            act => (act, false),
        };
        match act {
            Act::Say(text) => write(&mut control, &text).await?,
            Act::Send(before, content, after) => {
                write(&mut control, &before).await?;
                let (mut data, _) = passive.take().unwrap().accept().await?;
                data.write_all(&content).await?;
                drop(data);
                write(&mut control, &after).await?;
            }
            Act::Take(before, after) => {
                write(&mut control, &before).await?;
                let (mut data, _) = passive.take().unwrap().accept().await?;
                data.read_to_end(&mut Vec::new()).await?;
                write(&mut control, &after).await?;
            }
            Act::Refuse(before, after) => {
                write(&mut control, &before).await?;
                drop(passive.take().unwrap().accept().await?);
                write(&mut control, &after).await?;
            }
            Act::Stall => std::future::pending().await,
            Act::Close | Act::Usual | Act::Last(_) => return Ok(()),
        }
        if is_last {
            return Ok(());
        }
        command.clear();
        if control.read_line(&mut command).await? == 0 {
            return Ok(());
        }
        command.truncate(command.trim_end_matches(['\r', '\n']).len());
        said.lock().unwrap().push(command.clone());
    }
}

async fn write(control: &mut BufReader<TcpStream>, text: &str) -> std::io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let text = format!("{text}\r\n");
    control.get_mut().write_all(text.as_bytes()).await
}

fn usual(command: &str) -> Act {
    say(match command.split(' ').next().unwrap_or_default() {
        "" => "220 hello",
        "USER" => "331 and?",
        "PASS" => "230 welcome",
        "TYPE" | "NOOP" | "OPTS" => "200 ok",
        "CWD" | "RNTO" | "DELE" | "RMD" => "250 ok",
        "RNFR" | "REST" => "350 and?",
        "MKD" => "257 made",
        _ => "502 what?",
    })
}
