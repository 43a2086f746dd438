//! An emulator without a machine, for testing the driver itself: it connects its qtest and QMP sockets as one does, has
//! 64 MiB of RAM, and ends with status 0 after SIGTERM and `quit`. `-pretend STATUS` makes it end at once.

use cardcage_qmp::json::Layout;
use cardcage_qmp::{Call, Commands, Server, VersionInfo};
use cardcage_qtest::Qtest;
use serde_json::json;

#[path = "../tests/fake/mod.rs"]
mod fake;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
    if let Some(status) = option("-pretend") {
        std::process::exit(status.parse()?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let ended = std::sync::Mutex::new(Some(ended));
    let mut commands = Commands::new();
    commands.blocking("stop", |(), call: &Call| {
        call.events().emit("STOP", None);
        call.events().emit("RESUME", None);
        Ok(())
    });
    commands.blocking("quit", move |(), call: &Call| {
        call.events().emit("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"}));
        call.server().shutdown();
        drop(ended.lock().map(|mut ended| ended.take()));
        Ok(())
    });
    let server = Server::start(VersionInfo::new(10, 0, 2, ""), commands)?;
    let _qtest = Qtest::start(&option("-qtest").ok_or("-qtest")?.parse()?, None, fake::Fake::default())?;
    let chardev = option("-chardev").ok_or("-chardev")?;
    let path = chardev.split(',').find_map(|part| part.strip_prefix("path=")).ok_or("path")?;
    server.connect_unix(path, Layout::Line)?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = end => {}
        }
        Ok::<(), std::io::Error>(())
    })?;
    server.shutdown();
    server.wait();
    Ok(())
}
