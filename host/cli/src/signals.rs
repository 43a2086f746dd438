//! SIGINT, SIGTERM and SIGHUP end the machine in an orderly way.

use cardcage_machine::{Cause, Control, Request};
use tokio::signal::unix::{SignalKind, signal};

/// Listens on a thread of its own. A second signal ends the program at once.
pub(crate) fn watch(control: Control) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(guard);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            for round in 0.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                if round > 0 {
                    std::process::exit(1);
                }
                control.send(Request::Shutdown(Cause::HostSignal));
            }
        });
    })?;
    Ok(())
}
