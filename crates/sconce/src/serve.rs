use crate::Outcome;
use sconce_server::{Addresses, Server, ServerConfig};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use tokio::signal::unix::{Signal, SignalKind, signal};
use toml::{Table, Value};

/// Flags go over `SCONCE__*` environment variables (`SCONCE__LIMITS__MAX_STREAMS=100`), and those over the file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of models, NAME/VERSION/ each
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Data folder: the registry of models, made if it is not there
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Built-in models to serve beside [possible values: identity, add_sub]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    builtin: Option<Vec<String>>,
    /// Address of the inference listener [default: 0.0.0.0:8001]
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<SocketAddr>,
    /// Address of the control listener, loopback only [default: 127.0.0.1:8002]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Address of health and metrics over HTTP [default: 0.0.0.0:8000]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Where models run that do not say it themselves: cpu or cuda:N [default: cpu]
    #[arg(long)]
    device: Option<String>,
    /// OTLP collector that traces of requests go to, http://HOST:PORT
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// off, error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// auto, json or text [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

/// The exit code of a refused configuration, the same as for a refused command line.
const BAD_CONFIGURATION: u8 = 2;

/// How long freed memory is kept, as the allocator reads it from the environment when the process begins.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// Begins anew, in the same process, with an allocator that gives memory back to the system as soon as it is freed: that of a
/// model which was unloaded would else stay. Where that cannot be, it is served all the same.
fn restart_giving_memory_back() {
    if std::env::var_os(PURGE_DELAY).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    // It returns only when it failed.
    let _ = Command::new(program).args(std::env::args_os().skip(1)).env(PURGE_DELAY, "0").exec();
}

pub(crate) fn run(args: Args) -> Outcome {
    restart_giving_memory_back();
    let text = match &args.config {
        None => String::new(),
        Some(file) => {
            std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?
        }
    };
    let config = match ServerConfig::read(&text, std::env::vars(), args.flags()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("sconce: {error}");
            return Ok(ExitCode::from(BAD_CONFIGURATION));
        }
    };
    // Both were checked with the configuration.
    let level = sconce_server::logs::parse_level(&config.log.level)?;
    sconce_server::logs::init(config.log.format.parse()?, level);
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let server = tokio::select! {
            started = Server::start(config) => started?,
            name = signals.next() => {
                tracing::info!(signal = name, "stopped while loading");
                return Ok(ExitCode::SUCCESS);
            }
        };
        let Addresses { grpc, admin, http } = server.addresses();
        match server.readiness() {
            Ok(()) => tracing::info!(%grpc, %admin, %http, "ready"),
            Err(reason) => tracing::error!(%grpc, %admin, %http, reason, "serving, but not ready"),
        }
        let name = signals.next().await;
        tracing::info!(signal = name, "draining");
        tokio::select! {
            () = server.shutdown() => tracing::info!("stopped"),
            name = signals.next() => {
                tracing::warn!(signal = name, "a second signal: stopping at once");
                return Ok(ExitCode::FAILURE);
            }
        }
        Ok(ExitCode::SUCCESS)
    });
    // After a clean shutdown nothing runs any more; after a second signal nothing is waited for.
    runtime.shutdown_background();
    outcome
}

/// The server's runtime: it waits on sockets; models compute on threads of their own.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("sconce-io").build()
}

/// The signals that stop a server.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

impl Args {
    /// The flags in the shape of the configuration file.
    fn flags(&self) -> Table {
        let text = |value: &Option<String>| value.clone().map(Value::String);
        let address = |value: &Option<SocketAddr>| value.map(|address| Value::String(address.to_string()));
        let mut table = Table::new();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                table.insert(key.to_owned(), value);
            }
        };
        set("models", self.models.as_ref().map(|dir| Value::String(dir.display().to_string())));
        set("data", self.data.as_ref().map(|dir| Value::String(dir.display().to_string())));
        set("builtin", self.builtin.clone().map(Value::from));
        set("grpc", address(&self.grpc));
        set("admin", address(&self.admin));
        set("http", address(&self.http));
        set("device", text(&self.device));
        let mut log = Table::new();
        log.extend(text(&self.log_level).map(|level| ("level".to_owned(), level)));
        log.extend(text(&self.log_format).map(|format| ("format".to_owned(), format)));
        let traces =
            text(&self.otlp_endpoint).map(|endpoint| Table::from_iter([("endpoint".to_owned(), endpoint)]));
        set("traces", traces.map(Value::Table));
        set("log", (!log.is_empty()).then_some(Value::Table(log)));
        table
    }
}
