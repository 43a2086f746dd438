//! Tables as a guest reads them: pointers, checksums, fields, the namespace; and what `iasl` makes of them.

use std::path::PathBuf;
use std::process::Command;

use super::*;

fn config() -> AcpiConfig {
    let isa = |name, hid, uid, resources| AcpiDevice { uid, resources, ..AcpiDevice::new(name, hid, AcpiBus::Isa) };
    let ports = |start, len| Resource::Ports { start, len };
    let virtio = AcpiDevice {
        uid: Some(0),
        resources: vec![
            Resource::Memory { start: 0xfeb0_0000, len: 0x200 },
            Resource::Interrupt { gsi: 16, edge: false, active_low: false },
        ],
        ..AcpiDevice::new("VR00", "LNRO0005", AcpiBus::System)
    };
    AcpiConfig {
        cpus: vec![0, 1, 300],
        lapic: 0xfee0_0000,
        ioapic: (0, 0xfec0_0000),
        pm: PowerManagement {
            base: 0x600,
            gpe0: 0xafe0,
            gpe0_len: 4,
            sci: 9,
            command_port: 0xb2,
            enable: 0xf1,
            disable: 0xf0,
            s5: 0,
            reset: (0xcf9, 6),
        },
        pci: Some(PciRoot {
            low: 0xc000_0000..0xfec0_0000,
            high: Some(0x80_0000_0000..0x100_0000_0000),
            interrupts: PciInterrupts { bridge: (1, 0), register: 0x60, choices: vec![5, 10, 11] },
        }),
        vga: false,
        devices: vec![
            isa("COM1", "PNP0501", Some(1), vec![ports(0x3f8, 8), Resource::IsaIrq(4)]),
            isa("RTC_", "PNP0B00", None, vec![ports(0x70, 2), Resource::IsaIrq(8)]),
            isa("KBD_", "PNP0303", None, vec![ports(0x60, 1), ports(0x64, 1), Resource::IsaIrq(1)]),
            isa("PEVT", "QEMU0001", None, vec![ports(0x505, 1)]),
            virtio,
        ],
    }
}

fn tables() -> AcpiTables {
    build(&config(), 0xe_0000).unwrap()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn the_root_pointer_leads_to_every_table() {
    let tables = tables();
    let rsdp = &tables.bytes[..36];
    assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    let at = |address: u64| &tables.bytes[(address - tables.address) as usize..];
    let xsdt = at(u64_at(rsdp, 24));
    assert_eq!((&xsdt[..4], u32_at(xsdt, 4)), (&b"XSDT"[..], 36 + 16));
    let listed: Vec<&[u8]> = [36, 44].map(|entry| &at(u64_at(xsdt, entry))[..4]).into();
    assert_eq!(listed, [b"FACP", b"APIC"]);
    let fadt = at(u64_at(xsdt, 36));
    assert_eq!(&at(u32_at(fadt, 40).into())[..4], b"DSDT");
    assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
    let facs = u64::from(u32_at(fadt, 36));
    assert_eq!((&at(facs)[..4], facs % 64, u64_at(fadt, 132)), (&b"FACS"[..], 0, 0));
    assert_eq!(tables.range().start, 0xe_0000);
    assert!(tables.range().end >= 0xe_0000 + tables.bytes.len() as u64);
}

#[test]
fn every_table_has_its_length_and_a_good_checksum() {
    let tables = tables();
    for (signature, _, len) in &tables.tables {
        let table = tables.table(signature).unwrap();
        assert_eq!(u32_at(table, 4), *len, "{signature:?}");
        if signature != b"FACS" {
            assert_eq!((sum(table), &table[10..24]), (0, &b"CRDCGECARDCAGE"[..]), "{signature:?}");
        }
    }
}

#[test]
fn the_fadt_says_where_power_management_is() {
    let tables = tables();
    let fadt = tables.table(b"FACP").unwrap();
    assert_eq!(u32_at(fadt, 46) & 0xffff, 9);
    assert_eq!((u32_at(fadt, 48), fadt[52], fadt[53]), (0xb2, 0xf1, 0xf0));
    assert_eq!((u32_at(fadt, 56), u32_at(fadt, 64), u32_at(fadt, 76)), (0x600, 0x604, 0x608));
    assert_eq!((u32_at(fadt, 80), &fadt[88..94]), (0xafe0, &[4, 2, 0, 4, 4, 0][..]));
    // Legacy devices, keyboard controller, no VGA.
    assert_eq!(fadt[109], 0b111);
    let flags = u32_at(fadt, 112);
    assert_eq!((flags & 1 << 20, flags & 1 << 4, flags >> 10 & 1), (0, 0, 1));
    assert_eq!((&fadt[116..120], u64_at(fadt, 120), fadt[128]), (&[1, 8, 0, 1][..], 0xcf9, 6));
    assert_eq!((&fadt[148..152], u64_at(fadt, 152)), (&[1, 32, 0, 2][..], 0x600));
    assert_eq!(fadt[108], 0x32);
    let mut bare = config();
    bare.devices.clear();
    let tables = build(&bare, 0xe_0000).unwrap();
    let fadt = tables.table(b"FACP").unwrap();
    assert_eq!((fadt[109], fadt[108]), (0b100101, 0));
}

#[test]
fn the_madt_lists_processors_the_io_apic_and_overrides() {
    let tables = tables();
    let madt = tables.table(b"APIC").unwrap();
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    let mut entries = Vec::new();
    let mut rest = &madt[44..];
    while let Some(&len) = rest.get(1) {
        let (entry, after) = rest.split_at(len.into());
        entries.push(entry);
        rest = after;
    }
    let expected: [&[u8]; 10] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[9, 16, 0, 0, 44, 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 5, 5, 0, 0, 0, 13, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 13, 0],
        &[2, 10, 0, 10, 10, 0, 0, 0, 13, 0],
        &[2, 10, 0, 11, 11, 0, 0, 0, 13, 0],
        &[4, 6, 255, 0, 0, 1],
    ];
    assert_eq!(entries, expected);
}

/// The package length at `at`: bytes it takes, and the value.
fn package_length(aml: &[u8], at: usize) -> (usize, usize) {
    let lead = usize::from(aml[at]);
    let more = lead >> 6;
    let low = if more == 0 { lead & 0x3f } else { lead & 0xf };
    let high = (0..more).fold(0, |value, i| value | usize::from(aml[at + 1 + i]) << (4 + 8 * i));
    (more + 1, low | high)
}

/// Paths of all scopes, devices and names, in order. Knows only the opcodes that may be met between them.
fn namespace(aml: &[u8], prefix: &str, found: &mut Vec<String>) {
    let name_at = |at: usize| {
        let at = at + usize::from(aml[at] == b'\\');
        (String::from_utf8(aml[at..at + 4].to_vec()).unwrap(), at + 4)
    };
    let mut at = 0;
    while at < aml.len() {
        let (skip, nested) = match &aml[at..] {
            [0x10, ..] => (1, true),
            [0x14, ..] => (1, false),
            [0x5b, 0x82, ..] => (2, true),
            [0x5b, 0x81, ..] => (2, false),
            [0x5b, 0x80, ..] => {
                let (name, end) = name_at(at + 2);
                found.push(format!("{prefix}{name}"));
                at = end + 5;
                continue;
            }
            [0x08, ..] => {
                let (name, end) = name_at(at + 1);
                found.push(format!("{prefix}{name}"));
                at = end + data_len(aml, end);
                continue;
            }
            other => panic!("unexpected AML {:02x?} in {prefix}", &other[..other.len().min(8)]),
        };
        let (bytes, len) = package_length(aml, at + skip);
        let end = at + skip + len;
        let (name, body) = name_at(at + skip + bytes);
        found.push(format!("{prefix}{name}"));
        if nested {
            namespace(&aml[body..end], &format!("{prefix}{name}."), found);
        }
        at = end;
    }
}

/// Length of a data object.
fn data_len(aml: &[u8], at: usize) -> usize {
    match aml[at] {
        0x00 | 0x01 | 0xff => 1,
        0x0a => 2,
        0x0b => 3,
        0x0c => 5,
        0x0e => 9,
        0x0d => 2 + aml[at + 1..].iter().position(|&byte| byte == 0).unwrap(),
        0x11 | 0x12 => 1 + package_length(aml, at + 1).1,
        other => panic!("unexpected data object {other:#x}"),
    }
}

#[test]
fn the_namespace_holds_what_was_described() {
    let tables = tables();
    let mut found = Vec::new();
    namespace(&tables.table(b"DSDT").unwrap()[36..], "", &mut found);
    let devices: Vec<&str> = found
        .iter()
        .filter(|path| !path[path.len() - 4..].starts_with('_') || path.len() == 4)
        .map(String::as_str)
        .collect();
    let expected = [
        "_SB_",
        "_SB_.C000",
        "_SB_.C001",
        "_SB_.C002",
        "_SB_.PCI0",
        "_SB_.PCI0.ISA_",
        "_SB_.PCI0.ISA_.PIRQ",
        "_SB_.PCI0.ISA_.PIRQ",
        "_SB_.PCI0.ISA_.COM1",
        "_SB_.PCI0.ISA_.RTC_",
        "_SB_.PCI0.ISA_.KBD_",
        "_SB_.PCI0.ISA_.PEVT",
        "_SB_.LNKA",
        "_SB_.LNKA.PRR0",
        "_SB_.LNKB",
        "_SB_.LNKB.PRR0",
        "_SB_.LNKC",
        "_SB_.LNKC.PRR0",
        "_SB_.LNKD",
        "_SB_.LNKD.PRR0",
        "_SB_.LNKS",
        "_SB_.VR00",
        "_S5_",
    ];
    assert_eq!(devices, expected);
    for path in ["_SB_.PCI0._CRS", "_SB_.PCI0._PRT", "_SB_.LNKA._SRS", "_SB_.VR00._CRS", "_SB_.PCI0.ISA_.COM1._UID"] {
        assert!(found.iter().any(|p| p == path), "{path}");
    }
}

#[test]
fn resources_are_encoded_as_the_specification_says() {
    let encode = |resource: Resource| bytes_of(&resource);
    assert_eq!(encode(Resource::Ports { start: 0x3f8, len: 8 }), [0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]);
    assert_eq!(encode(Resource::IsaIrq(4)), [0x22, 0x10, 0]);
    assert_eq!(
        encode(Resource::Interrupt { gsi: 16, edge: true, active_low: false }),
        [0x89, 6, 0, 0b11, 1, 16, 0, 0, 0]
    );
    assert_eq!(
        encode(Resource::Memory { start: 0xfeb0_0000, len: 0x200 }),
        [0x86, 9, 0, 1, 0, 0, 0xb0, 0xfe, 0, 2, 0, 0]
    );
    assert_eq!(encode(Resource::Memory { start: 1 << 32, len: 0x1000 })[..3], [0x8a, 0x2b, 0]);
    assert_eq!(encode(Resource::Ports { start: 0x1000, len: 0x400 })[..3], [0x88, 13, 0]);
}

#[test]
fn a_machine_without_pci_has_its_devices_in_the_system() {
    let mut bare = config();
    bare.pci = None;
    let tables = build(&bare, 0x7ff_0000).unwrap();
    let mut found = Vec::new();
    namespace(&tables.table(b"DSDT").unwrap()[36..], "", &mut found);
    assert!(found.iter().any(|path| path == "_SB_.COM1") && !found.iter().any(|path| path.contains("LNK")));
    assert_eq!(tables.rsdp(), 0x7ff_0000);
}

#[test]
fn what_cannot_be_described_is_refused() {
    let refusal = |change: &dyn Fn(&mut AcpiConfig)| {
        let mut config = config();
        change(&mut config);
        build(&config, 0xe_0000).unwrap_err().to_string()
    };
    assert!(refusal(&|c| c.devices[0].name = "COM".into()).contains("device name 'COM' is not 4 characters"));
    assert!(refusal(&|c| c.devices[0].name = "1COM".into()).contains("'1COM'"));
    assert_eq!(refusal(&|c| c.devices[1].name = "COM1".into()), "two ACPI devices are named 'COM1'; names must differ");
    assert!(refusal(&|c| c.devices[0].hid = "pnp".into()).contains("'pnp' is no hardware ID"));
    assert!(refusal(&|c| c.devices[0].resources[0] = Resource::Ports { start: 0xffff, len: 2 }).contains("0xffff"));
    assert!(refusal(&|c| c.devices[0].resources[0] = Resource::IsaIrq(16)).contains("ISA interrupt 16"));
    assert!(refusal(&|c| c.devices[0].resources[0] = Resource::Memory { start: 8, len: 0 }).contains("is empty"));
    assert!(refusal(&|c| c.cpus.clear()).contains("at least one processor"));
    assert!(refusal(&|c| c.pci.as_mut().unwrap().low = 5..5).contains("0x5..0x5 is empty"));
    assert!(refusal(&|c| c.pci.as_mut().unwrap().high = Some(0..5)).contains("right side of 4 GiB"));
    assert!(build(&config(), 0xe_0010).unwrap_err().to_string().contains("multiple of 64"));
}

/// A tool of acpica-tools: in `PATH`, or as the environment says.
fn acpica(tool: &str, variable: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.exists()))
}

#[test]
fn iasl_reads_every_table_and_compiles_the_dsdt_again() {
    let Some(iasl) = acpica("iasl", "IASL") else {
        eprintln!("skipped: no iasl (Debian: acpica-tools) in PATH");
        return;
    };
    let tables = tables();
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(&iasl).args(arguments).current_dir(dir.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("Error "), "iasl {arguments:?}: {text}");
        text
    };
    for signature in [b"DSDT", b"FACP", b"APIC", b"XSDT", b"FACS"] {
        let name = String::from_utf8_lossy(signature).to_lowercase();
        std::fs::write(dir.path().join(format!("{name}.dat")), tables.table(signature).unwrap()).unwrap();
        run(&["-d", &format!("{name}.dat")]);
        let text = std::fs::read_to_string(dir.path().join(format!("{name}.dsl"))).unwrap();
        assert!(!text.contains("Unknown") && !text.contains("Invalid"), "{name}: {text}");
    }
    let report = run(&["dsdt.dsl"]);
    assert!(report.contains("0 Errors, 0 Warnings, 0 Remarks"), "{report}");
}
