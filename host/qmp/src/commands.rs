//! The registry of commands and events.
//!
//! One entry per command feeds dispatch, argument checks, `query-commands` and `query-qmp-schema`.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::server::ServerHandle;
use crate::types::to_json;
use crate::{Argument, CommandError, Describe, Events, Place, Type};

pub(crate) type Outcome = Result<Value, CommandError>;
pub(crate) type BlockingHandler = Arc<dyn Fn(Map<String, Value>, Call) -> Outcome + Send + Sync>;
type AsyncHandler =
    Arc<dyn Fn(Map<String, Value>, Call) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

/// How a command's work is done.
#[derive(Clone)]
pub(crate) enum Handler {
    Blocking(BlockingHandler),
    Async(AsyncHandler),
}

/// What a command's handler knows besides its arguments.
#[derive(Debug, Clone)]
pub struct Call {
    pub(crate) server: ServerHandle,
    pub(crate) session: u64,
    pub(crate) out_of_band: bool,
}

impl Call {
    /// Where events are emitted. Those emitted before the handler returns reach clients before its reply.
    pub fn events(&self) -> &Events {
        self.server.events()
    }

    /// The server, for instance to shut it down.
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// A number for the client's connection; no two connections of a server share one.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Whether the client sent the command with `exec-oob`.
    pub fn is_out_of_band(&self) -> bool {
        self.out_of_band
    }
}

/// A command as it is registered. The methods that set a flag return it again.
pub struct Command {
    pub(crate) handler: Handler,
    pub(crate) arguments: fn() -> Type,
    pub(crate) result: fn() -> Type,
    pub(crate) allow_preconfig: bool,
    pub(crate) allow_oob: bool,
    pub(crate) features: &'static [&'static str],
}

impl Command {
    /// The command also works before the machine has been built (`--preconfig`).
    pub fn allow_preconfig(&mut self) -> &mut Self {
        self.allow_preconfig = true;
        self
    }

    /// The command may be sent with `exec-oob`. It must be quick, and wait for nothing that other commands hold.
    pub fn allow_oob(&mut self) -> &mut Self {
        self.allow_oob = true;
        self
    }

    /// Features that the schema tells, such as `deprecated` or `unstable`.
    pub fn features(&mut self, features: &'static [&'static str]) -> &mut Self {
        self.features = features;
        self
    }
}

/// The commands that a server answers, and the events that it may send.
///
/// `qmp_capabilities`, `query-commands`, `query-version` and `query-qmp-schema` are the server's own.
///
/// ```
/// use cardcage_qmp::{Call, CommandError, Commands, qmp_types};
///
/// qmp_types! {
///     /// Arguments of `set_link`.
///     pub struct SetLink {
///         /// Which device.
///         name: String,
///         /// Whether its link is up.
///         up: bool,
///     }
/// }
///
/// let mut commands = Commands::new();
/// commands.blocking("set_link", |link: SetLink, call: &Call| {
///     if link.name != "nic0" {
///         return Err(CommandError::device_not_found(&link.name));
///     }
///     call.events().emit("NIC_RX_FILTER_CHANGED", None);
///     Ok(())
/// });
/// ```
#[derive(Default)]
pub struct Commands {
    commands: BTreeMap<&'static str, Command>,
    events: BTreeMap<&'static str, fn() -> Type>,
}

impl Commands {
    /// No commands.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a command whose handler may block. Such handlers run one after another, whichever client asks, on a
    /// thread of their own.
    ///
    /// # Panics
    /// If the name is taken: that is a slip in the program.
    pub fn blocking<A, R, F>(&mut self, name: &'static str, handler: F) -> &mut Command
    where
        A: Argument,
        R: Describe + Serialize,
        F: Fn(A, &Call) -> Result<R, CommandError> + Send + Sync + 'static,
    {
        let handler = Handler::Blocking(Arc::new(move |arguments, call| to_json(&handler(take(arguments)?, &call)?)));
        self.add::<A, R>(name, handler)
    }

    /// Registers a command whose handler waits without blocking. It runs on the server's own thread: a handler that
    /// blocks holds up every client. Handlers of different clients may overlap; those of one client do not, except
    /// out of band.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn asynchronous<A, R, F, Fut>(&mut self, name: &'static str, handler: F) -> &mut Command
    where
        A: Argument + Send,
        R: Describe + Serialize,
        F: Fn(A, Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, CommandError>> + Send + 'static,
    {
        let handler: AsyncHandler = Arc::new(move |arguments, call| match take(arguments) {
            Ok(arguments) => {
                let work = handler(arguments, call);
                Box::pin(async move { to_json(&work.await?) })
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        });
        self.add::<A, R>(name, Handler::Async(handler))
    }

    /// Declares an event with data of type `D`, for the schema.
    pub fn event<D: Describe>(&mut self, name: &'static str) -> &mut Self {
        self.events.insert(name, D::describe);
        self
    }

    fn add<A: Describe, R: Describe>(&mut self, name: &'static str, handler: Handler) -> &mut Command {
        let command = Command {
            handler,
            arguments: A::describe,
            result: R::describe,
            allow_preconfig: false,
            allow_oob: false,
            features: &[],
        };
        assert!(!self.commands.contains_key(name), "QMP command '{name}' is registered twice");
        self.commands.entry(name).or_insert(command)
    }

    /// The names of all commands, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.commands.keys().copied()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Command> {
        self.commands.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &Command)> {
        self.commands.iter().map(|(name, command)| (*name, command))
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = (&'static str, Type)> + '_ {
        self.events.iter().map(|(name, ty)| (*name, ty()))
    }
}

fn take<A: Argument>(arguments: Map<String, Value>) -> Result<A, CommandError> {
    A::from_json(Value::Object(arguments), &Place::arguments())
}
