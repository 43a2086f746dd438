//! A machine with its vCPUs and its run state, owned by one thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use cardcage_accel::{Bus, VcpuState};
use cardcage_qtest::Qtest;
use serde_json::json;
use tracing::{error, info};

use crate::board::{Board, BoardError};
use crate::config::MachineConfig;
use crate::control::{Cause, Control, Message, Request, RunState};
use crate::qtest::QtestOptions;
use crate::vcpu::Vcpus;

/// A machine that is built. [`Vm::run`] owns it until it ends.
pub struct Vm {
    board: Board,
    vcpus: Vcpus,
    config: MachineConfig,
    state: RunState,
    control: Control,
    requests: Receiver<Message>,
    exit_status: Option<i32>,
    /// What the processor starts with after a reset.
    boot_state: Option<VcpuState>,
    qtest: Option<Qtest>,
}

impl Vm {
    /// Builds a machine. Nothing of the guest runs before [`Vm::run`].
    pub fn build(config: MachineConfig) -> Result<Self, BoardError> {
        let (control, requests) = Control::new();
        let (board, vcpus) = Board::build(&config, &control)?;
        let vcpus = Vcpus::new(vcpus, config.accelerator, &control).map_err(BoardError::Thread)?;
        let state = RunState::Prelaunch;
        let mut vm =
            Self { board, vcpus, config, state, control, requests, exit_status: None, boot_state: None, qtest: None };
        vm.boot_state = vm.board.boot(&vm.config)?;
        if vm.has_nothing_to_start() && !vm.config.start_paused {
            return Err(BoardError::NothingToBoot);
        }
        vm.reset_vcpus()?;
        Ok(vm)
    }

    /// A way to reach the machine from other threads.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The board, for listings.
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }
    pub(crate) fn config(&self) -> &MachineConfig {
        &self.config
    }
    /// The machine as a vCPU sees it.
    pub fn bus(&self) -> Arc<dyn Bus> {
        self.board.spaces.clone()
    }

    /// Serves the test that drives this machine.
    pub fn serve_qtest(&mut self, options: &QtestOptions) -> Result<(), String> {
        self.qtest = Some(options.start(&self.board)?);
        Ok(())
    }

    /// Current run state.
    pub fn state(&self) -> RunState {
        self.state
    }

    /// Runs the machine until it ends, and gives the exit status.
    pub fn run(mut self) -> i32 {
        if !self.config.start_paused {
            self.resume();
        }
        loop {
            match self.requests.recv_timeout(Duration::from_secs(3600)) {
                Ok(Message::Request(request)) => self.handle(request),
                Ok(Message::Call(f)) => f(&mut self),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.exit_status = Some(0),
            }
            if let Some(status) = self.exit_status {
                self.pause_guest();
                self.qtest = None;
                self.board.tear_down();
                return status;
            }
        }
    }

    /// Whether the vCPUs would have nothing to run.
    fn has_nothing_to_start(&self) -> bool {
        self.boot_state.is_none() && self.vcpus.len() > 0
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Exit(status) => {
                self.pause_guest();
                self.exit_status = Some(status);
            }
            Request::Shutdown(cause) => self.shutdown(cause, 0),
            Request::Reset(cause) => self.reset(cause),
            Request::GuestPanicked => {
                self.board.emit("GUEST_PANICKED", Some(json!({"action": "pause"})));
                self.stop_in(RunState::GuestPanicked);
                self.board.emit("GUEST_PANICKED", Some(json!({"action": "poweroff"})));
                self.shutdown(Cause::GuestPanic, 0);
            }
            Request::InternalError(why) => {
                error!("{why}");
                self.stop_in(RunState::InternalError);
            }
        }
    }

    /// Powers off: the program ends, unless `-no-shutdown` keeps it.
    pub(crate) fn shutdown(&mut self, cause: Cause, status: i32) {
        self.board.emit("SHUTDOWN", Some(json!({"guest": cause.is_guest(), "reason": cause.name()})));
        if self.config.no_shutdown && cause.is_guest() {
            self.stop_in(RunState::Shutdown);
            return;
        }
        self.pause_guest();
        self.exit_status = Some(status);
    }

    /// Resets the machine: everything is as after power on, and what ran goes on running.
    pub(crate) fn reset(&mut self, cause: Cause) {
        if self.config.no_reboot {
            self.shutdown(cause, 0);
            return;
        }
        let running = self.state.is_running();
        self.pause_guest();
        self.board.reset();
        let booted = self.board.boot(&self.config).and_then(|state| {
            self.boot_state = state;
            self.reset_vcpus()
        });
        self.board.emit("RESET", Some(json!({"guest": cause.is_guest(), "reason": cause.name()})));
        if let Err(e) = booted {
            error!("the machine cannot be started again: {e}");
            self.state = RunState::InternalError;
            return;
        }
        match self.state {
            RunState::GuestPanicked | RunState::InternalError | RunState::Shutdown => self.state = RunState::Paused,
            _ if running => self.resume_guest(),
            _ => {}
        }
    }

    fn reset_vcpus(&mut self) -> Result<(), BoardError> {
        for index in 0..self.vcpus.len() {
            let state = self.boot_state.as_ref().filter(|_| index == 0).cloned();
            let state = state.unwrap_or_else(|| application_processor(index));
            self.vcpus.set_state(index, &state)?;
        }
        Ok(())
    }

    /// QMP `stop`.
    pub(crate) fn stop(&mut self) {
        self.stop_in(RunState::Paused);
    }

    fn stop_in(&mut self, state: RunState) {
        if self.state.is_running() {
            self.pause_guest();
            self.state = state;
            self.board.emit("STOP", None);
        } else if self.state == RunState::Prelaunch || state != RunState::Paused {
            self.state = state;
        }
    }

    /// QMP `cont`.
    pub(crate) fn cont(&mut self) -> Result<(), String> {
        if self.has_nothing_to_start() {
            return Err(BoardError::NothingToBoot.to_string());
        }
        match self.state {
            RunState::Running => {}
            RunState::Shutdown | RunState::InternalError | RunState::GuestPanicked => {
                return Err("Resetting the Virtual Machine is required".into());
            }
            RunState::Prelaunch | RunState::Paused => self.resume(),
        }
        Ok(())
    }

    fn resume(&mut self) {
        self.resume_guest();
        self.board.emit("RESUME", None);
    }

    fn resume_guest(&mut self) {
        self.state = RunState::Running;
        self.board.resume();
        self.vcpus.resume();
    }

    /// Nothing of the guest runs when this returns: no vCPU, no device, no request to a backend.
    fn pause_guest(&mut self) {
        self.vcpus.pause();
        self.board.pause();
    }

    /// The user presses the power button.
    pub(crate) fn power_down(&mut self) {
        info!("the power button is pressed");
        self.board.power_button();
        self.board.emit("POWERDOWN", None);
    }
}

/// A processor that waits to be started by the first one.
fn application_processor(index: usize) -> VcpuState {
    let mp_state = if index == 0 { cardcage_accel::MpState::Running } else { cardcage_accel::MpState::WaitForStartup };
    let apic_base = if index == 0 { 0xfee0_0900 } else { 0xfee0_0800 };
    VcpuState { mp_state, apic_base, ..VcpuState::default() }
}
