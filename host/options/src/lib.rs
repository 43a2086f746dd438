//! Option strings as a user types them: `-drive file=a.img,format=raw`, `-device {"driver":"e1000"}`.
//!
//! One syntax serves `-drive`, `-blockdev`, `-chardev`, `-device`, `-netdev`, `-machine` and their QMP counterparts:
//!
//! * `a=b,c=d`; `,,` inside a value is one comma; later values of a key override earlier ones;
//! * the first word may lack its key, if the option has an *implied* one (`-device e1000` is `driver=e1000`);
//! * `key` alone means `key=on` and `nokey` means `key=off`, as in QEMU, with QEMU's warning that this is old style;
//! * a value that starts with `{` is a JSON object, whose values keep their JSON types;
//! * dots nest: `file.driver=file` is `{"file": {"driver": "file"}}`.
//!
//! A reader *takes* the keys that it knows, by type, and says [`Options::finish`] at the end. What is left then is
//! unknown, and what was asked for is the list of suggestions: there is no second list of names to keep.
//!
//! ```
//! use cardcage_options::{Options, Size};
//! let mut o = Options::parse("-drive", "file=a,,b.img,format=raw,size=1.5G", None).unwrap();
//! assert_eq!(o.take_str("file").unwrap().as_deref(), Some("a,b.img"));
//! assert_eq!(o.take_choice("format", &[("raw", 1), ("qcow2", 2)]).unwrap(), Some(1));
//! assert_eq!(o.take_size("size").unwrap(), Some(1536 << 20));
//! assert_eq!(Size(1536 << 20).to_string(), "1.5 GiB");
//! o.finish().unwrap();
//!
//! let mut o = Options::parse("-drive", "fiel=a.img", None).unwrap();
//! o.take_str("file").unwrap();
//! assert_eq!(o.finish().unwrap_err().to_string(), "-drive: Invalid parameter 'fiel', did you mean 'file'?");
//! ```

mod error;
mod json;
mod options;
mod parse;
mod size;

pub use error::{OptionError, Problem, nearest};
pub use options::{Options, Pair, Value};
pub use parse::is_identifier;
pub use size::{Size, SizeError, parse_size};
