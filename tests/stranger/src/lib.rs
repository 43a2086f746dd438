//! `stranger-dice`: a die behind one port. A read throws it; a write tells, in an event, how often it was thrown.

mod fragile;

use cardcage_plugin_api::*;

prop_enum! {
    /// How the die falls
    pub enum Fall { Fair = "fair", Loaded = "loaded" }
}

#[derive(DeviceProperties)]
struct Config {
    /// Port
    #[prop(default = "0x2e0")]
    iobase: u16,
    /// Number of faces
    #[prop(default = 6, range = 2..=100, unit = "faces")]
    faces: u8,
    /// A loaded die always shows its highest face
    #[prop(default = "fair")]
    fall: Fall,
}

struct Dice {
    config: Config,
    throws: u64,
}

impl Device for Dice {
    const INFO: DeviceInfo = DeviceInfo::new("stranger-dice", BusKind::Isa, Category::Misc, "A die behind a port");
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        Ok(Self { config, throws: 0 })
    }
    fn realize(&mut self, bus: &mut Bus, _: &Context) -> Result<()> {
        bus.pio(self.config.iobase, 1)?;
        Ok(())
    }
    fn read(&mut self, _: Region, _offset: u64, _size: u8, ctx: &Context) -> u64 {
        self.throws += 1;
        let mut random = [0; 8];
        ctx.fill_random(&mut random);
        match self.config.fall {
            Fall::Fair => u64::from_le_bytes(random) % u64::from(self.config.faces) + 1,
            Fall::Loaded => self.config.faces.into(),
        }
    }
    fn write(&mut self, _: Region, _offset: u64, _size: u8, value: u64, ctx: &Context) {
        log::info!("the guest writes {value}");
        ctx.emit("STRANGER_THROWS", &json::Object::new().field("throws", self.throws));
    }
    fn inspect(&self) -> json::Object {
        json::Object::new().field("throws", self.throws)
    }
}

plugin! { devices: [Dice, fragile::Fragile] }
