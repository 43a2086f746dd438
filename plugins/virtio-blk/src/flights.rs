//! Requests that the drive has, found again by the token of their completion.

use cardcage_plugin_api::BlockRequest;

use crate::request::{Op, Request};

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Came with a saved state, and was not handed to the drive yet.
    Waiting,
    /// The drive does what was asked for.
    Working,
    /// The write is done, and without a write cache it must be durable before the driver hears of it.
    Flushing,
}

pub(crate) struct Flight {
    pub(crate) request: Request,
    pub(crate) stage: Stage,
}

/// All of them. A token is a place and the generation that it belongs to: completions of requests that a reset has
/// forgotten find nothing.
#[derive(Default)]
pub(crate) struct Flights {
    places: Vec<Option<Flight>>,
    free: Vec<u32>,
    generation: u32,
    count: usize,
}

impl Flights {
    pub(crate) fn add(&mut self, request: Request, stage: Stage) -> u64 {
        let flight = Some(Flight { request, stage });
        self.count += 1;
        let place = match self.free.pop() {
            Some(place) => {
                if let Some(empty) = self.places.get_mut(place as usize) {
                    *empty = flight;
                }
                place
            }
            None => {
                self.places.push(flight);
                self.places.len() as u32 - 1
            }
        };
        u64::from(self.generation) << 32 | u64::from(place)
    }

    pub(crate) fn get_mut(&mut self, token: u64) -> Option<&mut Flight> {
        let place = self.place(token)?;
        self.places.get_mut(place)?.as_mut()
    }

    pub(crate) fn remove(&mut self, token: u64) -> Option<Request> {
        let place = self.place(token)?;
        let flight = self.places.get_mut(place)?.take()?;
        self.free.push(place as u32);
        self.count -= 1;
        Some(flight.request)
    }

    fn place(&self, token: u64) -> Option<usize> {
        (token >> 32 == u64::from(self.generation)).then_some(token as u32 as usize)
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        self.places.clear();
        self.free.clear();
        self.count = 0;
        self.generation = self.generation.wrapping_add(1);
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }
    pub(crate) fn requests(&self) -> impl Iterator<Item = &Request> {
        self.places.iter().flatten().map(|f| &f.request)
    }
    /// Tokens of those that wait, which work from now on.
    pub(crate) fn take_waiting(&mut self) -> Vec<u64> {
        let generation = u64::from(self.generation) << 32;
        let waiting = |(place, flight): (usize, &mut Option<Flight>)| {
            let flight = flight.as_mut().filter(|f| f.stage == Stage::Waiting)?;
            flight.stage = Stage::Working;
            Some(generation | place as u64)
        };
        self.places.iter_mut().enumerate().filter_map(waiting).collect()
    }

    /// What these tokens want of the drive now.
    pub(crate) fn block_requests<'a>(&'a self, tokens: &'a [u64]) -> Vec<BlockRequest<'a>> {
        let to_request = |&token: &u64| {
            let Flight { request: r, stage } = self.places.get(self.place(token)?)?.as_ref()?;
            Some(match r.op {
                _ if *stage == Stage::Flushing => BlockRequest::flush(token),
                Op::Read => BlockRequest::read(r.offset, &r.data, token),
                Op::Write => BlockRequest::write(r.offset, &r.data, token),
                Op::Flush => BlockRequest::flush(token),
                Op::Discard => BlockRequest::discard(r.offset, r.len, token),
                Op::WriteZeroes { unmap } => BlockRequest::write_zeroes(r.offset, r.len, unmap, token),
            })
        };
        tokens.iter().filter_map(to_request).collect()
    }
}
