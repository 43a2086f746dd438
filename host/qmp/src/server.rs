//! The server: a thread that runs all sessions, and the handles to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, watch};

use crate::commands::{Call, Handler, Outcome};
use crate::request::{Request, unknown_command};
use crate::session::QmpCapabilities;
use crate::worker::Worker;
use crate::{CommandError, Commands, Error, ErrorClass, Events, qmp_types, schema};

/// How long the end of the server waits for commands that run and for clients that do not read.
const GRACE: Duration = Duration::from_secs(10);

qmp_types! {
    /// A version number in three parts.
    pub struct VersionTriple {
        /// Last part.
        micro: u32,
        /// Middle part.
        minor: u32,
        /// First part.
        major: u32,
    }

    /// What the greeting and `query-version` tell.
    pub struct VersionInfo {
        /// The version; under this name since the protocol's beginning.
        qemu: VersionTriple,
        /// A vendor's suffix.
        package: String,
    }

    /// A command's name.
    pub struct CommandInfo {
        /// The name.
        name: String,
    }
}

impl VersionInfo {
    /// Version `major.minor.micro` with a vendor's suffix, which may be empty.
    pub fn new(major: u32, minor: u32, micro: u32, package: &str) -> Self {
        Self { qemu: VersionTriple { micro, minor, major }, package: package.into() }
    }

    pub(crate) fn to_json(&self) -> Value {
        let VersionTriple { micro, minor, major } = self.qemu;
        json!({"qemu": {"micro": micro, "minor": minor, "major": major}, "package": self.package})
    }
}

struct Inner {
    commands: Commands,
    version: VersionInfo,
    events: Events,
    runtime: Handle,
    worker: Worker,
    oob_worker: Worker,
    preconfig: AtomicBool,
    sessions: AtomicU64,
    stop: watch::Sender<bool>,
    /// Held by everything that the end of the server waits for. Taken away when it stops.
    alive: Mutex<Option<mpsc::Sender<()>>>,
}

/// A way to reach the server from any thread. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle(Arc<Inner>);

/// A running server. Dropping it shuts it down and waits for its end.
pub struct Server {
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerHandle").finish_non_exhaustive()
    }
}

impl Server {
    /// Starts a server without connections, on a thread named `qmp`. See [`ServerHandle`] for how to give it some.
    pub fn start(version: VersionInfo, mut commands: Commands) -> Result<Self, Error> {
        add_own_commands(&mut commands);
        let runtime = Builder::new_current_thread().enable_io().enable_time().build();
        let runtime = runtime.map_err(|source| Error::Start { what: "the QMP event queue", source })?;
        let (alive, mut all_done) = mpsc::channel(1);
        let (stop, mut stopped) = watch::channel(false);
        let handle = ServerHandle(Arc::new(Inner {
            commands,
            version,
            events: Events::default(),
            runtime: runtime.handle().clone(),
            worker: Worker::start("qmp-worker")?,
            oob_worker: Worker::start("qmp-oob")?,
            preconfig: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
            stop,
            alive: Mutex::new(Some(alive)),
        }));
        let server = handle.clone();
        let main = async move {
            tokio::spawn(server.events().clone().release_held());
            // The sender lives in `server`, so this ends by a value only.
            let _ = stopped.wait_for(|stop| *stop).await;
            if tokio::time::timeout(GRACE, all_done.recv()).await.is_err() {
                tracing::warn!("QMP ends with clients that have not been answered");
            }
            server.0.worker.stop();
            server.0.oob_worker.stop();
        };
        let thread = std::thread::Builder::new().name("qmp".into()).spawn(move || {
            runtime.block_on(main);
            runtime.shutdown_background();
        });
        let thread = thread.map_err(|source| Error::Start { what: "the QMP thread", source })?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> &ServerHandle {
        &self.handle
    }

    /// Waits until the server has been shut down and every client has been sent its last reply, ten seconds at most
    /// from the shutdown.
    pub fn wait(mut self) {
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.join();
    }
}

impl std::ops::Deref for Server {
    type Target = ServerHandle;
    fn deref(&self) -> &ServerHandle {
        &self.handle
    }
}

impl ServerHandle {
    /// Where events are emitted.
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// Ends the server: no input is read any more, commands that run are answered, what is queued is sent, connections
    /// are closed, socket files removed. Returns at once; [`Server::wait`] waits.
    pub fn shutdown(&self) {
        self.0.alive.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        self.0.stop.send_replace(true);
    }

    /// Says whether the machine is still to be built: then only commands that allow it are carried out.
    pub fn set_preconfig(&self, preconfig: bool) {
        self.0.preconfig.store(preconfig, Ordering::SeqCst);
    }

    pub(crate) fn version(&self) -> &VersionInfo {
        &self.0.version
    }

    pub(crate) fn next_session(&self) -> u64 {
        self.0.sessions.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn stop_signal(&self) -> watch::Receiver<bool> {
        self.0.stop.subscribe()
    }

    /// Runs something on the server's thread that its end waits for.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        let alive = self.alive()?;
        self.0.runtime.spawn(async move {
            task.await;
            drop(alive);
        });
        Ok(())
    }

    /// What keeps the end of the server waiting while it is held.
    pub(crate) fn alive(&self) -> Result<mpsc::Sender<()>, Error> {
        let alive = self.0.alive.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        alive.clone().ok_or(Error::Stopped)
    }

    /// Starts a command in a task of its own.
    pub(crate) fn begin(
        &self,
        session: u64,
        request: Request,
    ) -> Result<tokio::task::JoinHandle<Outcome>, CommandError> {
        let name = &request.command;
        let command = self.0.commands.get(name).ok_or_else(|| unknown_command(name))?;
        if request.out_of_band && !command.allow_oob {
            return Err(CommandError::generic(format!("The command {name} does not support OOB")));
        }
        if self.0.preconfig.load(Ordering::SeqCst) && !command.allow_preconfig {
            return Err(CommandError::generic(format!(
                "The command '{name}' is permitted only after machine initialization has completed"
            )));
        }
        let call = Call { server: self.clone(), session, out_of_band: request.out_of_band };
        Ok(match &command.handler {
            Handler::Blocking(handler) => {
                let worker = if request.out_of_band { &self.0.oob_worker } else { &self.0.worker };
                tokio::spawn(worker.submit(handler.clone(), request.arguments, call))
            }
            Handler::Async(handler) => {
                let handler = handler.clone();
                tokio::spawn(async move { handler(request.arguments, call).await })
            }
        })
    }
}

/// The commands that any QMP server has.
fn add_own_commands(commands: &mut Commands) {
    commands
        .asynchronous("qmp_capabilities", async |_: QmpCapabilities, _| {
            Err::<(), _>(CommandError::new(
                ErrorClass::CommandNotFound,
                "Capabilities negotiation is already complete, command ignored",
            ))
        })
        .allow_preconfig();
    commands
        .asynchronous("query-commands", async |(), call: Call| {
            let names = call.server.0.commands.names();
            Ok(names.map(|name| CommandInfo { name: name.into() }).collect::<Vec<_>>())
        })
        .allow_preconfig();
    commands.asynchronous("query-version", async |(), call: Call| Ok(call.server.0.version.clone())).allow_preconfig();
    commands
        .asynchronous("query-qmp-schema", async |(), call: Call| Ok(schema::introspect(&call.server.0.commands)))
        .allow_preconfig();
}
