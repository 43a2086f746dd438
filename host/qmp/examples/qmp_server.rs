//! A server without a machine, for trying clients: `qmp_server SOCKET`, or `qmp_server -` for standard input and
//! output. Ends with `quit`.

use cardcage_qmp::json::Layout;
use cardcage_qmp::{Call, Commands, ListenOptions, Server, VersionInfo, qmp_types};
use serde_json::json;

qmp_types! {
    /// What `query-name` returns.
    struct NameInfo {
        /// The machine's name.
        name: Option<String>,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: qmp_server SOCKET|-")?;
    let mut commands = Commands::new();
    commands.blocking("query-name", |(), _: &Call| Ok(NameInfo { name: Some("example".into()) })).allow_preconfig();
    commands.blocking("stop", |(), call: &Call| {
        call.events().emit("STOP", None);
        Ok(())
    });
    commands.blocking("quit", |(), call: &Call| {
        call.events().emit("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"}));
        call.server().shutdown();
        Ok(())
    });
    let server = Server::start(VersionInfo::new(10, 0, 2, ""), commands)?;
    match path == "-" {
        true => server.serve_stdio(Layout::Line)?,
        false => server.listen_unix(path, ListenOptions::default())?,
    }
    server.wait();
    Ok(())
}
