//! One command line being carried out: its options settled, its client, its output.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;

use super::Personality;
use super::command::Found;
use super::console;
use super::console::Console;
use super::console::ErrorStream;
use super::environment;
use super::environment::Variables;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Values;
use super::help;
use super::log;
use super::print;
use super::print::Format;
use super::print::Report;
use crate::client::CallError;
use crate::client::Client;
use crate::client::Config;
use crate::client::Deadline;
use crate::client::GRPC_PROTOCOLS;
use crate::client::Keepalive;
use crate::client::endpoint::Endpoint;
use crate::common::tls::ClientSide;
use crate::common::tls::Settings;

/// Options that come with later releases, refused rather than ignored.
const UNSUPPORTED: [&str; 3] = ["discovery-srv", "user", "password"];

/// What a command works with.
pub struct Session<'a> {
    found: Found,
    pub values: Values,
    pub args: Vec<Bytes>,
    pub console: &'a mut Console,
    variables: Variables,
    personality: Personality,
    format: Format,
    runtime: Runtime,
}

impl Session<'_> {
    pub fn new(
        found: Found,
        values: Values,
        args: Vec<Bytes>,
        variables: Variables,
        personality: Personality,
        console: &mut Console,
    ) -> Result<Session<'_>, CtlError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Session { found, values, args, console, variables, personality, format: Format::Simple, runtime })
    }

    pub fn personality(&self) -> Personality {
        self.personality
    }

    pub fn program(&self) -> &'static str {
        self.personality.program()
    }

    /// Everything typed behind the command's name, flags and `--` included.
    pub fn raw_args(&self) -> &[Bytes] {
        &self.found.args
    }

    /// A variable that this command reads itself, so that it is no stray one. An empty one is none.
    pub fn take_variable(&mut self, name: &str) -> Option<String> {
        let at = self.variables.iter().position(|(known, text)| known == name && !text.is_empty())?;
        Some(self.variables.remove(at).1)
    }

    /// Settles options after the arguments were found good: environment, what we cannot do, the format (ctl.md 1.1).
    pub fn settle(&mut self) -> Result<(), CtlError> {
        let flags: Vec<&'static Flag> = self.found.inherited_flags();
        let told = environment::apply(&mut self.values, &flags, &self.variables, self.personality)?;
        self.console.tell(&told);
        if self.values.bool("debug") {
            self.console.tell(&help::debug_lines(&self.values, &flags));
        }
        self.refuse_unsupported()?;
        let Some(format) = Format::parse(self.values.text("write-out")) else {
            return Err(CtlError::bad_feature("unsupported output format"));
        };
        self.format = format;
        Ok(())
    }

    fn refuse_unsupported(&self) -> Result<(), CtlError> {
        for name in ["cert", "key", "cacert"] {
            let given = self.values.entries().iter().any(|entry| entry.flag.name == name && entry.changed);
            if given && self.values.text(name).is_empty() {
                return Err(CtlError::bad_arguments(format!("empty string is passed to --{name} option")));
            }
        }
        let refuse = |what: &str| {
            Err(CtlError::bad_arguments(format!("{what} is not supported by this release of quorate yet")))
        };
        if let Some(name) = UNSUPPORTED.iter().find(|name| !self.values.text(name).is_empty()) {
            return refuse(&format!("--{name}"));
        }
        Ok(())
    }

    /// How to speak TLS, if any option asks for it. Files are read here (ctl.md 2.6).
    fn tls(&self) -> Result<Option<Arc<ClientSide>>, CtlError> {
        let text = |name: &str| self.values.text(name).to_owned();
        let settings = Settings {
            cert_file: text("cert"),
            key_file: text("key"),
            trusted_ca_file: text("cacert"),
            insecure_skip_verify: self.values.bool("insecure-skip-tls-verify"),
            ..Settings::default()
        };
        if settings == Settings::default() && self.values.bool("insecure-transport") {
            return Ok(None);
        }
        ClientSide::new(&settings, GRPC_PROTOCOLS).map(|side| Some(Arc::new(side))).map_err(CtlError::bad_arguments)
    }

    /// `--endpoints` as typed; call `settle` before.
    pub fn endpoints(&self) -> Vec<String> {
        self.values.list("endpoints").to_vec()
    }

    /// Settles and makes the client that most commands need: all endpoints, blanks around them removed.
    pub fn connect(&mut self) -> Result<Client, CtlError> {
        self.settle()?;
        let endpoints = self.endpoints().iter().map(|endpoint| endpoint.trim().to_owned()).collect();
        self.client(endpoints, "etcd-client")
    }

    /// A client for these endpoints; its log lines carry the name `logger`.
    pub fn client(&self, endpoints: Vec<String>, logger: &'static str) -> Result<Client, CtlError> {
        let _inside = self.runtime.enter();
        let mut config = Config::new(endpoints);
        config.tls = self.tls()?;
        let nanos = |name: &str| Duration::from_nanos(u64::try_from(self.values.duration(name)).unwrap_or(0));
        config.keepalive = Keepalive { time: nanos("keepalive-time"), timeout: nanos("keepalive-timeout") };
        let limit = |name: &str| usize::try_from(self.values.int(name)).ok().filter(|bytes| *bytes > 0);
        config.send_bytes_max = limit("max-request-bytes").unwrap_or(config.send_bytes_max);
        config.receive_bytes_max = limit("max-recv-bytes").unwrap_or(config.receive_bytes_max);
        config.token = Some(self.values.text("auth-jwt-token").to_owned()).filter(|token| !token.is_empty());
        if self.personality == Personality::Etcdctl && self.warns() {
            let target = config.endpoints.first().map(|first| Endpoint::parse(first).authority()).unwrap_or_default();
            let err: ErrorStream = self.console.error_stream();
            config.observer = Some(Arc::new(move |failed| {
                console::tell(&err, &log::failed_attempt(logger, &target, failed));
            }));
        }
        Ok(Client::open(config)?)
    }

    /// Whether the original would warn.
    pub fn warns(&self) -> bool {
        log::shows_warnings(self.log_level()).unwrap_or(true)
    }

    /// Whether the original would tell what it does.
    pub fn informs(&self) -> bool {
        log::shows_news(self.log_level())
    }

    fn log_level(&self) -> Option<&str> {
        let level = self.variables.iter().find(|(name, _)| name == "ETCD_CLIENT_DEBUG");
        level.map(|(_, level)| level.as_str())
    }

    /// `--command-timeout` from now. One that is not positive has passed already.
    pub fn deadline(&self) -> Deadline {
        let nanos = u64::try_from(self.values.duration("command-timeout")).unwrap_or(0);
        Deadline::after(Duration::from_nanos(nanos))
    }

    /// Runs calls to their end.
    pub fn wait<T>(&self, calls: impl Future<Output = T>) -> T {
        self.runtime.block_on(calls)
    }

    /// A failed call as this personality tells it.
    pub fn told(&self, error: &CallError) -> String {
        match (self.personality, error) {
            // Users of the original hear of a refused connection only from the log line (ctl.md 10, 7).
            (Personality::Native, CallError::Deadline { last: Some(last) }) => {
                format!("{error} (last connection: {last})")
            }
            _ => error.to_string(),
        }
    }

    /// Waits for one call and takes its failure for the command's.
    pub fn call<T>(&self, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CtlError> {
        self.wait(call).map_err(|error| CtlError::failed(self.told(&error)))
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Prints a result; fails when the format does not know it, although the work is done (ctl.md 11, trap 1).
    pub fn report(&mut self, report: &Report<'_>) -> Result<(), CtlError> {
        let mut err = Vec::new();
        let hex = self.values.bool("hex");
        let known = print::print(report, self.format, hex, &mut self.console.out, &mut err)?;
        if !err.is_empty() {
            self.console.flush()?;
            self.console.tell(&String::from_utf8_lossy(&err));
        }
        if known {
            Ok(())
        } else {
            Err(CtlError::bad_feature(format!("{} not supported as output format", self.format.name())))
        }
    }
}
