//! Any bytes as a kernel: loading gives an error or a kernel inside of RAM, and nothing else happens.
#![no_main]

use std::cell::LazyCell;

use cardcage_boot::{BootOptions, Source, Unpack, load_sources};
use cardcage_memory::GuestRam;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static RAM: LazyCell<GuestRam> = LazyCell::new(|| GuestRam::new(&[(0, 32 << 20)]).expect("32 MiB of guest RAM"));
}

fuzz_target!(|kernel: &[u8]| {
    let kernel = Source::bytes("kernel", kernel.to_vec());
    let initrd = Source::bytes("initrd", vec![1; 100]);
    RAM.with(|ram| {
        for unpack in [Unpack::OnHost, Unpack::InGuest] {
            let options = BootOptions { unpack, ..BootOptions::default() };
            if let Ok(info) = load_sources(&kernel, Some(&initrd), "quiet", ram, &options) {
                assert!(ram.find(info.kernel.start, info.kernel.end - info.kernel.start).is_some());
            }
        }
    });
});
