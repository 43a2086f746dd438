//! Stopping and starting in every order leaves a machine whose devices work.

use cardcage_tests::Guest;

/// The guest reads from its entropy device and powers off.
const READ_ENTROPY: &str = "modprobe virtio_rng; dd if=/dev/hwrng of=/dev/null bs=64 count=4";

#[test]
fn devices_work_after_resets_and_stops_of_a_machine_that_does_not_run() {
    let Some(mut guest) = Guest::boot(Some(READ_ENTROPY), &["-S", "-device", "virtio-rng-pci"]) else { return };
    for command in ["system_reset", "stop", "stop", "system_reset", "cont", "cont", "stop", "system_reset", "cont"] {
        guest.monitor.ask(command);
    }
    guest.console.wait("4+0 records in");
    guest.console.wait("cardcage: commands ended with status 0");
}
