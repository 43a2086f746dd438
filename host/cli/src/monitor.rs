//! Monitors: QMP on sockets, standard input and character devices.

use std::net::ToSocketAddrs;

use anyhow::Context;
use cardcage_chardev::{BackendOptions, Bridge, Chardevs, Legacy, SocketAddress, SocketOptions, parse_legacy};
use cardcage_options::Options;
use cardcage_qmp::json::Layout;
use cardcage_qmp::{ListenOptions, ServerHandle};

use crate::args::Args;
use crate::usage;

/// Connects the server to everything that the command line names. The bridges must live as long as the server.
pub(crate) fn connect(args: &Args, server: &ServerHandle, chardevs: &Chardevs) -> anyhow::Result<Vec<Bridge>> {
    let mut bridges = Vec::new();
    let plain = args.qmp.iter().map(|text| (text, Layout::default()));
    for (text, layout) in plain.chain(args.qmp_pretty.iter().map(|text| (text, Layout::Pretty))) {
        if let Some(bridge) = qmp(text, layout, server, chardevs)? {
            bridges.push(bridge);
        }
    }
    for text in &args.mon {
        bridges.push(mon(text, server, chardevs)?);
    }
    Ok(bridges)
}

fn qmp(text: &str, layout: Layout, server: &ServerHandle, chardevs: &Chardevs) -> anyhow::Result<Option<Bridge>> {
    let (options, monitor) = match parse_legacy("-qmp", "qmp", text).map_err(usage)? {
        Legacy::None => return Ok(None),
        Legacy::Existing(id) => return bridge(&id, layout, server, chardevs).map(Some),
        Legacy::New { options, monitor } => (options, monitor),
    };
    if monitor {
        return Err(usage(format!("-qmp {text}: 'mon:' is for serial ports")));
    }
    match options.backend {
        BackendOptions::Socket(socket) => listen(&socket, layout, server)?,
        BackendOptions::Stdio { .. } => server.serve_stdio(layout)?,
        _ => return Err(usage(format!("-qmp {text}: use unix:PATH, tcp:HOST:PORT, stdio or chardev:ID"))),
    }
    Ok(None)
}

fn listen(socket: &SocketOptions, layout: Layout, server: &ServerHandle) -> anyhow::Result<()> {
    let options = ListenOptions { wait: socket.wait, layout };
    match (&socket.address, socket.server) {
        (SocketAddress::Unix(path), true) => server.listen_unix(path, options)?,
        (SocketAddress::Unix(path), false) => server.connect_unix(path, layout)?,
        (SocketAddress::Tcp { host, port }, is_server) => {
            let host = if host.is_empty() { "0.0.0.0" } else { host };
            let mut addresses =
                (host, *port).to_socket_addrs().with_context(|| format!("cannot resolve '{host}:{port}'"))?;
            let address = addresses.next().with_context(|| format!("'{host}' has no address"))?;
            if is_server {
                server.listen_tcp(address, options)?;
            } else {
                server.connect_tcp(address, layout)?;
            }
        }
    }
    Ok(())
}

fn mon(text: &str, server: &ServerHandle, chardevs: &Chardevs) -> anyhow::Result<Bridge> {
    let mut options = Options::parse("-mon", text, Some("chardev")).map_err(usage)?;
    let id = options.require_str("chardev").map_err(usage)?;
    let mode = options.take_choice("mode", &[("control", true), ("readline", false)]).map_err(usage)?;
    let pretty = options.take_bool("pretty").map_err(usage)?.unwrap_or(false);
    options.finish().map_err(usage)?;
    if mode != Some(true) {
        return Err(usage("-mon: say mode=control: this version has QMP monitors only"));
    }
    bridge(&id, if pretty { Layout::Pretty } else { Layout::default() }, server, chardevs)
}

/// QMP on a chardev: each connection to it is a session.
fn bridge(id: &str, layout: Layout, server: &ServerHandle, chardevs: &Chardevs) -> anyhow::Result<Bridge> {
    let chardev = chardevs.get(id)?;
    let server = server.clone();
    let bridge = Bridge::attach(&chardev, move |stream| {
        if let Err(error) = server.serve_unix(stream, layout) {
            tracing::error!("cannot serve QMP on a chardev: {error}");
        }
    })?;
    Ok(bridge)
}
