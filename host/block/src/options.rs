//! What `-blockdev`, `blockdev-add` and `-drive` can say, as types.

use cardcage_options::{OptionError, Options, Problem};

/// What happens to discard requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Discard {
    /// They are taken, and nothing is done.
    #[default]
    Ignore,
    /// The space is given back.
    Unmap,
}

/// Whether writes of zeroes are looked for, and turned into requests without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub enum DetectZeroes {
    /// Data is written as it comes.
    #[default]
    Off,
    /// Zeroes keep their space.
    On,
    /// Zeroes give their space back.
    Unmap,
}

/// Whether the image is locked against other processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Locking {
    /// If the file system can.
    #[default]
    Auto,
    /// Always; an error if the file system cannot.
    On,
    /// Never.
    Off,
}

/// How the host's page cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheOptions {
    /// Not at all: O_DIRECT.
    pub direct: bool,
    /// Flushes do nothing. A crash of the host may lose everything.
    pub no_flush: bool,
}

/// One node, and the nodes that it brings with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOptions {
    /// Its name; nodes below others may go without.
    pub node_name: Option<String>,
    /// Never written to.
    pub read_only: bool,
    /// Read-only if it cannot be opened otherwise.
    pub auto_read_only: bool,
    /// How the host's page cache is used.
    pub cache: CacheOptions,
    /// What happens to discard requests.
    pub discard: Discard,
    /// Whether writes of zeroes are looked for.
    pub detect_zeroes: DetectZeroes,
    /// The driver, with what it alone understands.
    pub kind: NodeKind,
}

/// The driver of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// `file` and `host_device`.
    File(FileOptions),
    /// `raw`.
    Raw(RawOptions),
}

/// A host file or block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// The driver's name, as it was given.
    pub driver: &'static str,
    /// Path of the file.
    pub filename: String,
    /// Whether the image is locked against other processes.
    pub locking: Locking,
}

/// A node without format, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawOptions {
    /// First byte that is shown.
    pub offset: u64,
    /// Bytes that are shown; all to the end if not given.
    pub size: Option<u64>,
    /// The node below.
    pub file: ChildRef,
}

/// A node below another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildRef {
    /// One that exists, by name.
    Node(String),
    /// One that is made with its parent, and goes with it.
    Inline(Box<NodeOptions>),
}

/// What a device model is wanted for a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// None: a `-device` names the drive.
    None,
    /// The machine makes a virtio-blk device for it.
    Virtio,
}

/// A `-drive`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveOptions {
    /// The id.
    pub id: Option<String>,
    /// The device model; the machine's own choice if not given.
    pub interface: Option<Interface>,
    /// Its place among the drives of this interface.
    pub index: Option<u64>,
    /// Whether the guest sees a volatile write cache. Without, each write is durable when it completes.
    pub write_cache: bool,
    /// The format node, with the file below it.
    pub node: NodeOptions,
}

/// What a nested node takes over from the node above it.
#[derive(Clone, Copy)]
struct Inherited {
    read_only: bool,
    auto_read_only: bool,
    cache: CacheOptions,
    discard: Discard,
}

const DRIVERS: [(&str, &str); 3] = [("file", "file"), ("host_device", "host_device"), ("raw", "raw")];
const DISCARD: [(&str, Discard); 4] =
    [("ignore", Discard::Ignore), ("off", Discard::Ignore), ("unmap", Discard::Unmap), ("on", Discard::Unmap)];
const DETECT_ZEROES: [(&str, DetectZeroes); 3] =
    [("off", DetectZeroes::Off), ("on", DetectZeroes::On), ("unmap", DetectZeroes::Unmap)];
const LOCKING: [(&str, Locking); 3] = [("auto", Locking::Auto), ("on", Locking::On), ("off", Locking::Off)];

impl NodeOptions {
    /// Reads a `-blockdev`, or the arguments of `blockdev-add`.
    pub fn from_options(mut options: Options) -> Result<Self, OptionError> {
        let inherited = Inherited {
            read_only: false,
            auto_read_only: false,
            cache: CacheOptions::default(),
            discard: Discard::Ignore,
        };
        let node = Self::take(&mut options, inherited)?;
        options.finish()?;
        Ok(node)
    }

    /// Takes a node's keys. The driver's own come last, because what a node hands down must be known first.
    fn take(options: &mut Options, inherited: Inherited) -> Result<Self, OptionError> {
        let driver = options.take_choice("driver", &DRIVERS)?.ok_or_else(|| options.missing("driver"))?;
        let node_name = options.take_str("node-name")?;
        let given = Inherited {
            read_only: options.take_bool("read-only")?.unwrap_or(inherited.read_only),
            auto_read_only: options.take_bool("auto-read-only")?.unwrap_or(inherited.auto_read_only),
            cache: take_cache(options, inherited.cache)?,
            discard: options.take_choice("discard", &DISCARD)?.unwrap_or(inherited.discard),
        };
        let detect_zeroes = take_detect_zeroes(options, given.discard)?;
        let kind = match driver {
            "raw" => NodeKind::Raw(RawOptions::take(options, given)?),
            driver => NodeKind::File(FileOptions::take(options, driver)?),
        };
        let Inherited { read_only, auto_read_only, cache, discard } = given;
        Ok(Self { node_name, read_only, auto_read_only, cache, discard, detect_zeroes, kind })
    }
}

fn take_cache(options: &mut Options, default: CacheOptions) -> Result<CacheOptions, OptionError> {
    Ok(CacheOptions {
        direct: options.take_bool("cache.direct")?.unwrap_or(default.direct),
        no_flush: options.take_bool("cache.no-flush")?.unwrap_or(default.no_flush),
    })
}

fn take_detect_zeroes(options: &mut Options, discard: Discard) -> Result<DetectZeroes, OptionError> {
    let detect = options.take_choice("detect-zeroes", &DETECT_ZEROES)?.unwrap_or_default();
    if detect == DetectZeroes::Unmap && discard == Discard::Ignore {
        return Err(options.reject("detect-zeroes", "unmap", "it is not allowed without discard=unmap"));
    }
    Ok(detect)
}

impl FileOptions {
    fn take(options: &mut Options, driver: &'static str) -> Result<Self, OptionError> {
        let filename = options.require_str("filename")?;
        let locking = options.take_choice("locking", &LOCKING)?.unwrap_or_default();
        take_aio(options)?;
        check_filename(options, "filename", &filename)?;
        Ok(Self { driver, filename, locking })
    }
}

/// The only way of doing I/O so far; the others are refused by name.
fn take_aio(options: &mut Options) -> Result<(), OptionError> {
    options.take_choice("aio", &[("threads", ())]).map(drop)
}

fn check_filename(options: &Options, key: &str, filename: &str) -> Result<(), OptionError> {
    if filename.is_empty() || filename.contains('\0') {
        return Err(options.reject(key, filename, "the path of a file is expected"));
    }
    Ok(())
}

impl RawOptions {
    fn take(options: &mut Options, above: Inherited) -> Result<Self, OptionError> {
        let (offset, size) = take_window(options)?;
        // What is filtered out is filtered out above: the file gives back whatever discards reach it.
        let inherited = Inherited { discard: Discard::Unmap, ..above };
        let file = match options.take_str("file")? {
            Some(name) if !options.contains("file") => ChildRef::Node(name),
            Some(_) => return Err(options.fail(Problem::Inconsistent { key: options.path("file") })),
            None => {
                let mut nested = options.take_group("file")?.ok_or_else(|| options.missing("file"))?;
                let node = NodeOptions::take(&mut nested, inherited)?;
                nested.finish()?;
                ChildRef::Inline(Box::new(node))
            }
        };
        Ok(Self { offset, size, file })
    }
}

fn take_window(options: &mut Options) -> Result<(u64, Option<u64>), OptionError> {
    let offset = options.take_size("offset")?.unwrap_or(0);
    let size = options.take_size("size")?;
    match size {
        Some(bytes) if !bytes.is_multiple_of(crate::SECTOR_SIZE) => {
            Err(options.reject("size", &bytes.to_string(), "Specified size is not multiple of 512"))
        }
        _ => Ok((offset, size)),
    }
}

/// `cache=` of `-drive`: write cache, and how the host's is used.
const CACHE_MODES: [(&str, (bool, CacheOptions)); 5] = [
    ("writeback", (true, CacheOptions { direct: false, no_flush: false })),
    ("none", (true, CacheOptions { direct: true, no_flush: false })),
    ("writethrough", (false, CacheOptions { direct: false, no_flush: false })),
    ("directsync", (false, CacheOptions { direct: true, no_flush: false })),
    ("unsafe", (true, CacheOptions { direct: false, no_flush: true })),
];

impl DriveOptions {
    /// Reads a `-drive`.
    pub fn from_options(mut options: Options) -> Result<Self, OptionError> {
        let o = &mut options;
        let filename = o.take_str("file")?;
        let id = o.take_id("id")?;
        let interface = o.take_choice("if", &[("none", Interface::None), ("virtio", Interface::Virtio)])?;
        let index = o.take_u64("index", 0..=u64::from(u16::MAX))?;
        o.take_choice("media", &[("disk", ())])?;
        let format = take_format(o)?;
        let node_name = o.take_str("node-name")?;
        let read_only = o.take_bool("readonly")?.unwrap_or(false) | o.take_bool("read-only")?.unwrap_or(false);
        let auto_read_only = o.take_bool("auto-read-only")?.unwrap_or(false);
        let mode = o.take_choice("cache", &CACHE_MODES)?.unwrap_or(CACHE_MODES[0].1);
        let cache = take_cache(o, mode.1)?;
        let write_cache = o.take_bool("cache.writeback")?.unwrap_or(mode.0);
        let discard = o.take_choice("discard", &DISCARD)?.unwrap_or_default();
        let detect_zeroes = take_detect_zeroes(o, discard)?;
        if o.take_bool("snapshot")? == Some(true) {
            return Err(o.reject("snapshot", "on", "temporary snapshots are not offered; use a copy of the image"));
        }
        take_aio(o)?;
        let above = Inherited { read_only, auto_read_only, cache, discard: Discard::Unmap };
        let file = take_drive_file(o, filename, above)?;
        let (offset, size) = take_window(o)?;
        options.finish()?;
        let RawFormat = format;
        let kind = NodeKind::Raw(RawOptions { offset, size, file: ChildRef::Inline(Box::new(file)) });
        let node = NodeOptions { node_name, read_only, auto_read_only, cache, discard, detect_zeroes, kind };
        Ok(Self { id, interface, index, write_cache, node })
    }
}

/// The formats that a `-drive` can name: one, so far.
#[derive(Clone, Copy)]
struct RawFormat;

/// `format`, or `driver`, which means the same. Never guessed: a guest could write another format's header into a raw
/// image, and have the host open files of the guest's choice the next time.
fn take_format(options: &mut Options) -> Result<RawFormat, OptionError> {
    let format = options.take_choice("format", &[("raw", RawFormat)])?;
    let driver = options.take_choice("driver", &[("raw", RawFormat)])?;
    let reason = "the format of an image is never guessed, say format=raw";
    format.or(driver).ok_or_else(|| options.fail(Problem::MissingBecause { key: "format".to_owned(), reason }))
}

/// The file of a drive: `file=PATH`, or `file.filename=PATH`, with more `file.` options beside either.
fn take_drive_file(
    options: &mut Options,
    filename: Option<String>,
    above: Inherited,
) -> Result<NodeOptions, OptionError> {
    let nested = options.take_group("file")?;
    let Some(mut nested) = nested.or_else(|| filename.is_some().then(|| Options::new(options.context()))) else {
        return Err(options.missing("file"));
    };
    if let Some(filename) = filename {
        check_filename(options, "file", &filename)?;
        if nested.contains("filename") {
            return Err(options.fail(Problem::Inconsistent { key: "file".to_owned() }));
        }
        nested.push("filename", cardcage_options::Value::Text(filename));
    }
    if !nested.contains("driver") {
        nested.push("driver", cardcage_options::Value::Text("file".to_owned()));
    }
    let node = NodeOptions::take(&mut nested, above)?;
    nested.finish()?;
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blockdev(text: &str) -> Result<NodeOptions, String> {
        let options = Options::parse("-blockdev", text, Some("driver")).map_err(|e| e.to_string())?;
        NodeOptions::from_options(options).map_err(|e| e.to_string())
    }

    fn drive(text: &str) -> Result<DriveOptions, String> {
        let options = Options::parse("-drive", text, None).map_err(|e| e.to_string())?;
        DriveOptions::from_options(options).map_err(|e| e.to_string())
    }

    fn inline(node: &NodeOptions) -> &NodeOptions {
        match &node.kind {
            NodeKind::Raw(RawOptions { file: ChildRef::Inline(file), .. }) => file,
            other => panic!("no nested node: {other:?}"),
        }
    }

    #[test]
    fn key_value_and_json_say_the_same() {
        let text = "driver=raw,node-name=r0,offset=1M,size=4096,cache.direct=on,file.driver=file,file.filename=a.img";
        let json = r#"{"driver": "raw", "node-name": "r0", "offset": 1048576, "size": 4096, "cache": {"direct": true},
            "file": {"driver": "file", "filename": "a.img"}}"#;
        assert_eq!(blockdev(text), blockdev(json));
        assert!(blockdev(text).is_ok());
    }

    #[test]
    fn a_nested_node_takes_over_what_it_does_not_say_itself() {
        let node = blockdev(
            "raw,node-name=r,read-only=on,cache.direct=on,file.driver=file,file.filename=a,file.cache.direct=off",
        );
        let node = node.unwrap();
        let file = inline(&node);
        assert!(file.read_only && !file.cache.direct && node.cache.direct);
        assert_eq!((node.discard, file.discard), (Discard::Ignore, Discard::Unmap));
    }

    #[test]
    fn cache_modes_of_a_drive_are_defaults_that_single_options_override() {
        let mode = |text: &str| {
            let drive = drive(&format!("file=a,format=raw,{text}")).unwrap();
            let cache = inline(&drive.node).cache;
            (drive.write_cache, cache.direct, cache.no_flush)
        };
        assert_eq!(mode("if=none"), (true, false, false));
        assert_eq!(mode("cache=none"), (true, true, false));
        assert_eq!(mode("cache=writethrough"), (false, false, false));
        assert_eq!(mode("cache=directsync"), (false, true, false));
        assert_eq!(mode("cache=unsafe"), (true, false, true));
        assert_eq!(mode("cache=none,cache.direct=off"), (true, false, false));
    }

    #[test]
    fn a_drive_can_give_options_to_its_file() {
        let drive = drive("file=a,,b.img,format=raw,file.locking=off,id=d0,if=virtio").unwrap();
        let file = match &inline(&drive.node).kind {
            NodeKind::File(file) => file.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(file, FileOptions { driver: "file", filename: "a,b.img".into(), locking: Locking::Off });
        assert_eq!((drive.id.as_deref(), drive.interface), (Some("d0"), Some(Interface::Virtio)));
    }

    #[test]
    fn errors_name_the_option_the_value_and_what_is_allowed() {
        let cases = [
            (
                "file=a",
                "-drive: Parameter 'format' is missing: the format of an image is never guessed, say format=raw",
            ),
            ("format=raw", "-drive: Parameter 'file' is missing"),
            ("file=a,format=qcow2", "-drive: Parameter 'format' does not accept value 'qcow2'; allowed: raw"),
            (
                "file=a,format=raw,cache=nome",
                "-drive: Parameter 'cache' does not accept value 'nome', did you mean 'none'?",
            ),
            ("file=a,format=raw,if=ide", "-drive: Parameter 'if' does not accept value 'ide'; allowed: none, virtio"),
            (
                "file=a,format=raw,aio=io_uring",
                "-drive: Parameter 'aio' does not accept value 'io_uring'; allowed: threads",
            ),
            ("file=a,format=raw,readonyl=on", "-drive: Invalid parameter 'readonyl', did you mean 'readonly'?"),
            (
                "file=a,format=raw,file.lockin=on",
                "-drive: Invalid parameter 'file.lockin', did you mean 'file.locking'?",
            ),
            (
                "file=a,format=raw,snapshot=on",
                "-drive: Parameter 'snapshot' does not accept value 'on': temporary snapshots are not offered; \
                 use a copy of the image",
            ),
            (
                "file=a,format=raw,detect-zeroes=unmap",
                "-drive: Parameter 'detect-zeroes' does not accept value 'unmap': it is not allowed without discard=unmap",
            ),
            ("file=,format=raw", "-drive: Parameter 'file' does not accept value '': the path of a file is expected"),
        ];
        for (text, error) in cases {
            assert_eq!(drive(text), Err(error.to_owned()), "{text}");
        }
        let cases = [
            ("fiel,filename=a", "-blockdev: Parameter 'driver' does not accept value 'fiel', did you mean 'file'?"),
            ("raw,node-name=r", "-blockdev: Parameter 'file' is missing"),
            ("raw,file=f,file.driver=file", "-blockdev: Parameters 'file.*' used inconsistently"),
            ("raw,file.driver=file", "-blockdev: Parameter 'file.filename' is missing"),
            (
                "raw,file=f,size=100",
                "-blockdev: Parameter 'size' does not accept value '100': Specified size is not multiple of 512",
            ),
        ];
        for (text, error) in cases {
            assert_eq!(blockdev(text), Err(error.to_owned()), "{text}");
        }
    }

    fn words() -> impl Strategy<Value = String> {
        let key = prop::sample::select(vec![
            "driver",
            "file",
            "file.driver",
            "file.filename",
            "file.file",
            "filename",
            "node-name",
            "format",
            "if",
            "id",
            "cache",
            "cache.direct",
            "discard",
            "detect-zeroes",
            "size",
            "offset",
            "read-only",
            "aio",
            "snapshot",
        ]);
        let value =
            prop::sample::select(vec!["raw", "file", "on", "off", "none", "a,,b", "1", "1.5G", "unmap", "", "x"]);
        prop::collection::vec((key, value), 0..10)
            .prop_map(|words| words.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","))
    }

    proptest! {
        #[test]
        fn any_words_make_options_or_an_error_with_a_text(text in words()) {
            for result in [blockdev(&text).map(drop), drive(&text).map(drop)] {
                if let Err(error) = result {
                    prop_assert!(error.starts_with('-') && error.len() > 20, "{error}");
                }
            }
        }
    }
}
