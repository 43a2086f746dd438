//! The short forms of `-serial`, `-monitor`, `-qmp` and `-debugcon`: `mon:stdio`, `file:PATH`, `unix:PATH,server=on`.

use cardcage_options::Options;

use crate::CharError;
use crate::options::{BackendOptions, ChardevOptions, SocketOptions};

/// What a short form asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Legacy {
    /// No chardev at all.
    None,
    /// The chardev of this id.
    Existing(String),
    /// A chardev to be made.
    New {
        /// How.
        options: ChardevOptions,
        /// Whether a monitor shares it (`mon:`).
        monitor: bool,
    },
}

/// Reads a short form. `option` is the option's name for errors, `id` what a new chardev is called.
pub fn parse_legacy(option: &str, id: &str, text: &str) -> Result<Legacy, CharError> {
    if text == "none" {
        return Ok(Legacy::None);
    }
    if let Some(id) = text.strip_prefix("chardev:") {
        return Ok(Legacy::Existing(id.to_owned()));
    }
    let (monitor, backend) = text.strip_prefix("mon:").map_or((false, text), |rest| (true, rest));
    // Ctrl-C goes to the guest where the terminal is its console beside a monitor.
    let backend = match backend.split_once(':') {
        None if backend == "null" => BackendOptions::Null,
        None if backend == "pty" => BackendOptions::Pty,
        None if backend == "stdio" => BackendOptions::Stdio { signal: !monitor },
        Some(("file", path)) if !path.is_empty() => BackendOptions::File { path: path.to_owned(), append: false },
        Some(("unix", rest)) => BackendOptions::Socket(unix(option, rest)?),
        Some(("tcp", rest)) => BackendOptions::Socket(tcp(option, text, rest)?),
        _ => {
            let reason = "allowed: none, null, pty, stdio, file:PATH, unix:PATH[,server=on][,wait=off], \
                          tcp:[HOST]:PORT[,server=on][,wait=off], chardev:ID, and mon: before any of them";
            return Err(CharError::Legacy {
                option: option.to_owned(),
                text: text.to_owned(),
                reason: reason.to_owned(),
            });
        }
    };
    let options = ChardevOptions { id: id.to_owned(), mux: monitor, backend };
    Ok(Legacy::New { options, monitor })
}

fn unix(option: &str, rest: &str) -> Result<SocketOptions, CharError> {
    let mut options = Options::parse(option, rest, Some("path"))?;
    let socket = SocketOptions::take(&mut options)?;
    options.finish()?;
    Ok(socket)
}

fn tcp(option: &str, text: &str, rest: &str) -> Result<SocketOptions, CharError> {
    let (address, more) = rest.split_once(',').unwrap_or((rest, ""));
    let Some((host, port)) = address.rsplit_once(':') else {
        let reason = "a host and a port are expected, as in tcp:localhost:4444".to_owned();
        return Err(CharError::Legacy { option: option.to_owned(), text: text.to_owned(), reason });
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut options = Options::parse(option, more, None)?;
    options.push("host", cardcage_options::Value::Text(host.to_owned()));
    options.push("port", cardcage_options::Value::Text(port.to_owned()));
    let socket = SocketOptions::take(&mut options)?;
    options.finish()?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SocketAddress;
    use proptest::prelude::*;

    fn backend(text: &str) -> BackendOptions {
        match parse_legacy("-serial", "serial0", text).unwrap() {
            Legacy::New { options, .. } => options.backend,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn short_forms_read_as_qemu_users_write_them() {
        let mon = parse_legacy("-serial", "serial0", "mon:stdio").unwrap();
        let options =
            ChardevOptions { id: "serial0".into(), mux: true, backend: BackendOptions::Stdio { signal: false } };
        assert_eq!(mon, Legacy::New { options, monitor: true });
        assert_eq!(parse_legacy("-serial", "s", "none"), Ok(Legacy::None));
        assert_eq!(parse_legacy("-serial", "s", "chardev:c0"), Ok(Legacy::Existing("c0".into())));
        assert_eq!(backend("file:a,b:c"), BackendOptions::File { path: "a,b:c".into(), append: false });
        let BackendOptions::Socket(s) = backend("unix:/tmp/a:b,server,nowait") else { panic!() };
        assert_eq!((s.address, s.server, s.wait), (SocketAddress::Unix("/tmp/a:b".into()), true, false));
        let BackendOptions::Socket(s) = backend("tcp:[::1]:4444,server=on,wait=off") else { panic!() };
        assert_eq!(s.address, SocketAddress::Tcp { host: "::1".into(), port: 4444 });
    }

    #[test]
    fn what_is_no_short_form_is_told_what_is() {
        let error = parse_legacy("-serial", "s", "stdoi").unwrap_err().to_string();
        assert!(error.starts_with("could not connect -serial to character backend 'stdoi': allowed: none,"), "{error}");
        assert!(parse_legacy("-qmp", "s", "tcp:4444").is_err());
        assert!(parse_legacy("-qmp", "s", "file:").is_err());
        let error = parse_legacy("-qmp", "s", "unix:/tmp/s,sever=on").unwrap_err().to_string();
        assert_eq!(error, "-qmp: Invalid parameter 'sever', did you mean 'server'?");
    }

    proptest! {
        #[test]
        fn any_text_is_a_short_form_or_refused(
            text in "(mon:)?(unix:|tcp:|file:|chardev:|stdio|pty|null)?[a-z0-9:,=/\\[\\]]{0,24}|\\PC*",
        ) {
            if let Err(error) = parse_legacy("-serial", "serial0", &text) {
                prop_assert!(error.to_string().contains("-serial"), "{error}");
            }
        }
    }
}
