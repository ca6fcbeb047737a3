//! Credentials, configuration, shell completions.

use std::fmt::Write;
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, CommandFactory, Subcommand};

use super::storage::probe;
use super::{Cli, Failure, Outcome, configuration, engine, log_filter, print, say, start_log};
use crate::auth::{UsersFile, basic, users};

/// `tesk auth`
#[derive(Debug, Subcommand)]
pub(super) enum Auth {
    /// Make a token, and the entry that lets its owner in
    ///
    /// The token goes to standard error, to be given to the user; the entry goes to standard
    /// output, to be added to the users file: tesk auth token ada >> users.toml
    Token {
        /// The user's name
        #[arg(value_name = "USER")]
        user: String,
    },
    /// Hash a password that is read from standard input, and print the entry
    Hash {
        /// The user's name
        #[arg(value_name = "USER")]
        user: String,
    },
}

impl Auth {
    pub(super) fn execute(self) -> Outcome {
        match self {
            Self::Token { user } => {
                users::check_name(&user)?;
                let token = hex::encode(rand::random::<[u8; 32]>());
                eprintln!("token: {token}");
                let digest = hex::encode(users::token_digest(&token));
                print(&entry(&user, &format!("tokens = [{digest:?}]")))
            }
            Self::Hash { user } => {
                users::check_name(&user)?;
                if std::io::stdin().is_terminal() {
                    eprintln!("password (it will be shown):");
                }
                let mut password = String::new();
                std::io::stdin()
                    .lock()
                    .read_line(&mut password)
                    .map_err(|error| format!("cannot read the password: {error}"))?;
                let password = password.trim_end_matches(['\n', '\r']);
                if password.is_empty() {
                    return Err(Failure::Error("the password is empty".into()));
                }
                let hash = basic::hash(password)?;
                print(&entry(&user, &format!("password = {hash:?}")))
            }
        }
    }
}

fn entry(user: &str, credential: &str) -> String {
    // JSON's strings are TOML's too.
    let name = serde_json::Value::from(user);
    format!("\n[[user]]\nname = {name}\n{credential}\n")
}

/// `tesk config`
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Validate it, probe its storages, and show what is enabled
    ///
    /// Storages are probed as by `tesk storage check`, which changes nothing. The exit status is
    /// 1 if one cannot be used.
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE", env = "TESK_CONFIG")]
        config: Option<PathBuf>,
        /// Probe no storage: only what the file says is checked
        #[arg(long)]
        offline: bool,
    },
}

impl ConfigCommand {
    pub(super) async fn execute(self) -> Outcome {
        let Self::Check {
            config: file,
            offline,
        } = self;
        engine::install_crypto();
        let config = configuration(file.as_deref())?;
        config.refuse_open_to_others()?;
        engine::refuse_own_files(&config)?;
        log_filter("server.log", &config.server.log)?;
        let registry = engine::registry(&config.storage)?;
        let users = match &config.auth.users {
            Some(path) => {
                UsersFile::open(path)?;
                path.display().to_string()
            }
            None => "none: open to everybody who can reach it".to_owned(),
        };
        let mut text = format!(
            "listen       {}\ndata         {}\nusers        {users}\n",
            config.server.listen,
            config.server.data.display(),
        );
        for (prefix, capabilities) in registry.prefixes() {
            let can: Vec<_> = [
                ("read", true),
                ("write", capabilities.write),
                ("list", capabilities.list),
            ]
            .into_iter()
            .filter_map(|(name, can)| can.then_some(name))
            .collect();
            let _ = writeln!(text, "storage      {prefix} ({})", can.join(", "));
        }
        say(&(text + "the configuration is valid\n"))?;
        if offline {
            return Ok(());
        }
        probe::report(probe::prefixes(
            &Arc::new(registry),
            probe::Options::default(),
        ))
        .await
    }
}

/// `tesk purge`
#[derive(Debug, Args)]
pub(super) struct Purge {
    /// The configuration file; its [kubernetes] says which cluster, namespace and instance
    #[arg(long, value_name = "FILE", env = "TESK_CONFIG")]
    config: Option<PathBuf>,
    /// Needed, as nothing of it comes back
    #[arg(long)]
    yes: bool,
}

impl Purge {
    pub(super) async fn execute(self) -> Outcome {
        let config = configuration(self.config.as_deref())?;
        if !self.yes {
            let instance = &config.kubernetes.instance;
            let text = format!(
                "this removes all tasks of the instance {instance} and ends those that run; say --yes"
            );
            return Err(Failure::Error(text));
        }
        start_log("warn")?;
        engine::install_crypto();
        tesk_core::kubernetes::purge(&config.kubernetes).await?;
        print("removed\n")
    }
}

/// `tesk completions`
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn execute(self) -> Outcome {
        // To standard output itself it would panic when the reader has gone away.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "tesk", &mut script);
        print(&String::from_utf8_lossy(&script))
    }
}
