//! `cardcage OPTIONS`: builds a machine and runs it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use cardcage_block::BlockGraph;
use cardcage_chardev::Chardevs;
use cardcage_machine::{Accelerator, BoardError, Cause, Control, MachineConfig, QtestOptions, Request, Vm};
use cardcage_options::{Options, nearest, parse_size};
use cardcage_qmp::{Commands, Server, VersionInfo};
use cardcage_registry::Registry;

use crate::args::Args;
use crate::{devices, monitor, plugin, signals, usage};

/// Machine types with the names they go by.
const MACHINES: [(&str, &str); 1] = [("pc", "Standard PC (i440FX + PIIX)")];
const MIB: u64 = 1 << 20;
/// How long a client may take to read the last events.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What `-machine` says.
struct Machine {
    accel: Vec<String>,
}

/// Runs a machine; the exit status.
pub(crate) fn run(args: &Args) -> anyhow::Result<i32> {
    let Some(machine) = machine(&args.machine)? else { return Ok(0) };
    let registry = Arc::new(plugin::load(&args.plugin, &args.plugin_dir, args.plugin_set.as_ref())?);
    if help_wanted(args, &registry)? {
        return Ok(0);
    }
    let accelerator = accelerator(args, &machine)?;
    let (blocks, chardevs) = (Arc::new(BlockGraph::new()?), Arc::new(Chardevs::new()));
    check_display(args)?;
    let result = build_and_run(args, &registry, accelerator, &blocks, &chardevs);
    chardevs.close_all();
    result
}

fn build_and_run(
    args: &Args,
    registry: &Arc<Registry>,
    accelerator: Accelerator,
    blocks: &Arc<BlockGraph>,
    chardevs: &Arc<Chardevs>,
) -> anyhow::Result<i32> {
    let Some(devices) = devices::all(args, registry, blocks, chardevs)? else { return Ok(0) };
    let events = Arc::new(OnceLock::new());
    let config = MachineConfig {
        name: args.name.as_deref().map(name),
        uuid: uuid(args)?,
        ram_size: memory(&args.memory)?,
        cpus: cpus(&args.smp)?,
        accelerator,
        cpu: args.cpu.clone(),
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        cmdline: args.append.clone(),
        devices,
        registry: registry.clone(),
        blocks: blocks.clone(),
        chardevs: chardevs.clone(),
        events: events.clone(),
        start_paused: args.stopped,
        no_reboot: args.no_reboot,
        no_shutdown: args.no_shutdown,
    };
    let mut vm = Vm::build(config).map_err(board_error)?;
    let control = vm.control();
    let server = qmp_server(registry, &control)?;
    let _ = events.set(server.events().clone());
    chardevs.on_quit({
        let control = control.clone();
        move || control.send(Request::Shutdown(Cause::HostUi))
    });
    signals::watch(control.clone()).context("cannot watch for signals")?;
    let bridges = monitor::connect(args, server.handle(), chardevs)?;
    if let Some(device) = &args.qtest {
        let options = QtestOptions { device: device.clone(), log: args.qtest_log.clone() };
        vm.serve_qtest(&options).map_err(|e| anyhow::anyhow!("-qtest: {e}"))?;
    }
    let status = vm.run();
    server.handle().shutdown();
    server.wait();
    // What monitors on character devices say last goes out before those are closed.
    bridges.iter().for_each(|bridge| bridge.drain(LAST_WORDS));
    drop(bridges);
    Ok(status)
}

/// A device or a CPU that is asked for wrongly is an error of the command line.
fn board_error(error: BoardError) -> anyhow::Error {
    let (driver, source) = match error {
        BoardError::Device { driver, source } => (driver, source),
        BoardError::Cpu(text) => return usage(format!("-cpu: {text}")),
        other => return other.into(),
    };
    let hint = source.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    let text =
        if source.names_device() { format!("{source}{hint}") } else { format!("-device {driver}: {source}{hint}") };
    if source.is_usage() { usage(text) } else { anyhow::anyhow!(text) }
}

fn qmp_server(registry: &Arc<Registry>, control: &Control) -> anyhow::Result<Server> {
    let mut commands = Commands::new();
    cardcage_machine::register_commands(&mut commands, registry, control);
    let mut version = env!("CARGO_PKG_VERSION").split('.').map(|n| n.parse().unwrap_or(0));
    let mut next = || version.next().unwrap_or(0);
    let (major, minor, micro) = (next(), next(), next());
    Ok(Server::start(VersionInfo::new(major, minor, micro, "cardcage"), commands)?)
}

/// `help` in an option that lists things; true if something was printed.
#[expect(clippy::print_stdout, reason = "help is what the user asked for")]
fn help_wanted(args: &Args, _registry: &Registry) -> anyhow::Result<bool> {
    if args.accel.iter().any(|a| a == "help") {
        println!("Accelerators supported:");
        Accelerator::NAMES.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(true);
    }
    if args.cpu.as_deref() == Some("help") {
        println!("CPU models of the soft accelerator:");
        cardcage_machine::cpu_models().iter().for_each(|name| println!("  {name}"));
        println!("CPU models of the kvm accelerator:\n  host\n  max");
        return Ok(true);
    }
    Ok(false)
}

/// Reads `-machine`; `None` after help was printed.
#[expect(clippy::print_stdout, reason = "help is what the user asked for")]
fn machine(text: &str) -> anyhow::Result<Option<Machine>> {
    let mut options = Options::parse("-machine", text, Some("type")).map_err(usage)?;
    if text == "help" || options.wants_help() {
        println!("Supported machines are:");
        MACHINES.iter().for_each(|(name, about)| println!("{name:<20} {about} (default)"));
        return Ok(None);
    }
    let name = options.take_str("type").map_err(usage)?.unwrap_or_else(|| "pc".into());
    let accel = options.take_str("accel").map_err(usage)?;
    options.finish().map_err(usage)?;
    if !MACHINES.iter().any(|(n, _)| *n == name) {
        let hint = nearest(&name, MACHINES.iter().map(|m| m.0)).map(|n| format!(", did you mean '{n}'?"));
        let hint = hint.unwrap_or_else(|| "; use '-machine help' to list them".into());
        return Err(usage(format!("-machine: unsupported machine type '{name}'{hint}")));
    }
    let accel = accel.map(|list| list.split(':').map(str::to_string).collect()).unwrap_or_default();
    Ok(Some(Machine { accel }))
}

/// The accelerator, with one line on standard error when it was this program's choice.
fn accelerator(args: &Args, machine: &Machine) -> anyhow::Result<Accelerator> {
    let mut wanted = Vec::new();
    let enable_kvm = args.enable_kvm.then(|| "kvm".to_string());
    for text in args.accel.iter().chain(&machine.accel).chain(&enable_kvm) {
        let mut options = Options::parse("-accel", text, Some("accel")).map_err(usage)?;
        let name = options.take_choice("accel", &Accelerator::NAMES).map_err(usage)?;
        wanted.push(name.ok_or_else(|| usage("-accel: name an accelerator: kvm, soft or qtest"))?);
        options.finish().map_err(usage)?;
    }
    let (accelerator, why) = Accelerator::choose(&wanted).map_err(|e| anyhow::anyhow!("-accel: {e}"))?;
    if wanted.is_empty() {
        eprintln!("cardcage: using accelerator {accelerator}: {why}");
    } else if !why.is_empty() {
        eprintln!("cardcage: using accelerator {accelerator}, because {why}");
    }
    Ok(accelerator)
}

fn check_display(args: &Args) -> anyhow::Result<()> {
    for (option, value) in [("-display", &args.display), ("-audio", &args.audio)] {
        if let Some(other) = value.as_deref().filter(|v| *v != "none") {
            return Err(usage(format!("{option}: Parameter 'type' does not accept value '{other}': only 'none'")));
        }
    }
    Ok(())
}

/// `-name [guest=]NAME`.
fn name(text: &str) -> String {
    text.strip_prefix("guest=").unwrap_or(text).split(',').next().unwrap_or_default().to_string()
}

fn uuid(args: &Args) -> anyhow::Result<uuid::Uuid> {
    let Some(text) = &args.uuid else { return Ok(uuid::Uuid::nil()) };
    text.parse().map_err(|e| usage(format!("-uuid: '{text}' is not a UUID: {e}")))
}

/// `-m [size=]SIZE`, in MiB without a suffix.
fn memory(text: &str) -> anyhow::Result<u64> {
    let size = text.strip_prefix("size=").unwrap_or(text);
    let bytes = parse_size(size, MIB).map_err(|e| usage(format!("-m: '{size}' is not a size: {e}")))?;
    if bytes == 0 {
        return Err(usage("-m: 0 is no memory at all; 128M is the default"));
    }
    bytes.checked_next_multiple_of(8192).ok_or_else(|| usage(format!("-m: '{size}' is too large")))
}

fn cpus(text: &str) -> anyhow::Result<u32> {
    let mut options = Options::parse("-smp", text, Some("cpus")).map_err(usage)?;
    let n = options.take_u64("cpus", 1..=u64::from(u32::MAX)).map_err(usage)?.unwrap_or(1);
    options.finish().map_err(usage)?;
    match u32::try_from(n) {
        Ok(1) => Ok(1),
        _ => Err(usage(format!("-smp: {n} CPUs are more than the 1 that this version runs"))),
    }
}
