"""The two programs under measurement, and how a process of theirs is started, watched and ended."""

import os
import platform
import re
import resource
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path


class Failed(Exception):
    """A run that did not get where it should; the text says how far."""


class Cardcage:
    """cardcage with the software CPU."""

    name = "cardcage"

    def __init__(self, path: Path):
        self.path = path

    def command(self, *options: str, memory_mib: int = 256) -> list[str]:
        """A machine without default devices but a serial port's place; `options` go to the end."""
        return [str(self.path), "-M", "pc", "-accel", "soft", "-m", f"{memory_mib}M", "-nodefaults", "-display", "none",
                *options]


class Qemu:
    """QEMU with TCG. Machine q35: under microvm a Linux boot hangs now and then for want of a calibration clock."""

    name = "qemu"

    def __init__(self, path: Path):
        self.path = path

    def command(self, *options: str, memory_mib: int = 256) -> list[str]:
        """As for cardcage. RAM comes from a memfd as cardcage's does, so that its mapping can be told apart."""
        return [str(self.path), "-M", "q35,memory-backend=ram", "-accel", "tcg", "-m", f"{memory_mib}M",
                "-object", f"memory-backend-memfd,id=ram,size={memory_mib}M", "-nodefaults", "-display", "none",
                *options]


Program = Cardcage | Qemu


def machine_facts(*programs: Program | None) -> dict[str, str]:
    """What the figures depend on: processor, kernel, versions."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    facts = {"processor": cpu[1] if cpu else platform.processor(), "cores": str(os.cpu_count()),
             "host kernel": platform.release()}
    for program in programs:
        if program:
            text = subprocess.run([program.path, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  text=True, check=False).stdout
            facts[program.name] = text.splitlines()[0] if text.strip() else f"{program.path}, version unknown"
    return facts


class Process:
    """A running program with pipes on its standard streams. Killed at the end of the `with` block."""

    def __init__(self, command: list[str]):
        self.output = bytearray()
        # A file, not a pipe: nobody reads it while the program runs.
        self.errors = tempfile.TemporaryFile()
        self.started = time.monotonic()
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.pid = self.child.pid

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGKILL)
        self.child.communicate()
        self.errors.close()

    def send(self, text: str) -> None:
        """Writes to the program's standard input."""
        self.child.stdin.write(text.encode())
        self.child.stdin.flush()

    def wait_for(self, marker: bytes, limit_s: float) -> None:
        """Reads output until `marker` appears in it."""
        deadline = time.monotonic() + limit_s
        searched = 0
        while self.output.find(marker, searched) < 0:
            searched = max(0, len(self.output) - len(marker))
            self._read_some(deadline, f"'{marker.decode()}'")

    def line(self, limit_s: float) -> bytes:
        """The next line of output; it is taken out of `output`."""
        deadline = time.monotonic() + limit_s
        while (end := self.output.find(b"\n")) < 0:
            self._read_some(deadline, "a line")
        line = bytes(self.output[:end])
        del self.output[:end + 1]
        return line

    def _read_some(self, deadline: float, awaited: str) -> None:
        ready, _, _ = select.select([self.child.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Failed(f"no {awaited} within the time limit")
        chunk = os.read(self.child.stdout.fileno(), 65536)
        if not chunk:
            status = self.child.wait()
            self.errors.seek(0)
            words = self.errors.read().decode(errors="replace").strip().splitlines()
            raise Failed(f"ended with status {status} before {awaited}: {' '.join(words[-2:])}")
        self.output += chunk

    def cpu_time(self) -> float:
        """User and system time of all threads so far, in seconds."""
        # The clock of another process (clock_getcpuclockid(3)): the complement of its id, and "scheduler time".
        return time.clock_gettime((~self.pid << 3) | 2)


def cpu_time_of(command: list[str], limit_s: float) -> tuple[float, int, str]:
    """Runs a command to its end: user and system time in seconds, exit status, what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"no end within {limit_s:.0f} s") from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    if done.returncode < 0:
        raise Failed(f"ended by signal {-done.returncode}: {done.stderr.decode(errors='replace').strip()[-200:]}")
    return spent, done.returncode, done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
