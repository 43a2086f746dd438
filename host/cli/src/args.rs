//! The command line: QEMU's option names, with one dash or two.

use std::ffi::OsString;
use std::path::PathBuf;

use cardcage_options::nearest;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, CommandFactory, Parser};

use crate::usage;

/// Runs a virtual machine whose devices are plugins.
#[derive(Debug, Parser)]
#[command(
    name = "cardcage",
    version,
    args_override_self = true,
    disable_help_flag = true,
    disable_version_flag = true,
    after_help = "Options may be written with one dash, as in QEMU. Tools around the virtual machine are subcommands: \
                  'cardcage plugin --help'.\n\nExit status: 0 after an orderly end, 1 after an error, 2 for a wrong \
                  command line, or what the guest gave to isa-debug-exit."
)]
pub(crate) struct Args {
    /// Print this help
    #[arg(long, short = 'h', action = ArgAction::HelpShort)]
    pub(crate) help: Option<bool>,

    /// Print the version
    #[arg(long, action = ArgAction::Version)]
    pub(crate) version: Option<bool>,

    /// Type of the machine: pc ('help' lists them)
    #[arg(long, short = 'M', value_name = "TYPE[,PROP=VALUE]", default_value = "pc")]
    pub(crate) machine: String,

    /// Accelerator: kvm, soft (also: tcg) or qtest; of several the first that works
    #[arg(long, value_name = "NAME")]
    pub(crate) accel: Vec<String>,

    /// Same as -accel kvm
    #[arg(long)]
    pub(crate) enable_kvm: bool,

    /// CPU model with features: MODEL,+FEATURE,-FEATURE ('help' lists them)
    #[arg(long, value_name = "MODEL")]
    pub(crate) cpu: Option<String>,

    /// Number of CPUs
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) smp: String,

    /// Guest memory, in MiB without suffix
    #[arg(short = 'm', value_name = "SIZE", default_value = "128M")]
    pub(crate) memory: String,

    /// Linux bzImage or ELF/PVH kernel
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// Initial ramdisk
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    pub(crate) append: String,

    /// Device: DRIVER[,PROP=VALUE]... or JSON ('help' lists them, 'DRIVER,help' their properties)
    #[arg(long, value_name = "DRIVER")]
    pub(crate) device: Vec<String>,

    /// Disk image with its device
    #[arg(long, value_name = "file=FILE,format=raw,if=virtio|none,id=ID")]
    pub(crate) drive: Vec<String>,

    /// Block node
    #[arg(long, value_name = "driver=DRIVER,node-name=NAME")]
    pub(crate) blockdev: Vec<String>,

    /// Character device
    #[arg(long, value_name = "BACKEND,id=ID")]
    pub(crate) chardev: Vec<String>,

    /// Serial port: stdio, mon:stdio, pty, file:PATH, unix:PATH, tcp:HOST:PORT, null, chardev:ID or none
    #[arg(long, value_name = "DEV")]
    pub(crate) serial: Vec<String>,

    /// QMP server: unix:PATH[,server=on,wait=off], tcp:HOST:PORT[,server=on,wait=off] or stdio
    #[arg(long, value_name = "DEV")]
    pub(crate) qmp: Vec<String>,

    /// Same as -qmp, with indented output
    #[arg(long, value_name = "DEV")]
    pub(crate) qmp_pretty: Vec<String>,

    /// Monitor on a character device: chardev=ID,mode=control[,pretty=on]
    #[arg(long, value_name = "chardev=ID,mode=control")]
    pub(crate) mon: Vec<String>,

    /// No window; the serial port is on standard input and output
    #[arg(long)]
    pub(crate) nographic: bool,

    /// Display: none
    #[arg(long, value_name = "TYPE")]
    pub(crate) display: Option<String>,

    /// Sound: none
    #[arg(long, value_name = "TYPE")]
    pub(crate) audio: Option<String>,

    /// No devices but those that are asked for
    #[arg(long)]
    pub(crate) nodefaults: bool,

    /// Read no configuration files of the user; there are none
    #[arg(long)]
    pub(crate) no_user_config: bool,

    /// Do not start the guest: wait for QMP 'cont'
    #[arg(short = 'S')]
    pub(crate) stopped: bool,

    /// End instead of resetting the guest
    #[arg(long)]
    pub(crate) no_reboot: bool,

    /// Stop instead of ending when the guest powers off
    #[arg(long)]
    pub(crate) no_shutdown: bool,

    /// Name of the virtual machine
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// UUID of the virtual machine
    #[arg(long, value_name = "UUID")]
    pub(crate) uuid: Option<String>,

    /// Load this plugin
    #[arg(long, value_name = "FILE")]
    pub(crate) plugin: Vec<PathBuf>,

    /// Load the plugins in this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) plugin_dir: Vec<PathBuf>,

    /// Load only the plugins that this file lists
    #[arg(long, value_name = "FILE")]
    pub(crate) plugin_set: Option<PathBuf>,

    /// Socket of a test that drives the machine: unix:PATH
    #[arg(long, value_name = "DEV")]
    pub(crate) qtest: Option<String>,

    /// File for a log of what the test does
    #[arg(long, value_name = "FILE")]
    pub(crate) qtest_log: Option<PathBuf>,
}

/// Reads a command line. Ends the program after help.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Args> {
    Args::try_parse_from(with_two_dashes(args)).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
        _ => usage(sentence(&error)),
    })
}

/// One sentence with what is wrong, which clap says in a paragraph.
fn sentence(error: &clap::Error) -> String {
    if let (ErrorKind::UnknownArgument, Some(ContextValue::String(arg))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    {
        let Some(name) = arg.strip_prefix('-').map(|name| name.trim_start_matches('-')) else {
            return format!("'{arg}' is no option: options begin with a dash; 'cardcage -help' lists them");
        };
        let command = Args::command();
        let hint = nearest(name, command.get_arguments().filter_map(|a| a.get_long()));
        let hint = hint.map_or("; 'cardcage -help' lists them".into(), |n| format!(", did you mean '-{n}'?"));
        return format!("unknown option '-{name}'{hint}");
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).replace("'--", "'-")
}

/// QEMU's options have one dash. A word that follows an option that takes a value is left alone, unless it is an option
/// itself: then the value was forgotten.
fn with_two_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let command = Args::command();
    let find = |word: &str| {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
        let is_it = |a: &&clap::Arg| a.get_long() == Some(name) || a.get_short().is_some_and(|s| s.to_string() == name);
        command.get_arguments().find(is_it)
    };
    let mut out = Vec::new();
    // The option whose value comes next.
    let mut waiting: Option<&clap::Arg> = None;
    for (i, arg) in args.into_iter().enumerate() {
        let option = arg.to_str().filter(|_| i > 0).and_then(find);
        if i == 0 || waiting.is_some_and(|w| option.is_none() || w.is_allow_hyphen_values_set()) {
            waiting = None;
            out.push(arg);
            continue;
        }
        waiting = option.filter(|o| o.get_action().takes_values());
        let text = arg.to_string_lossy();
        let single = text.starts_with('-') && !text.starts_with("--") && text.chars().count() > 2;
        out.push(if single { format!("-{text}").into() } else { arg });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        std::iter::once("cardcage").chain(text.split(' ')).map(OsString::from).collect()
    }

    #[test]
    fn one_dash_is_as_good_as_two_and_values_are_left_alone() {
        let a =
            parse(words("-m 64M -kernel k --initrd i -append -v -S -no-reboot -device a -device b,c=d -M pc")).unwrap();
        assert_eq!((a.memory.as_str(), a.append.as_str()), ("64M", "-v"));
        assert!(a.stopped && a.no_reboot);
        assert_eq!(a.device, ["a", "b,c=d"]);
        assert_eq!(a.kernel.unwrap(), PathBuf::from("k"));
    }

    #[test]
    fn of_an_option_that_is_given_twice_the_last_counts_unless_it_makes_a_list() {
        let a = parse(words("-S -m 1G -qmp stdio -m 2G -S -qmp unix:a")).unwrap();
        assert_eq!((a.stopped, a.memory.as_str()), (true, "2G"));
        assert_eq!(a.qmp, ["stdio", "unix:a"]);
    }

    #[test]
    fn a_wrong_command_line_is_one_sentence() {
        for (text, expected) in [
            ("-devise a", "unknown option '-devise', did you mean '-device'?"),
            ("--qqqqqqqq", "unknown option '-qqqqqqqq'; 'cardcage -help' lists them"),
            ("disk.img", "'disk.img' is no option: options begin with a dash; 'cardcage -help' lists them"),
            ("-kernel -m 64M", "a value is required for '-kernel <FILE>' but none was supplied"),
            ("-kernel", "a value is required for '-kernel <FILE>' but none was supplied"),
        ] {
            let error = parse(words(text)).unwrap_err();
            assert!(error.is::<crate::Usage>());
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
    }
}
