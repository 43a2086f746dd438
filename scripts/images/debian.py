"""A minimal Debian root file system as a raw ext4 image: what a guest looks like that nobody prepared for us.

Made without loop devices or mounts: mmdebstrap writes a tar archive, mke2fs reads its unpacked files. As root this
needs nothing else; other users need user namespaces (mmdebstrap's mode unshare) and fakeroot.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from . import stamp
from .apt import Unavailable, run

PACKAGES = ("systemd-sysv", "udev", "dbus", "python3-minimal", "python3", "openssl", "iproute2", "e2fsprogs")
SIZE = "1G"
# Fixed, so that two builds of the same packages differ in little but inode change times.
UUID = "6b1c4d1e-9f0a-4a0e-8d6b-cca9e0000001"
EPOCH = "1700000000"
SOURCES = Path(__file__).with_name("debian")


def build(guest: Path, update: bool) -> None:
    """Makes `guest`/debian.img for the Debian release that this machine runs."""
    mark = stamp.Stamp(guest / "debian.json")
    files = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    release = _codename()
    inputs = {"recipe": stamp.recipe(__file__, *files), "release": release}
    if mark.is_current(inputs) and not update:
        return
    print(f"guests: building debian.img (Debian {release}); this takes a minute or two", flush=True)
    with tempfile.TemporaryDirectory(prefix="cardcage-root-", dir=guest) as scratch:
        os.chmod(scratch, 0o755)
        archive = Path(scratch) / "root.tar"
        _bootstrap(release, archive, Path(scratch))
        image = Path(scratch) / "debian.img"
        _make_image(archive, image, Path(scratch))
        os.replace(image, guest / "debian.img")
    mark.write(inputs, [guest / "debian.img"])
    print(f"guests: debian.img: Debian {release}, user root, password cardcage", flush=True)


def _codename() -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.M)
    if not found:
        raise Unavailable("/etc/os-release names no Debian release to build a root file system of")
    return found[1]


def _bootstrap(release: str, archive: Path, scratch: Path) -> None:
    sources = _sources(release, scratch)
    hooks = []
    for file in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        inside = "/" + str(file.relative_to(SOURCES))
        mode = "755" if "/sbin/" in inside else "644"
        hooks.append(f'install -D -m {mode} "{file}" "$1{inside}"')
    hooks += [
        'echo root:cardcage | chroot "$1" chpasswd',
        'echo cardcage >"$1/etc/hostname"',
        'echo "/dev/vda / ext4 defaults 0 1" >"$1/etc/fstab"',
        'chroot "$1" systemctl enable cardcage-run.service',
        'chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer'
        ' e2scrub_reap.service fstrim.timer systemd-networkd-wait-online.service',
        'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin',
    ]
    environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH, "LC_ALL": "C"}
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}",
               '--dpkgopt=path-exclude=/usr/share/doc/*', '--dpkgopt=path-exclude=/usr/share/man/*',
               '--dpkgopt=path-exclude=/usr/share/locale/*', '--aptopt=Acquire::Languages "none"',
               *(f"--customize-hook={hook}" for hook in hooks), release, str(archive), *sources]
    log = scratch / "mmdebstrap.log"
    with log.open("w") as output:
        try:
            status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
                                    env=environment).returncode
        except FileNotFoundError:
            raise Unavailable("the program mmdebstrap is missing; run scripts/packages root") from None
    if status != 0:
        words = " ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        raise Unavailable(f"mmdebstrap failed with status {status}: {words}")


def _sources(release: str, scratch: Path) -> list[str]:
    """The machine's own apt sources of this release, one file each; none: mmdebstrap's default."""
    suites = {release, f"{release}-updates", f"{release}-security"}
    chosen = []
    for file in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text()):
            found = re.search(r"^Suites:(.*)$", stanza, re.M)
            if found and set(found[1].split()) <= suites:
                chosen.append(stanza.strip() + "\n")
    if chosen:
        path = scratch / "machine.sources"
        path.write_text("\n".join(chosen))
        return [str(path)]
    lines = []
    for file in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))]:
        for line in file.read_text().splitlines() if file.is_file() else ():
            found = re.match(r"deb(?: \[[^]]*\])? \S+ (\S+) ", line)
            if found and found[1] in suites:
                lines.append(line + "\n")
    if lines:
        path = scratch / "machine.list"
        path.write_text("".join(lines))
        return [str(path)]
    return []


def _make_image(archive: Path, image: Path, scratch: Path) -> None:
    script = (f'mkdir "{scratch}/root" && tar -C "{scratch}/root" --numeric-owner -xf "{archive}" && '
              f'mke2fs -q -t ext4 -d "{scratch}/root" -L cardcage -U {UUID} '
              f'-E hash_seed={UUID},root_owner=0:0 -m 0 "{image}" {SIZE}')
    shell = ["sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin; {script}"]
    if os.geteuid() == 0:
        run(*shell)
    else:
        run("fakeroot", "--", *shell)
