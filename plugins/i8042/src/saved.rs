//! Saved state of the controller and its two devices: a section each.

use std::collections::VecDeque;

use cardcage_plugin_api::state::{SectionReader, SectionWriter, StateReader, StateWriter};
use cardcage_plugin_api::{Error, Result};

use crate::controller::{Controller, Mode, OutputPort, Source};
use crate::keyboard::Keyboard;
use crate::mouse::{Buttons, Model, Mouse};

/// No queue of either device is longer.
const LONGEST: usize = 32;

pub(crate) fn write(c: &Controller, state: &mut StateWriter) {
    state.section("controller", 1, |s| {
        s.u8(c.mode.bits());
        s.bool(c.self_tested);
        s.bool(c.last_was_command);
        optional(s, c.command);
        s.u8(c.port.bits());
        s.u8(source_code(c.full));
        s.u8(c.data);
        s.u8(source_code(c.answer.map(|a| a.1)));
        s.u8(c.answer.map_or(0, |a| a.0));
        s.bool(c.translator.breaking);
    });
    state.section("keyboard", 1, |s| {
        let k = &c.keyboard;
        queue(s, &k.answers);
        queue(s, &k.keys);
        optional(s, k.command);
        s.u8(k.last);
        s.u8(k.set);
        s.bool(k.scanning);
        s.u8(k.leds);
        s.u8(k.typematic);
    });
    state.section("mouse", 1, |s| {
        let m = &c.mouse;
        queue(s, &m.answers);
        queue(s, &m.movement);
        optional(s, m.command);
        s.u8(m.last);
        s.u8(m.model as u8);
        m.rates.into_iter().for_each(|rate| s.u8(rate));
        s.u8(m.resolution);
        [m.scaled, m.remote, m.wrap, m.reporting].into_iter().for_each(|flag| s.bool(flag));
        s.u8(m.buttons.bits());
        s.u8(m.reported.bits());
        [m.dx, m.dy, m.dz].into_iter().for_each(|n| s.i64(n.into()));
    });
}

pub(crate) fn read(state: &StateReader) -> Result<Controller> {
    let mut c = Controller::default();
    let mut s = state.section("controller", 1)?;
    c.mode = Mode::from_bits_retain(s.u8()?);
    c.self_tested = s.bool()?;
    c.last_was_command = s.bool()?;
    c.command = read_optional(&mut s)?;
    c.port = OutputPort::from_bits_retain(s.u8()?);
    c.full = source(s.u8()?)?;
    c.data = s.u8()?;
    let (from, byte) = (source(s.u8()?)?, s.u8()?);
    c.answer = from.map(|from| (byte, from));
    c.translator.breaking = s.bool()?;
    s.end()?;
    c.keyboard = read_keyboard(state.section("keyboard", 1)?)?;
    c.mouse = read_mouse(state.section("mouse", 1)?)?;
    Ok(c)
}

fn read_keyboard(mut s: SectionReader<'_>) -> Result<Keyboard> {
    let k = Keyboard {
        answers: read_queue(&mut s)?,
        keys: read_queue(&mut s)?,
        command: read_optional(&mut s)?,
        last: s.u8()?,
        set: s.u8()?,
        scanning: s.bool()?,
        leds: s.u8()?,
        typematic: s.u8()?,
    };
    if !(1..=3).contains(&k.set) {
        return Err(Error::new(format!("the saved scan code set is {}, allowed is 1..=3", k.set)));
    }
    s.end()?;
    Ok(k)
}

fn read_mouse(mut s: SectionReader<'_>) -> Result<Mouse> {
    let m = Mouse {
        answers: read_queue(&mut s)?,
        movement: read_queue(&mut s)?,
        command: read_optional(&mut s)?,
        last: s.u8()?,
        model: model(s.u8()?)?,
        rates: [s.u8()?, s.u8()?, s.u8()?],
        resolution: s.u8()?,
        scaled: s.bool()?,
        remote: s.bool()?,
        wrap: s.bool()?,
        reporting: s.bool()?,
        buttons: Buttons::from_bits_truncate(s.u8()?),
        reported: Buttons::from_bits_truncate(s.u8()?),
        dx: movement(&mut s)?,
        dy: movement(&mut s)?,
        dz: movement(&mut s)?,
    };
    s.end()?;
    Ok(m)
}

fn optional(s: &mut SectionWriter, value: Option<u8>) {
    s.bool(value.is_some());
    s.u8(value.unwrap_or(0));
}
fn read_optional(s: &mut SectionReader<'_>) -> Result<Option<u8>> {
    let (some, value) = (s.bool()?, s.u8()?);
    Ok(some.then_some(value))
}

fn queue(s: &mut SectionWriter, queue: &VecDeque<u8>) {
    s.bytes(&queue.iter().copied().collect::<Vec<u8>>());
}
fn read_queue(s: &mut SectionReader<'_>) -> Result<VecDeque<u8>> {
    let bytes = s.bytes()?;
    if bytes.len() > LONGEST {
        return Err(Error::new(format!("a saved queue has {} bytes, allowed are {LONGEST}", bytes.len())));
    }
    Ok(bytes.iter().copied().collect())
}

fn source_code(source: Option<Source>) -> u8 {
    match source {
        None => 0,
        Some(Source::Keyboard) => 1,
        Some(Source::Mouse) => 2,
    }
}
fn source(code: u8) -> Result<Option<Source>> {
    match code {
        0 => Ok(None),
        1 => Ok(Some(Source::Keyboard)),
        2 => Ok(Some(Source::Mouse)),
        _ => Err(Error::new(format!("the saved source of a byte is {code}, allowed is 0..=2"))),
    }
}

fn model(id: u8) -> Result<Model> {
    [Model::Standard, Model::Wheel, Model::FiveButtons]
        .into_iter()
        .find(|&m| m as u8 == id)
        .ok_or_else(|| Error::new(format!("the saved mouse has id {id}, allowed are 0, 3 and 4")))
}

fn movement(s: &mut SectionReader<'_>) -> Result<i32> {
    let n = s.i64()?;
    i32::try_from(n).map_err(|_| Error::new(format!("the saved movement {n} is too far")))
}
