//! A vCPU's own time while the machine stands still: its time-stamp counter and its local APIC's timer.
//!
//! In the kernel they go on with the host's time. So a vCPU notes where they are when it comes back from guest code, and
//! if the machine was stopped since, it puts them there again before it goes on.

use cardcage_accel::VcpuError;
use kvm_bindings::kvm_msr_entry;

use crate::state::{lapic_of, msrs, page_of, set_word, word};
use crate::vcpu::KvmVcpu;

/// IA32_TIME_STAMP_COUNTER and IA32_TSC_DEADLINE.
const TSC: u32 = 0x10;
const TSC_DEADLINE: u32 = 0x6e0;
/// The current count of the timer, in the local APIC's page.
const CURRENT_COUNT: usize = 0x390;

/// Where a vCPU's time stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    tsc: u64,
    /// 0 if it is not armed.
    deadline: u64,
    /// 0 if the timer is not on its way.
    count: u32,
    /// [`Machine::starts`](crate::accelerator::Machine) then; `None` if the time is to be put back in any case.
    starts: Option<u64>,
}

impl Standing {
    /// Puts the noted time into saved state, in the place of one that has gone on.
    pub(crate) fn amend(&self, page: &mut [u8], msrs: &mut [(u32, u64)]) {
        set_word(page, CURRENT_COUNT, self.count);
        for (index, value) in msrs {
            match *index {
                TSC => *value = self.tsc,
                TSC_DEADLINE => *value = self.deadline,
                _ => {}
            }
        }
    }
}

impl KvmVcpu {
    /// Where the time is now.
    pub(crate) fn standing(&self, starts: Option<u64>) -> Result<Standing, VcpuError> {
        let entry = |index| kvm_msr_entry { index, ..Default::default() };
        let mut both = msrs(&[entry(TSC), entry(TSC_DEADLINE)]);
        // Where there is no deadline timer only the first is read.
        let read = self.fd.get_msrs(&mut both).map_err(self.failed("KVM_GET_MSRS"))?;
        let value = |n: usize| both.as_slice().iter().take(read).nth(n).map_or(0, |msr| msr.data);
        let page = page_of(&self.fd.get_lapic().map_err(self.failed("KVM_GET_LAPIC"))?);
        Ok(Standing { tsc: value(0), deadline: value(1), count: word(&page, CURRENT_COUNT), starts })
    }

    /// Puts the time back to where it stood, if the machine was stopped since.
    pub(crate) fn put_time_back(&mut self, starts: u64) -> Result<(), VcpuError> {
        let Some(stood) = self.stood.take().filter(|s| s.starts != Some(starts)) else { return Ok(()) };
        self.put_msr(TSC, stood.tsc)?;
        if stood.count == 0 && stood.deadline == 0 {
            return Ok(());
        }
        // The kernel's timer starts anew, and forgets that it may have expired in between.
        let mut page = page_of(&self.fd.get_lapic().map_err(self.failed("KVM_GET_LAPIC"))?);
        if stood.count != 0 {
            set_word(&mut page, CURRENT_COUNT, stood.count);
        }
        self.fd.set_lapic(&lapic_of(&page)).map_err(self.failed("KVM_SET_LAPIC"))?;
        if stood.deadline != 0 { self.put_msr(TSC_DEADLINE, stood.deadline) } else { Ok(()) }
    }

    fn put_msr(&self, index: u32, data: u64) -> Result<(), VcpuError> {
        let one = msrs(&[kvm_msr_entry { index, data, ..Default::default() }]);
        match self.fd.set_msrs(&one).map_err(self.failed("KVM_SET_MSRS"))? {
            1 => Ok(()),
            _ => Err(VcpuError::State { index: self.index, what: format!("MSR {index:#x} cannot be {data:#x}") }),
        }
    }
}
