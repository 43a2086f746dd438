"""Debian packages as files: found, downloaded, checked and unpacked without installing anything.

The machine's own sources and package lists are used as they are. Where the lists are absent or too old (a fresh
container, a file that has left the archive), fresh lists are fetched once into target/guest/apt/, which needs no
privilege and leaves the machine's lists alone.
"""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import stamp


class Unavailable(Exception):
    """Something that a guest needs cannot be had; the text says what and why."""


class NotInArchive(Unavailable):
    """The machine's Debian release has no such package."""


@dataclass(frozen=True)
class Package:
    """One version of one binary package."""

    name: str
    version: str
    sha256: str


def run(*command: str, **options) -> str:
    """Runs a program and returns what it printed; `Unavailable` with its last words if it fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, check=False, env=os.environ | {"LC_ALL": "C"}, **options)
    except FileNotFoundError:
        raise Unavailable(f"the program {command[0]} is missing; scripts/packages says where it comes from") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{command[0]} failed with status {done.returncode}: {' '.join(words[-2:])}")
    return done.stdout


class Store:
    """The downloaded packages under `guest`/packages."""

    def __init__(self, guest: Path, update: bool = False):
        self.folder = guest / "packages"
        self.private = guest / "apt"
        self.update = update
        self.options: list[str] = []
        if os.geteuid() == 0:
            # apt's own unprivileged user cannot write to a checkout.
            self.options += ["-o", "APT::Sandbox::User=root"]

    def fetch(self, pattern: str, made_from: dict) -> tuple[Package, Path]:
        """The newest package whose whole name matches `pattern`, as a file.

        `made_from` is what an earlier run recorded; that version is kept while its file is there and sound.
        """
        if made_from and not self.update:
            package = Package(made_from["name"], made_from["version"], made_from["sha256"])
            file = self.file_of(package)
            if file.is_file() and stamp.sha256(file) == package.sha256:
                return package, file
        try:
            package = self._newest(pattern)
            return package, self._download(package)
        except Unavailable:
            if "-c" in self.options:
                raise
        self._fresh_lists()
        package = self._newest(pattern)
        return package, self._download(package)

    def file_of(self, package: Package) -> Path:
        """Where a package's file is kept."""
        return self.folder / f"{package.name}_{package.version.replace(':', '%3a')}.deb"

    def _fresh_lists(self) -> None:
        lists, cache = self.private / "lists", self.private / "cache"
        for folder in (lists / "partial", cache / "archives/partial"):
            folder.mkdir(parents=True, exist_ok=True)
        config = self.private / "apt.conf"
        config.write_text(f'Dir::State::lists "{lists}";\nDir::Cache "{cache}";\n')
        self.options += ["-c", str(config)]
        try:
            run("apt-get", *self.options, "-qq", "update")
        except Unavailable as error:
            raise Unavailable(f"no fresh package lists ({error})") from None

    def _newest(self, pattern: str) -> Package:
        names = [line.split(" - ")[0] for line in
                 run("apt-cache", *self.options, "search", "--names-only", f"^{pattern}$").splitlines()]
        found = [package for name in names for package in self._versions(name)]
        if not found:
            raise NotInArchive(f"apt knows no package {pattern}")
        return max(found, key=functools.cmp_to_key(_compare_versions))

    def _versions(self, name: str) -> list[Package]:
        found = []
        for record in run("apt-cache", *self.options, "show", name).split("\n\n"):
            fields = dict(re.findall(r"^(Package|Version|SHA256): (\S+)$", record, re.M))
            if len(fields) == 3:
                found.append(Package(fields["Package"], fields["Version"], fields["SHA256"]))
        return found

    def _download(self, package: Package) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.file_of(package)
        if target.is_file() and stamp.sha256(target) == package.sha256:
            return target
        print(f"guests: fetching {package.name} {package.version}", flush=True)
        temporary = self.folder / "partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        run("apt-get", *self.options, "-qq", "download", f"{package.name}={package.version}", cwd=temporary)
        [file] = temporary.glob("*.deb")
        if (actual := stamp.sha256(file)) != package.sha256:
            raise Unavailable(f"{package.name} {package.version} has SHA-256 {actual}, the package list says "
                              f"{package.sha256}")
        os.replace(file, target)
        temporary.rmdir()
        return target


def _compare_versions(one: Package, other: Package) -> int:
    """Debian's own order of versions; a signed kernel wins over its unsigned twin."""
    for relation, order in (("lt", -1), ("gt", 1)):
        command = ["dpkg", "--compare-versions", one.version, relation, other.version]
        if subprocess.run(command, check=False).returncode == 0:
            return order
    return other.name.endswith("-unsigned") - one.name.endswith("-unsigned")


def unpack(deb: Path, folder: Path) -> None:
    """Unpacks a package's files into `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run("dpkg-deb", "--extract", str(deb), str(folder))
