//! What can be wrong before a machine starts: one clear message each, the documented exit status, nothing left behind.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cardcage_tests::{Cage, kernel, program, program_with, run, skip, stranger, tool};
use tempfile::TempDir;

/// Exit status of a command line that makes no sense.
const USAGE: i32 = 2;
/// Exit status of everything else that goes wrong.
const ERROR: i32 = 1;

/// A folder that must be as it was after each failed start.
struct Lab {
    program: PathBuf,
    folder: TempDir,
}

impl Lab {
    fn new() -> Option<Self> {
        Some(Self { program: program()?, folder: tempfile::tempdir().unwrap() })
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.folder.path().join(name), content).unwrap();
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn names(&self) -> Vec<PathBuf> {
        let mut names: Vec<_> = std::fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        names
    }

    /// Starts a machine that cannot start. Every mistake of the table is made beside options that would leave a socket
    /// and a file behind.
    #[track_caller]
    fn check(&self, args: &str, status: i32, parts: &[&str]) {
        self.check_words(&args.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>(), status, parts);
    }

    #[track_caller]
    fn check_words(&self, args: &[&str], status: i32, parts: &[&str]) {
        if let Err(complaint) = self.examine(args, status, parts) {
            panic!("{complaint}");
        }
    }

    /// Goes through a whole table before it fails.
    #[track_caller]
    fn check_all<'a>(&self, table: impl IntoIterator<Item = (&'a str, i32, &'a [&'a str])>) {
        let check = |(args, status, parts): (&str, i32, &[&str])| {
            self.examine(&args.split(' ').collect::<Vec<_>>(), status, parts).err()
        };
        let complaints: Vec<_> = table.into_iter().filter_map(check).collect();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }

    fn examine(&self, args: &[&str], status: i32, parts: &[&str]) -> Result<(), String> {
        let before = self.names();
        let socket = format!("unix:{},server=on,wait=off", self.path("left.sock"));
        let with_accel = args.iter().any(|a| a.contains("accel") || *a == "-kernel");
        let accel: &[&str] = if with_accel { &[] } else { &["-accel", "qtest"] };
        let all = args.iter().chain(accel).copied().chain(["-qmp", &socket]);
        let ended = run(&self.program, all);
        let text = ended.stderr.trim_end();
        let missing = parts.iter().find(|part| !text.contains(**part));
        let complaint = match missing {
            _ if ended.status != status => format!("exit status {}, not {status}", ended.status),
            _ if !ended.stdout.is_empty() => format!("something on standard output: {}", ended.stdout),
            // Disks that are in use come with a second line, a remedy.
            _ if !text.starts_with("cardcage: ") || text.lines().count() > 2 || text.len() > 700 => {
                "no clear message".into()
            }
            Some(part) => format!("'{part}' is not in the message"),
            None if self.names() != before => format!("left behind: {:?}", self.names()),
            None => return Ok(()),
        };
        Err(format!("after {}: {complaint}; it says\n    {text}", args.join(" ")))
    }
}

#[test]
fn wrong_options_are_named_with_what_is_right() {
    let Some(lab) = Lab::new() else { return };
    let table: &[(&str, &[&str])] = &[
        ("-devise isa-serial", &["-devise", "did you mean '-device'?"]),
        ("--kernal x", &["-kernal", "'-kernel'"]),
        ("-qqqqqqqqqqqq", &["-qqqqqqqqqqqq", "-help"]),
        ("disk.img", &["disk.img", "no option"]),
        ("-kernel", &["-kernel", "value"]),
        ("-m 0", &["-m", "0", "128M"]),
        ("-m lots", &["-m", "lots"]),
        ("-m 12Q", &["-m", "12Q"]),
        ("-m -5", &["-5"]),
        ("-m 99999999999999999999", &["-m", "99999999999999999999"]),
        ("-smp 0", &["-smp", "0"]),
        ("-smp many", &["-smp", "many"]),
        ("-smp 1,corse=2", &["-smp", "corse"]),
        ("-accel kvn", &["-accel", "kvn", "kvm"]),
        ("-accel soft,thred=multi", &["-accel", "thred"]),
        ("-M pcc", &["-machine", "pcc", "'pc'"]),
        ("-M pc,acell=soft", &["-machine", "acell"]),
        ("-uuid 1234", &["-uuid", "1234"]),
        ("-uuid zzzzzzzz-0000-0000-0000-000000000000", &["-uuid", "zzzzzzzz"]),
        ("-display gtk", &["-display", "gtk", "none"]),
        ("-audio alsa", &["-audio", "alsa", "none"]),
        ("-chardev sockit,id=c", &["sockit", "socket"]),
        ("-chardev socket,id=c,path=x,pth=x", &["pth"]),
        ("-chardev file,id=c", &["path"]),
        ("-chardev null", &["id"]),
        ("-drive fil=x,format=raw", &["fil"]),
        ("-drive file=x,format=raw,if=scsy", &["scsy"]),
        ("-drive file=x,format=raw,cache=of", &["cache", "of"]),
        ("-blockdev driver=rawr,node-name=n", &["rawr", "raw"]),
        ("-blockdev driver=file,filename=x", &["node-name"]),
        ("-serial nothing", &["-serial", "nothing"]),
        ("-serial null -serial null -serial null -serial null -serial null", &["-serial", "4", "5"]),
        ("-qmp nothing", &["-qmp", "nothing"]),
        ("-qmp mon:stdio", &["-qmp", "mon:"]),
        ("-mon chardev=c,mode=readline -chardev null,id=c", &["-mon", "mode=control"]),
        ("-mon mode=control", &["-mon", "chardev"]),
        ("-device", &["-device", "value"]),
        ("-device ,id=x", &["''", "device model"]),
        ("-device isa-cereal", &["isa-cereal", "isa-serial"]),
        ("-device isa-cereal,help", &["isa-cereal", "isa-serial"]),
        ("-device isa-debug-exit,iobas=1", &["isa-debug-exit.iobas", "'iobase'"]),
        ("-device isa-debug-exit,iobase=here", &["isa-debug-exit.iobase", "here"]),
        ("-device isa-debug-exit,iobase=70000", &["isa-debug-exit.iobase", "70000", "65535"]),
        ("-device isa-debug-exit,iosize=9", &["isa-debug-exit.iosize", "9", "from 1 to 4 bytes"]),
        ("-device isa-serial,chardev=nobody -nodefaults", &["nobody"]),
        ("-device isa-debugcon", &["isa-debugcon.chardev", "required"]),
        ("-device isa-debug-exit,bus=pci.0", &["isa-debug-exit", "PCI"]),
        ("-device isa-debug-exit,bus=usb.0", &["usb.0", "isa.0"]),
        ("-device isa-debug-exit,id=a -device pvpanic,id=a", &["'a'", "-device pvpanic"]),
        ("-device isa-debug-exit,id=4x", &["4x", "id"]),
        ("-device virtio-rng-pci,addr=20", &["addr", "20"]),
        ("-device virtio-rng-pci,addr=5.9", &["addr", "5.9"]),
        ("-plugin-set", &["-plugin-set", "value"]),
    ];
    // A missing chardev is found by the plugin, which refuses.
    let status = |args: &str| if args.contains("nobody") { ERROR } else { USAGE };
    lab.check_all(table.iter().map(|(args, parts)| (*args, status(args), *parts)));
    lab.check_words(&["-device", "{\"driver\": \"isa-debug-exit\", \"iobase\": }"], USAGE, &["-device"]);
    lab.check_words(&["-device", "{\"driver\": \"isa-debug-exit\", \"iobase\": true}"], USAGE, &["iobase", "true"]);
}

#[test]
fn what_does_not_fit_together_is_named() {
    let Some(lab) = Lab::new() else { return };
    let table: &[(&str, &[&str])] = &[
        ("-device isa-debug-exit,id=a -device isa-debug-exit,id=b", &["isa-debug-exit", "0x501", "a"]),
        ("-device isa-debug-exit,id=a -device pvpanic,ioport=0x502", &["pvpanic", "0x502", "a"]),
        ("-device virtio-rng-pci,addr=6 -device virtio-rng-pci,addr=6", &["virtio-rng-pci", "slot 6 function 0"]),
        ("-device virtio-rng-pci,addr=1", &["virtio-rng-pci", "slot 1 function 0"]),
        ("-nodefaults -chardev null,id=c -chardev null,id=c", &["'c'"]),
        ("-nodefaults -chardev null,id=c -device isa-serial,chardev=c -device isa-serial,chardev=c", &["'c'"]),
        ("-mon chardev=nobody,mode=control", &["nobody"]),
        ("-serial chardev:nobody", &["nobody"]),
    ];
    lab.check_all(table.iter().map(|(args, parts)| (*args, ERROR, *parts)));
}

#[test]
fn a_kernel_that_cannot_be_one_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let start = |kernel: &str, parts: &[&str]| {
        lab.check(&format!("-accel soft -nodefaults -kernel {kernel}"), ERROR, &[&[kernel], parts].concat());
    };
    start("/nonexistent/bzImage", &["No such file", "check the path"]);
    start(&lab.path(""), &["directory"]);
    start(&lab.file("empty", b""), &["kernel"]);
    start(&lab.file("text", b"#!/bin/sh\necho this is no kernel\n"), &["no kernel", "bzImage"]);
    start(&lab.file("zeros", &[0; 1 << 16]), &["no kernel"]);
    start(&lab.file("arm64", &arm64_image()), &["arm64", "x86-64"]);
    start(&lab.file("aarch64.elf", &elf(183)), &["x86-64"]);
    start(&lab.file("riscv.elf", &elf(243)), &["x86-64"]);
    start(&std::env::current_exe().unwrap().display().to_string(), &["ELF", "PVH"]);
    lab.check("-accel soft -nodefaults", ERROR, &["-kernel"]);
}

/// A header as arm64 kernels have it (Documentation/arch/arm64/booting.rst).
fn arm64_image() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    image
}

/// The header of an executable for another machine.
fn elf(machine: u16) -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image[16..18].copy_from_slice(&2u16.to_le_bytes());
    image[18..20].copy_from_slice(&machine.to_le_bytes());
    image[20..24].copy_from_slice(&1u32.to_le_bytes());
    image[52..54].copy_from_slice(&64u16.to_le_bytes());
    image
}

#[test]
fn a_kernel_or_ramdisk_that_does_not_fit_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let Some((kernel, initrd)) = kernel() else { return };
    let whole = std::fs::read(&kernel).unwrap();
    for len in [0x210, 0x1000, whole.len() / 2, whole.len() - 4096] {
        let cut = lab.file("cut", &whole[..len]);
        lab.check(&format!("-accel soft -nodefaults -kernel {cut}"), ERROR, &[&cut]);
    }
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 4096].fill(0x55);
    let damaged = lab.file("damaged", &damaged);
    lab.check(&format!("-accel soft -nodefaults -kernel {damaged}"), ERROR, &[&damaged, "damaged"]);

    let kernel = kernel.display().to_string();
    lab.check(&format!("-accel soft -nodefaults -m 8M -kernel {kernel}"), ERROR, &[&kernel, "-m"]);
    lab.check(
        &format!("-accel soft -nodefaults -kernel {kernel} -initrd /nonexistent/initrd"),
        ERROR,
        &["/nonexistent/initrd", "No such file"],
    );
    let large = lab.path("large");
    File::create(&large).unwrap().set_len(300 << 20).unwrap();
    lab.check(&format!("-accel soft -nodefaults -m 256M -kernel {kernel} -initrd {large}"), ERROR, &[&large, "-m"]);
    let long = "x".repeat(5000);
    lab.check_words(
        &[
            "-accel",
            "soft",
            "-nodefaults",
            "-kernel",
            &kernel,
            "-initrd",
            &initrd.display().to_string(),
            "-append",
            &long,
        ],
        ERROR,
        &["5000"],
    );
    lab.check(&format!("-accel soft -cpu pentium17 -nodefaults -kernel {kernel}"), USAGE, &["-cpu", "pentium17"]);
    lab.check(&format!("-accel soft -cpu max,+warp -nodefaults -kernel {kernel}"), USAGE, &["-cpu", "warp"]);
}

#[test]
fn memory_that_the_host_does_not_have_is_refused() {
    let Some(lab) = Lab::new() else { return };
    lab.check("-nodefaults -m 100T", ERROR, &["109951162777600", "-m"]);
    lab.check("-nodefaults -m 8E", ERROR, &["-m"]);
    lab.check("-nodefaults -m 16E", USAGE, &["-m", "16E"]);
}

#[test]
fn a_file_that_is_no_plugin_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let good = stranger::stranger();
    let bytes = std::fs::read(&good).unwrap();
    let plugin = |file: &str, parts: &[&str]| {
        lab.check(&format!("-nodefaults --plugin {file}"), ERROR, &[&[file], parts].concat());
        let ended = run(&lab.program, ["plugin", "list", "--plugin", file]);
        assert_eq!((ended.status, ended.stderr.lines().count()), (ERROR, 1), "{}", ended.stderr);
    };
    plugin("/nonexistent/lib.so", &["No such file"]);
    plugin(&lab.path(""), &["not a regular file"]);
    plugin(&lab.file("text.so", b"this is no plugin\n"), &["not a cardcage plugin"]);
    plugin(&lab.file("empty.so", b""), &["not a cardcage plugin"]);
    plugin(&lab.file("half.so", &bytes[..bytes.len() / 2]), &["truncated"]);
    plugin(&lab.file("head.so", &bytes[..100]), &["truncated"]);
    plugin(&lab.file("other.so", &elf(183)), &["not an x86-64 shared library"]);
    if let Some(libc) =
        ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6"].into_iter().find(|p| Path::new(p).is_file())
    {
        plugin(libc, &["has no symbol cardcage_plugin_v1"]);
    }
    // A file in a folder, which nobody has named, is a remark and no more.
    let ended = run(&lab.program, ["plugin", "list", "--json", "--plugin-dir", &lab.path("")]);
    assert_eq!(ended.status, 0);
    let list: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let refused = list.as_array().unwrap().iter().filter(|p| p["state"] == "refused").count();
    assert_eq!(refused, 5, "{list:#}");
}

#[test]
fn plugins_that_contend_for_a_name_are_told_apart() {
    let Some(lab) = Lab::new() else { return };
    let good = stranger::stranger();
    let copy = lab.path("copy.so");
    std::fs::copy(&good, &copy).unwrap();
    let first = good.display().to_string();

    // Two files with one plugin: the first counts, the other is shadowed.
    let ended = run(&lab.program, ["plugin", "list", "--json", "--plugin", &first, "--plugin-dir", &lab.path("")]);
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    let list: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let entry =
        |file: &str| list.as_array().unwrap().iter().find(|p| p["file"] == file).cloned().expect("it is listed");
    assert_eq!(entry(&first)["state"], "loaded");
    assert_eq!(entry(&copy)["state"], "shadowed");
    assert!(entry(&copy)["reason"].as_str().unwrap().contains(&first), "{list:#}");

    // Two plugins with one device: the second cannot be used.
    let rival = stranger::Variant::rival();
    let rival = rival.plugin().display().to_string();
    // A file that is of no use does not stand in for those that come after it.
    let after = lab.path("rival.so");
    std::fs::copy(&rival, &after).unwrap();
    let ended = run(&lab.program, ["plugin", "list", "--json", "--plugin", &first, "--plugin-dir", &lab.path("")]);
    let list: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let entry = list.as_array().unwrap().iter().find(|p| p["file"] == after.as_str()).expect("it is listed");
    assert_eq!(entry["state"], "refused", "{list:#}");
    assert!(entry["reason"].as_str().unwrap().contains("'stranger-dice'"), "{list:#}");

    let parts = ["rival", "'stranger-dice'", "plugin 'stranger'", &first, "load only one"];
    lab.check(&format!("-nodefaults --plugin {first} --plugin {rival}"), ERROR, &parts);
}

#[test]
fn a_plugin_set_that_cannot_be_met_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let plugin = stranger::stranger().display().to_string();
    let set = |content: &str, parts: &[&str]| {
        let set = lab.file("set.toml", content.as_bytes());
        lab.check(&format!("-nodefaults --plugin-set {set} --plugin {plugin}"), ERROR, &[&[&*set], parts].concat());
    };
    set("[[plugin]]\nname = \"stranger\"\n[[plugin]]\nname = \"absent\"\n", &["'absent'", "not found"]);
    set("[[plugin]]\nname = \"stranger\"\nversion = \"9.9.9\"\n", &["stranger", "0.3.0", "9.9.9"]);
    let hash = "0123456789abcdef".repeat(4);
    set(&format!("[[plugin]]\nname = \"stranger\"\nsha256 = \"{hash}\"\n"), &["stranger", "sha256", &hash]);
    set("[[plugin]]\nname = \"stranger\"\nsha256 = \"12\"\n", &["'12'", "64 hexadecimal digits"]);
    set("[[plugin]]\nname = \"stranger\"\n[[plugin]]\nname = \"stranger\"\n", &["listed twice"]);
    set("[[plugin]]\nname = 5\n", &["line 2"]);
    set("[[plugin]]\nnom = \"stranger\"\n", &["line 2", "nom"]);
    set("[plugin", &["line 1"]);
    set("\u{0}", &["line 1"]);
    set("", &["stranger", "is not in the plugin set"]);
    lab.check("-nodefaults --plugin-set /nonexistent.toml", ERROR, &["/nonexistent.toml", "No such file"]);

    // What the set leaves out is not there.
    let only = lab.file("only.toml", b"[[plugin]]\nname = \"stranger\"\n");
    let args = ["-plugin-set", &only, "-plugin", &plugin, "-device", "help"];
    let ended = run(&lab.program, args);
    let names: Vec<_> = ended.stdout.lines().filter_map(|l| l.strip_prefix("name \"")).collect();
    assert_eq!(names.len(), 2, "{}", ended.stdout);
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let Some(lab) = Lab::new() else { return };
    let path = lab.path("used.sock");
    let listener = UnixListener::bind(&path).unwrap();
    lab.check(&format!("-nodefaults -qmp unix:{path},server=on,wait=off"), ERROR, &[&path, "in use"]);
    lab.check(&format!("-nodefaults -chardev socket,path={path},server=on,wait=off,id=c"), ERROR, &[&path, "in use"]);
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok(), "the socket of the other program still works");
    drop(listener);
    let gone = lab.path("nobody.sock");
    lab.check(&format!("-nodefaults -qmp unix:{gone}"), ERROR, &[&gone]);
    lab.check(
        &format!("-nodefaults -qmp unix:{},server=on,wait=off", lab.path("no/such/folder")),
        ERROR,
        &["no/such/folder"],
    );
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    lab.check(
        &format!("-nodefaults -qmp tcp:127.0.0.1:{port},server=on,wait=off"),
        ERROR,
        &[&port.to_string(), "in use"],
    );
    lab.check(&format!("-nodefaults -qmp unix:{},server=on,wait=off", lab.path(&"x".repeat(200))), ERROR, &["xxx"]);
}

#[test]
fn a_disk_that_cannot_be_used_is_refused() {
    let Some(lab) = Lab::new() else { return };
    if program_with(&["virtio-blk"]).is_none() {
        return;
    }
    let disk =
        |options: &str, status: i32, parts: &[&str]| lab.check(&format!("-nodefaults -drive {options}"), status, parts);
    disk("file=/nonexistent.img,format=raw", ERROR, &["/nonexistent.img", "No such file"]);
    disk(&format!("file={},format=raw", lab.path("")), ERROR, &["directory"]);
    let image = lab.file("disk.img", &[0; 1 << 20]);
    disk(&format!("file={image},format=vhdx"), USAGE, &["vhdx", "raw"]);
    disk(&format!("file={image},format=raw,if=none,id=4x"), USAGE, &["4x"]);
    disk("if=none,id=d,format=raw", USAGE, &["file"]);
    lab.check("-nodefaults -device virtio-blk-pci", USAGE, &["virtio-blk-pci.drive", "required"]);
    lab.check("-nodefaults -device virtio-blk-pci,drive=nobody", ERROR, &["nobody"]);
    lab.check(
        &format!("-nodefaults -drive file={image},format=raw,if=none,id=d -drive file={image},format=raw,if=none,id=d"),
        ERROR,
        &["'d'"],
    );
    lab.check(&format!("-nodefaults -drive file={image},format=raw,if=none,id=d -device virtio-blk-pci,drive=d -device virtio-blk-pci,drive=d"), ERROR, &["'d'"]);
    lab.check(
        &format!("-nodefaults -drive file={image},format=raw,if=none,id=d -device virtio-blk-pci,drive=d,num-queues=0"),
        USAGE,
        &["num-queues"],
    );

    // A format that is guessed is a way into the host: an image that says it is a qcow2 must be named as one.
    let mut content = vec![0; 1 << 20];
    content[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let trap = lab.file("trap.img", &content);
    disk(&format!("file={trap}"), USAGE, &["format="]);
}

#[test]
fn a_disk_without_permission_is_refused() {
    let Some(lab) = Lab::new() else { return };
    if rustix::process::geteuid().is_root() {
        return skip("root reads what is unreadable to others");
    }
    let image = lab.file("disk.img", &[0; 1 << 20]);
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o000)).unwrap();
    let args = format!("-nodefaults -drive file={image},format=raw,if=none,id=d");
    lab.check(&args, ERROR, &[&image, "Permission denied"]);
}

#[test]
fn a_disk_that_another_program_writes_is_refused() {
    let Some(lab) = Lab::new() else { return };
    if program_with(&["virtio-blk"]).is_none() || !tool("qemu-io") {
        return;
    }
    let image = lab.file("disk.img", &[0; 1 << 20]);
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", &image]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut holder = Cage::spawn(command);
    let mut input = holder.child().stdin.take().unwrap();
    input.write_all(b"write 0 512\n").unwrap();
    // Open for writing once the first byte has changed.
    let file = File::open(&image).unwrap();
    let mut byte = [0];
    while byte == [0] {
        assert!(holder.is_alive(), "qemu-io ends");
        std::thread::sleep(std::time::Duration::from_millis(10));
        file.read_exact_at(&mut byte, 0).unwrap();
    }
    lab.check(&format!("-nodefaults -drive file={image},format=raw"), ERROR, &[&image, "lock"]);
    input.write_all(b"quit\n").unwrap();
    holder.wait();

    // The other way round: qemu-img finds the disk of a machine that runs locked.
    let machine = cardcage_qtest_driver::Machine::start(
        &lab.program,
        ["-nodefaults".into(), "-drive".into(), format!("file={image},format=raw")],
    );
    let refused = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", &image]).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("lock"), "{text}");
    machine.shutdown();
    let mut file = OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all(&[1]).unwrap();
}

#[test]
fn a_tool_that_is_used_wrongly_says_so() {
    let Some(lab) = Lab::new() else { return };
    for (args, status, part) in [
        (&["plugin", "inspect", "isa-cereal"][..], USAGE, "isa-cereal"),
        (&["plugin", "lst"], USAGE, "lst"),
        (&["plugin", "inspect"], USAGE, "<NAME>"),
        (&["plugin", "list", "--jsn"], USAGE, "--json"),
    ] {
        let ended = run(&lab.program, args);
        assert_eq!((ended.status, ended.stdout.as_str()), (status, ""), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(part), "{args:?}: {}", ended.stderr);
    }
}
