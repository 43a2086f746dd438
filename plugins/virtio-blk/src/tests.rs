//! The disk as a driver sees it.

use super::*;
use crate::config::*;
use cardcage_plugin_api::testing::*;

const DRIVE: &[(&str, &str)] = &[("drive", "d")];
const MIB: usize = 1 << 20;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn host() -> TestHost {
    TestHost::new().with_disk("d", TestDisk::new(MIB))
}
fn with(disk: TestDisk, properties: &[(&str, &str)]) -> Result<TestVirtio> {
    let all: Vec<_> = DRIVE.iter().chain(properties).copied().collect();
    TestVirtio::new::<Disk>(&TestHost::new().with_disk("d", disk), &all)
}
fn started(disk: TestDisk, properties: &[(&str, &str)]) -> TestVirtio {
    let mut device = with(disk, properties).unwrap();
    device.start(u64::MAX).unwrap();
    device
}
fn disk() -> TestVirtio {
    started(TestDisk::new(MIB), &[])
}
fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}
fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut segment = [0; 16];
    segment[..8].copy_from_slice(&sector.to_le_bytes());
    segment[8..12].copy_from_slice(&sectors.to_le_bytes());
    segment[12..].copy_from_slice(&flags.to_le_bytes());
    segment
}
/// The last byte of a buffer: the status.
fn status(device: &TestVirtio, buffer: &Buffer) -> u8 {
    *device.written(buffer).last().unwrap()
}
/// One request, done at once: its status.
fn one(device: &mut TestVirtio, readable: &[&[u8]], writable: &[u32]) -> u8 {
    let buffer = device.add(0, readable, writable);
    device.kick(0);
    let used = device.used(0);
    assert_eq!(used.iter().map(|u| u.head).collect::<Vec<_>>(), [buffer.head]);
    status(device, &buffer)
}

#[test]
fn what_is_written_is_on_the_drive_and_is_read_back() {
    let mut device = disk();
    let data: Vec<u8> = (0..1024u32).map(|i| i as u8 ^ (i >> 8) as u8).collect();
    assert_eq!(one(&mut device, &[&header(OUT, 5), &data[..100], &data[100..]], &[1]), 0);
    assert_eq!(device.host().disk_data("d")[5 * 512..7 * 512], data);

    let buffer = device.add(0, &[&header(IN, 5)], &[700, 324, 1]);
    device.kick(0);
    assert_eq!(device.used(0), [Used { head: buffer.head, len: 1025 }]);
    assert_eq!(device.written(&buffer), [&data[..], &[0]].concat());
    assert_eq!(device.interrupts(0), 2);
}

#[test]
fn header_and_status_may_be_framed_in_any_way() {
    let mut device = disk();
    device.host().fill_disk("d", 0, &[7; 512]);
    let h = header(IN, 0);
    let buffer = device.add(0, &[&h[..3], &h[3..16]], &[500, 13]);
    device.kick(0);
    assert_eq!(device.used(0), [Used { head: buffer.head, len: 513 }]);
    assert_eq!(device.written(&buffer), [&[7; 512][..], &[0]].concat());
    // Data of a write may follow the header in the same part.
    let whole = [&header(OUT, 1)[..], &[9; 512]].concat();
    assert_eq!(one(&mut device, &[&whole], &[1]), 0);
    assert_eq!(device.host().disk_data("d")[512..1024], [9; 512]);
}

#[test]
fn requests_beyond_the_end_or_of_half_blocks_fail_without_touching_the_drive() {
    let mut device = disk();
    let sectors = (MIB / 512) as u64;
    for (kind, sector, len) in [
        (IN, sectors, 512),
        (IN, sectors - 1, 1024),
        (IN, u64::MAX, 512),
        (IN, u64::MAX / 512, 512),
        (IN, 0, 511),
        (IN, 0, 513),
    ] {
        assert_eq!(one(&mut device, &[&header(kind, sector)], &[len, 1]), 1, "sector {sector}, {len} bytes");
    }
    assert_eq!(one(&mut device, &[&header(OUT, sectors), &[0; 512]], &[1]), 1);
    assert_eq!(device.host().take_disk_ops("d"), []);
    assert_eq!(one(&mut device, &[&header(IN, sectors - 1)], &[512, 1]), 0);
}

#[test]
fn with_blocks_of_4096_bytes_smaller_requests_fail() {
    let mut device = started(TestDisk::new(MIB + 512), &[("logical_block_size", "4096")]);
    assert_eq!(device.config::<8>(0), (MIB / 512) as u64);
    assert_eq!((device.config::<4>(20), device.config::<1>(24)), (4096, 0));
    assert_eq!(one(&mut device, &[&header(IN, 8)], &[4096, 1]), 0);
    assert_eq!(one(&mut device, &[&header(IN, 4)], &[4096, 1]), 1);
    assert_eq!(one(&mut device, &[&header(IN, 8)], &[512, 1]), 1);
}

#[test]
fn a_driver_that_breaks_the_rules_of_the_ring_must_reset_the_device() {
    type Breach = fn(&mut TestVirtio);
    let breaches: [(&str, Breach); 7] = [
        ("no header", |d| drop(d.add(0, &[&[0; 15]], &[513]))),
        ("no status", |d| drop(d.add(0, &[&header(OUT, 0), &[0; 512]], &[]))),
        ("a status outside of RAM", |d| {
            let at = d.allocate(16);
            d.add_parts(0, &[(at, 16, 0), (1 << 40, 1, DESC_WRITE)]);
        }),
        ("a header outside of RAM", |d| {
            let at = d.allocate(16);
            d.add_parts(0, &[(1 << 40, 16, 0), (at, 1, DESC_WRITE)]);
        }),
        ("parts in the wrong order", |d| {
            let at = d.allocate(64);
            d.add_parts(0, &[(at, 16, 0), (at + 16, 1, DESC_WRITE), (at + 32, 16, 0)]);
        }),
        ("a part that wraps around", |d| {
            let at = d.allocate(16);
            d.add_parts(0, &[(at, 16, 0), (u64::MAX - 4, 16, DESC_WRITE)]);
        }),
        ("a head that does not exist", |d| d.offer(0, 999)),
    ];
    for (what, breach) in breaches {
        let mut device = disk();
        let good = device.add(0, &[&header(IN, 0)], &[512, 1]);
        breach(&mut device);
        device.kick(0);
        assert!(device.needs_reset(), "{what}");
        assert_eq!(device.used(0), [Used { head: good.head, len: 513 }], "{what}");
        device.driver_reset();
        device.start(u64::MAX).unwrap();
        assert_eq!(one(&mut device, &[&header(IN, 0)], &[512, 1]), 0, "{what}");
    }
}

#[test]
fn data_outside_of_ram_fails_the_request_only() {
    let mut device = disk();
    let at = device.allocate(32);
    device.host().memory().write_slice(&header(IN, 0), GuestAddress(at)).unwrap();
    let head = device.add_parts(0, &[(at, 16, 0), (1 << 40, 512, DESC_WRITE), (at + 16, 1, DESC_WRITE)]);
    device.kick(0);
    assert_eq!(device.used(0), [Used { head, len: 513 }]);
    assert_eq!(device.host().memory().read_obj::<u8>(GuestAddress(at + 16)).unwrap(), 1);
    assert!(!device.needs_reset());
}

#[test]
fn many_requests_are_in_flight_at_once_and_return_in_the_drives_order() {
    let mut device = disk();
    device.host().hold_disk("d", true);
    let buffers: Vec<_> = (0..4).map(|i| device.add(0, &[&header(IN, i)], &[512, 1])).collect();
    device.kick(0);
    assert_eq!((device.host().disk_requests("d"), device.used(0)), (4, vec![]));
    assert!(device.inspect().contains(r#""requests-in-flight":4"#));

    device.host().complete_disk("d", 2);
    device.run();
    assert_eq!(device.used(0), [Used { head: buffers[2].head, len: 513 }]);
    device.host().complete_disk("d", 0);
    device.host().complete_disk("d", 1);
    device.run();
    let heads: Vec<_> = device.used(0).iter().map(|u| u.head).collect();
    assert_eq!(heads, [buffers[0].head, buffers[3].head]);
}

#[test]
fn what_comes_back_together_is_one_interrupt() {
    let mut device = started(TestDisk::new(MIB), &[("num-queues", "2")]);
    for queue in 0..2 {
        for i in 0..8 {
            device.add(queue, &[&header(IN, i)], &[512, 1]);
        }
    }
    device.host().hold_disk("d", true);
    device.kick(0);
    device.kick(1);
    device.host().hold_disk("d", false);
    device.run();
    assert_eq!((device.used(0).len(), device.used(1).len()), (8, 8));
    assert_eq!((device.interrupts(0), device.interrupts(1)), (1, 1));
}

#[test]
fn each_queue_gets_its_own_requests_back() {
    let mut device = started(TestDisk::new(MIB), &[("num-queues", "3")]);
    assert_ne!(device.features() & F_MQ, 0);
    assert_eq!((device.queue_count(), device.config::<2>(34)), (3, 3));
    let buffer = device.add(2, &[&header(IN, 0)], &[512, 1]);
    device.kick(2);
    assert_eq!((device.used(0), device.used(2)), (vec![], vec![Used { head: buffer.head, len: 513 }]));
}

#[test]
fn by_default_there_is_a_queue_for_each_cpu() {
    let machine = json::Object::new().field("cpus", 4);
    let device = TestVirtio::new::<Disk>(&host().with_machine(&machine), DRIVE).unwrap();
    assert_eq!(device.queue_count(), 4);
    assert_eq!(disk().features() & F_MQ, 0);
}

#[test]
fn a_flush_reaches_the_drive() {
    let mut device = disk();
    assert_eq!(one(&mut device, &[&header(FLUSH, 0)], &[1]), 0);
    assert_eq!(device.host().take_disk_ops("d"), [DiskOp::Flush]);
}

#[test]
fn without_a_write_cache_each_write_is_flushed_before_it_is_done() {
    let mut device = disk();
    assert_eq!(device.config::<1>(32), 1);
    device.write_config(32, &[0]);
    assert_eq!(device.config::<1>(32), 0);
    assert_eq!(one(&mut device, &[&header(OUT, 0), &[1; 512]], &[1]), 0);
    assert_eq!(device.host().take_disk_ops("d"), [DiskOp::Write { offset: 0, len: 512 }, DiskOp::Flush]);
    // A flush that fails fails the write.
    device.host().hold_disk("d", true);
    let buffer = device.add(0, &[&header(OUT, 0), &[1; 512]], &[1]);
    device.kick(0);
    device.host().complete_disk("d", 0);
    device.run();
    device.host().fail_disk("d", 5);
    device.host().hold_disk("d", false);
    device.run();
    assert_eq!((device.used(0).len(), status(&device, &buffer)), (1, 1));
    // A reset brings the cache back.
    device.driver_reset();
    assert_eq!(device.config::<1>(32), 1);
}

#[test]
fn a_driver_that_cannot_flush_gets_no_write_cache() {
    let mut device = with(TestDisk::new(MIB), &[]).unwrap();
    device.start(0).unwrap();
    assert_eq!(one(&mut device, &[&header(OUT, 0), &[1; 512]], &[1]), 0);
    assert_eq!(device.host().take_disk_ops("d").len(), 2);
    device.write_config(32, &[1]);
    assert_eq!(device.config::<1>(32), 0, "it has not agreed to switching");
}

#[test]
fn the_write_cache_follows_the_drive_or_the_property() {
    assert_eq!(started(TestDisk::new(MIB).write_through(), &[]).config::<1>(32), 0);
    assert_eq!(started(TestDisk::new(MIB).write_through(), &[("write-cache", "on")]).config::<1>(32), 1);
    assert_eq!(started(TestDisk::new(MIB), &[("write-cache", "off")]).config::<1>(32), 0);
    assert_eq!(started(TestDisk::new(MIB), &[("config-wce", "off")]).features() & F_CONFIG_WCE, 0);
}

#[test]
fn the_serial_number_is_the_identification() {
    let mut device = started(TestDisk::new(MIB), &[("serial", "CARD-0001")]);
    let buffer = device.add(0, &[&header(GET_ID, 0)], &[20, 1]);
    device.kick(0);
    assert_eq!(device.written(&buffer), *b"CARD-0001\0\0\0\0\0\0\0\0\0\0\0\0");
    let short = device.add(0, &[&header(GET_ID, 0)], &[4, 1]);
    device.kick(0);
    assert_eq!(device.written(&short), *b"CARD\0");
}

#[test]
fn discard_and_write_zeroes_take_one_segment() {
    let mut device = disk();
    device.host().fill_disk("d", 0, &[1; 8192]);
    assert_eq!(one(&mut device, &[&header(DISCARD, 0), &segment(2, 4, 0)], &[1]), 0);
    assert_eq!(one(&mut device, &[&header(WRITE_ZEROES, 0), &segment(8, 2, 0)], &[1]), 0);
    assert_eq!(one(&mut device, &[&header(WRITE_ZEROES, 0), &segment(10, 2, 1)], &[1]), 0);
    assert_eq!(
        device.host().take_disk_ops("d"),
        [
            DiskOp::Discard { offset: 1024, len: 2048 },
            DiskOp::WriteZeroes { offset: 4096, len: 1024, may_unmap: false },
            DiskOp::WriteZeroes { offset: 5120, len: 1024, may_unmap: true },
        ]
    );
}

#[test]
fn bad_segments_are_refused_each_with_its_status() {
    let limits = [("max-discard-sectors", "8"), ("max-write-zeroes-sectors", "16")];
    let mut device = started(TestDisk::new(MIB), &limits);
    let sectors = (MIB / 512) as u64;
    let two = [segment(0, 1, 0), segment(4, 1, 0)].concat();
    for (kind, data, expected) in [
        (DISCARD, &segment(0, 9, 0)[..], 1),
        (WRITE_ZEROES, &segment(0, 17, 0), 1),
        (DISCARD, &segment(sectors - 1, 2, 0), 1),
        (DISCARD, &segment(u64::MAX, 1, 0), 1),
        (DISCARD, &segment(0, 1, 1), 2),
        (WRITE_ZEROES, &segment(0, 1, 2), 2),
        (DISCARD, &two, 2),
        (DISCARD, &[0; 15], 1),
        (DISCARD, &[], 1),
        (DISCARD, &segment(0, 0, 0), 0),
    ] {
        assert_eq!(one(&mut device, &[&header(kind, 0), data], &[1]), expected, "{kind}: {data:?}");
    }
    assert_eq!(device.host().take_disk_ops("d"), []);
}

#[test]
fn what_was_not_agreed_on_or_does_not_exist_is_unsupported() {
    let mut device = started(TestDisk::new(MIB), &[("discard", "off"), ("write-zeroes", "off")]);
    assert_eq!(device.features() & (F_DISCARD | F_WRITE_ZEROES), 0);
    assert_eq!((device.config::<4>(36), device.config::<4>(48)), (0, 0));
    for kind in [DISCARD, WRITE_ZEROES, 2, 9, 14, 99] {
        assert_eq!(one(&mut device, &[&header(kind, 0), &segment(0, 1, 0)], &[1]), 2, "{kind}");
    }
}

#[test]
fn a_read_only_drive_says_so_and_refuses_writes() {
    let mut device = started(TestDisk::new(MIB).read_only(), &[]);
    assert_eq!(device.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
    assert_eq!(one(&mut device, &[&header(OUT, 0), &[0; 512]], &[1]), 1);
    assert_eq!(one(&mut device, &[&header(IN, 0)], &[512, 1]), 0);
}

#[test]
fn errors_of_the_drive_are_reported_or_ignored_as_wished() {
    for (properties, read, write) in
        [(&[][..], 1, 1), (&[("rerror", "ignore")], 0, 1), (&[("werror", "ignore"), ("rerror", "report")], 1, 0)]
    {
        let mut device = started(TestDisk::new(MIB), properties);
        device.host().fail_disk("d", 5);
        assert_eq!(one(&mut device, &[&header(IN, 0)], &[512, 1]), read);
        device.host().fail_disk("d", 28);
        assert_eq!(one(&mut device, &[&header(OUT, 0), &[0; 512]], &[1]), write);
        assert!(device.stats().contains(r#""failed-operations":2"#));
    }
    let mut device = disk();
    device.host().fail_disk("d", ENOTSUP);
    assert_eq!(one(&mut device, &[&header(DISCARD, 0), &segment(0, 1, 0)], &[1]), 2);
}

#[test]
fn the_configuration_space_describes_the_drive() {
    let properties = [
        ("physical_block_size", "4096"),
        ("min_io_size", "8192"),
        ("opt_io_size", "64K"),
        ("discard_granularity", "4096"),
        ("queue-size", "64"),
    ];
    let device = started(TestDisk::new(100 * MIB), &properties);
    assert_eq!(device.config::<8>(0), 100 * 2048);
    assert_eq!(device.config::<4>(12), 62);
    assert_eq!((device.config::<2>(16), device.config::<1>(18), device.config::<1>(19)), (203, 16, 63));
    assert_eq!((device.config::<4>(20), device.config::<1>(24)), (512, 3));
    assert_eq!((device.config::<2>(26), device.config::<4>(28)), (16, 128));
    assert_eq!((device.config::<4>(36), device.config::<4>(40), device.config::<4>(44)), (4_194_303, 1, 8));
    assert_eq!((device.config::<4>(48), device.config::<4>(52), device.config::<1>(56)), (4_194_303, 1, 1));
    assert_eq!(device.config::<8>(60), 0);
    let fixed = started(TestDisk::new(MIB), &[("seg-max-adjust", "off"), ("cyls", "7"), ("heads", "3"), ("secs", "9")]);
    assert_eq!((fixed.config::<4>(12), fixed.config::<4>(16)), (126, 0x0903_0007));
}

#[test]
fn properties_that_do_not_fit_are_refused_by_name() {
    let refusal = |properties: &[(&str, &str)], disk| with(disk, properties).err().unwrap().to_string();
    let disk = || TestDisk::new(MIB);
    for (given, disk, text) in [
        (("queue-size", "100"), disk(), "property 'queue-size' is 100, allowed is a power of two from 4 to 1024"),
        (
            ("logical_block_size", "1000"),
            disk(),
            "property 'logical_block_size' is 1000, allowed is a power of two from 512 to 2097152",
        ),
        (
            ("logical_block_size", "512"),
            disk().block_sizes(4096, 4096, 4096),
            "property 'logical_block_size' is 512, but the drive needs requests aligned to 4096",
        ),
        (
            ("physical_block_size", "512"),
            disk().block_sizes(4096, 4096, 4096),
            "property 'physical_block_size' is 512, less than the logical block size 4096",
        ),
        (
            ("min_io_size", "700"),
            disk(),
            "property 'min_io_size' is 700, allowed is a multiple of the logical block size 512 up to 33553920",
        ),
        (("serial", "123456789012345678901"), disk(), "property 'serial' has 21 bytes, allowed are 20"),
        (("werror", "stop"), disk(), "property 'werror': 'stop' is not one of: auto, report, ignore"),
        (("drive", "e"), disk(), "there is no drive 'e'"),
    ] {
        assert_eq!(refusal(&[given], disk), text);
    }
}

#[test]
fn a_drive_that_grows_is_announced() {
    let mut device = disk();
    device.host().resize_disk("d", 2 * MIB);
    device.run();
    assert_eq!((device.config_interrupts(), device.config::<8>(0)), (1, 4096));
    assert_eq!(one(&mut device, &[&header(IN, 3000)], &[512, 1]), 0);
}

#[test]
fn a_reset_waits_for_requests_in_flight_and_ignores_their_completion() {
    let mut device = disk();
    device.host().hold_disk("d", true);
    device.add(0, &[&header(OUT, 0), &[5; 512]], &[1]);
    device.kick(0);
    device.driver_reset();
    // The drive is done with it, and with guest memory, before the reset returns.
    assert_eq!(device.host().disk_requests("d"), 0);
    assert_eq!(device.host().disk_data("d")[..512], [5; 512]);
    device.start(u64::MAX).unwrap();
    device.run();
    assert_eq!((device.used(0), device.interrupts(0)), (vec![], 0));
}

#[test]
fn a_driver_that_offers_one_chain_again_and_again_is_stopped() {
    let mut device = started(TestDisk::new(MIB), &[("queue-size", "8")]);
    device.host().hold_disk("d", true);
    let buffer = device.add(0, &[&header(IN, 0)], &[512, 1]);
    device.kick(0);
    for _ in 0..20 {
        device.offer(0, buffer.head);
        device.kick(0);
    }
    assert!(device.needs_reset());
    assert_eq!(device.host().disk_requests("d"), 8);
}

#[test]
fn a_stopped_machine_sees_no_byte_change_until_it_goes_on() {
    let mut device = disk();
    device.host().fill_disk("d", 0, &[3; 512]);
    device.host().hold_disk("d", true);
    let buffer = device.add(0, &[&header(IN, 0)], &[512, 1]);
    device.kick(0);
    device.set_running(false);
    let before = device.written(&buffer);
    let late = device.add(0, &[&header(IN, 1)], &[512, 1]);
    device.kick(0);
    device.host().hold_disk("d", false);
    device.run();
    assert_eq!((device.used(0), device.written(&buffer)), (vec![], before));
    device.set_running(true);
    device.run();
    let heads: Vec<_> = device.used(0).iter().map(|u| u.head).collect();
    assert_eq!(heads, [buffer.head, late.head]);
    assert_eq!(device.written(&buffer), [&[3; 512][..], &[0]].concat());
}

#[test]
fn requests_in_flight_move_with_the_device_and_complete_there() {
    let mut device = started(TestDisk::new(MIB), &[("num-queues", "2")]);
    assert_eq!(one(&mut device, &[&header(FLUSH, 0)], &[1]), 0);
    device.host().fill_disk("d", 512, &[4; 512]);
    device.host().hold_disk("d", true);
    let write = device.add(0, &[&header(OUT, 0), &[6; 512]], &[1]);
    let read = device.add(1, &[&header(IN, 1)], &[512, 1]);
    device.kick(0);
    device.kick(1);
    let mut next = device.migrate().unwrap();
    next.host().hold_disk("d", false);
    next.run();
    assert_eq!(next.used(0), [Used { head: write.head, len: 1 }]);
    assert_eq!(next.used(1), [Used { head: read.head, len: 513 }]);
    assert_eq!(next.written(&read), [&[4; 512][..], &[0]].concat());
    assert_eq!(next.host().disk_data("d")[..512], [6; 512]);
    // And the rings go on where they were.
    assert_eq!(one(&mut next, &[&header(IN, 0)], &[512, 1]), 0);
}

#[test]
fn a_saved_request_that_does_not_fit_the_drive_is_refused() {
    let mut device = disk();
    device.host().hold_disk("d", true);
    device.add(0, &[&header(IN, 2047)], &[512, 1]);
    device.kick(0);
    device.set_running(false);
    let state = device.save().unwrap();
    let mut smaller = disk();
    smaller.host().resize_disk("d", MIB / 2);
    let refused = smaller.load(&state).unwrap_err().to_string();
    assert_eq!(refused, "a saved request of 512 bytes at 1048064 is beyond the drive's end at 524288");
}

#[test]
fn counters_tell_what_was_done() {
    let mut device = disk();
    one(&mut device, &[&header(IN, 0)], &[1024, 1]);
    one(&mut device, &[&header(OUT, 0), &[0; 512]], &[1]);
    one(&mut device, &[&header(FLUSH, 0)], &[1]);
    one(&mut device, &[&header(DISCARD, 0), &segment(0, 1, 0)], &[1]);
    one(&mut device, &[&header(IN, u64::MAX)], &[512, 1]);
    assert_eq!(
        device.stats(),
        r#"{"read-operations":1,"read-bytes":1024,"write-operations":1,"written-bytes":512,"flush-operations":1,"discard-operations":1,"write-zeroes-operations":0,"failed-operations":1}"#
    );
}

#[test]
fn it_conforms() {
    conformance::check_virtio::<Disk>(host, DRIVE);
    conformance::check_virtio::<Disk>(host, &[("drive", "d"), ("num-queues", "4"), ("queue-size", "16")]);
    let read_only = || TestHost::new().with_disk("d", TestDisk::new(MIB).read_only());
    conformance::check_virtio::<Disk>(read_only, DRIVE);
}
