//! Measures what one register access to a plugin costs, from the vCPU's side: address lookup, the call across the
//! plugin interface, the device's lock and the device model.
//!
//! Usage: `plugin_access PLUGIN_DIR`. Prints the median of many rounds in nanoseconds.
#![expect(clippy::print_stdout, reason = "prints its result")]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use cardcage_block::BlockGraph;
use cardcage_chardev::Chardevs;
use cardcage_machine::{Accelerator, DeviceOptions, MachineConfig, Vm, registry_builder};
use cardcage_registry::SearchPath;

const ROUNDS: usize = 501;
const ACCESSES: u32 = 10_000;
/// The scratch register of COM1: no side effects.
const PORT: u16 = 0x3ff;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let path = if folders.is_empty() { SearchPath::new(vec![], vec![]) } else { SearchPath::exactly(vec![], folders) };
    let config = MachineConfig {
        name: None,
        uuid: Default::default(),
        ram_size: 16 << 20,
        cpus: 1,
        accelerator: Accelerator::Qtest,
        cpu: None,
        kernel: None,
        initrd: None,
        cmdline: String::new(),
        devices: vec![DeviceOptions { driver: "isa-serial".into(), ..DeviceOptions::default() }],
        registry: Arc::new(registry_builder().load(&path)?),
        blocks: Arc::new(BlockGraph::new()?),
        chardevs: Arc::new(Chardevs::new()),
        events: Arc::new(OnceLock::new()),
        start_paused: true,
        no_reboot: false,
        no_shutdown: false,
    };
    let vm = Vm::build(config)?;
    let bus = vm.bus();
    bus.port_write(PORT, 1, 0x5a);
    if bus.port_read(PORT, 1) != 0x5a {
        return Err("the scratch register of the serial port does not keep its value".into());
    }
    println!(
        "read: {:.1} ns",
        median(|| {
            black_box(bus.port_read(PORT, 1));
        })
    );
    println!("write: {:.1} ns", median(|| bus.port_write(PORT, 1, black_box(0x5a))));
    Ok(())
}

fn median(mut access: impl FnMut()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..ACCESSES).for_each(|_| access());
            start.elapsed().as_nanos() as f64 / f64::from(ACCESSES)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}
