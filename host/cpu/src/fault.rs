//! Exceptions as values (SDM volume 3, chapter 6).

/// Exception vectors.
pub(crate) mod vector {
    pub(crate) const DE: u8 = 0;
    pub(crate) const DB: u8 = 1;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const BR: u8 = 5;
    pub(crate) const UD: u8 = 6;
    pub(crate) const NM: u8 = 7;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const MF: u8 = 16;
    pub(crate) const XM: u8 = 19;
}

/// Why an instruction could not be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An exception without an error code.
    Plain(u8),
    /// An exception with an error code.
    Code(u8, u32),
    /// #PF; the address is in `Cpu::fault_address`.
    Page(u32),
    /// The instruction is one that this processor does not carry out; the text is in `Cpu::trouble`.
    Trouble,
    /// The instruction was cut short and shall be begun anew, for instance because its own code has changed.
    Restart,
}

pub(crate) type Res<T = ()> = Result<T, Fault>;

impl Fault {
    pub(crate) const UD: Fault = Fault::Plain(vector::UD);
    pub(crate) const NM: Fault = Fault::Plain(vector::NM);
    pub(crate) const DE: Fault = Fault::Plain(vector::DE);
    /// #GP(0).
    pub(crate) const GP: Fault = Fault::Code(vector::GP, 0);
    /// #SS(0).
    pub(crate) const SS: Fault = Fault::Code(vector::SS, 0);

    /// #GP with a selector as its error code.
    pub(crate) fn gp(selector: u16) -> Fault {
        Fault::Code(vector::GP, u32::from(selector & 0xfffc))
    }
    /// #NP with a selector.
    pub(crate) fn np(selector: u16) -> Fault {
        Fault::Code(vector::NP, u32::from(selector & 0xfffc))
    }
    /// #SS with a selector.
    pub(crate) fn ss(selector: u16) -> Fault {
        Fault::Code(vector::SS, u32::from(selector & 0xfffc))
    }
    /// #TS with a selector.
    pub(crate) fn ts(selector: u16) -> Fault {
        Fault::Code(vector::TS, u32::from(selector & 0xfffc))
    }

    /// Vector and error code.
    pub(crate) fn parts(self) -> (u8, Option<u32>) {
        match self {
            Fault::Plain(v) => (v, None),
            Fault::Code(v, e) => (v, Some(e)),
            Fault::Page(e) => (vector::PF, Some(e)),
            Fault::Trouble | Fault::Restart => (vector::UD, None),
        }
    }
}
