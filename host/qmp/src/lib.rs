//! The QMP server. It knows nothing of virtual machines: the program registers commands and emits events.
//!
//! # A server
//! ```
//! use cardcage_qmp::{Call, Commands, ListenOptions, Server, VersionInfo, qmp_types};
//! use serde_json::json;
//!
//! qmp_types! {
//!     /// What `query-name` returns.
//!     pub struct NameInfo {
//!         /// The machine's name, if it has one.
//!         name: Option<String>,
//!     }
//! }
//!
//! let mut commands = Commands::new();
//! commands.blocking("query-name", |(), _: &Call| Ok(NameInfo { name: Some("card".into()) })).allow_preconfig();
//! commands.blocking("quit", |(), call: &Call| {
//!     call.events().emit("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"}));
//!     call.server().shutdown();
//!     Ok(())
//! });
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("qmp.sock");
//! let server = Server::start(VersionInfo::new(10, 0, 2, ""), commands)?;
//! server.listen_unix(&path, ListenOptions::default())?;
//! # server.shutdown();
//! server.wait();
//! # Ok::<(), cardcage_qmp::Error>(())
//! ```
//!
//! # Threads
//! * `qmp` runs all sessions (tokio, one thread) and asynchronous handlers.
//! * `qmp-worker` runs blocking handlers in order, `qmp-oob` those sent out of band.
//! * [`Events::emit`] may be called from any thread and never waits: each client has a queue, and a client that leaves
//!   4 MiB of events unread is disconnected.
//!
//! # Order
//! Replies of one client come in the order of its requests, except out-of-band ones. Events that a handler emits come
//! before its reply. Blocking handlers of all clients form one sequence; asynchronous handlers of *different* clients
//! may run between them.

mod commands;
mod error;
mod events;
pub mod json;
mod macros;
mod outbox;
mod request;
pub mod schema;
mod server;
mod session;
mod throttle;
mod transport;
mod types;
mod worker;

pub use commands::{Call, Command, Commands};
pub use error::{CommandError, Error, ErrorClass};
pub use events::Events;
pub use server::{CommandInfo, Server, ServerHandle, VersionInfo, VersionTriple};
pub use transport::ListenOptions;
pub use types::{Argument, Describe, EMPTY, EnumType, Member, Members, MembersOut, ObjectType, Place, Type};

#[doc(hidden)]
pub use serde::{Serialize, Serializer};
#[doc(hidden)]
pub use serde_json::{Map, Value};
