"""The steps of cluster/Dockerfile, performed in a chroot, where there is no Docker engine.

    python -m tests.worlds.image_in_chroot FOLDER [--try]

The base image can't be had without a registry of images, so its place is taken by a small Debian
with its own Python of the same minor version, from the mirror that apt uses here. Each step after
that is read from the Dockerfile and run as it stands. Needs root, and Debian's debootstrap.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
#: Packages that make a Debian what the base image `python:3.11-slim` is.
BASE_PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
#: Variables of this machine by which pip and apt find their registries.
PASSED_ON = re.compile(r"(PIP|UV)_\w+|\w*_proxy|SSL_CERT_\w+|REQUESTS_CA_BUNDLE", re.IGNORECASE)
#: Files of this machine that the steps need to reach a network.
HOST_FILES = ("etc/resolv.conf", "etc/hosts", "etc/apt/sources.list", "etc/apt/sources.list.d",
              "etc/apt/apt.conf.d", "etc/apt/auth.conf.d", "etc/ssl/certs/ca-certificates.crt",
              "etc/pip.conf",
              "usr/local/share/ca-certificates")  # fmt: skip


@dataclass
class Image:
    """The state of an image between two steps."""

    folder: Path
    user: str = "0"
    workdir: str = "/"
    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)

    def run(self, words: list[str], *, user: str | None = None) -> None:
        """Run a program in the image."""
        own = {"HOME": "/root" if (user or self.user) == "0" else "/home/ray"}
        path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        passed = {name: os.environ[name] for name in os.environ if PASSED_ON.fullmatch(name)}
        who = user or self.user
        chroot = ["chroot", f"--userspec={who}:{who}", "--groups=", str(self.folder)]
        inner = ["sh", "-c", 'cd "$0" && exec "$@"', self.workdir, *words]
        variables = {**path, **own, **passed, **self.environment}
        subprocess.run(["env", "-i", *_assignments(variables), *chroot, *inner], check=True)


def _assignments(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Dockerfile: word and rest, lines joined, comments left out.

    >>> list(steps("# a comment\\nRUN a \\\\\\n && b\\nUSER 1000\\n"))
    [('RUN', 'a  && b'), ('USER', '1000')]
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            yield word.upper(), " ".join(rest.split("\n")).strip()


def perform(image: Image, word: str, rest: str) -> None:
    """Perform an instruction."""
    if word == "RUN":
        image.run(["sh", "-c", rest])
    elif word == "WORKDIR":
        image.workdir = rest
        inside(image.folder, rest).mkdir(parents=True, exist_ok=True)
    elif word == "USER":
        image.user = rest
    elif word == "ENV":
        pairs = [pair.partition("=") for pair in shlex.split(rest)]
        image.environment |= {name: value for name, _, value in pairs}
    elif word == "COPY":
        copy(image, rest)
    elif word == "CMD":
        image.command = [part.strip(' "') for part in rest.strip("[]").split(",")]
    elif word != "FROM":
        msg = f"no step {word} is known here; add it to tests/worlds/image_in_chroot.py"
        raise ValueError(msg)


def copy(image: Image, rest: str) -> None:
    """Copy the checkout, as `COPY --chown=USER . .` does: what git has, less the ignore file's."""
    match = re.fullmatch(r"--chown=(\d+) \. \.", rest)
    if match is None:
        msg = f"COPY {rest}: only `COPY --chown=USER . .` is known here"
        raise ValueError(msg)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode().split("\0")  # fmt: skip
    target, owner = inside(image.folder, image.workdir), int(match[1])
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for path in [target, *target.rglob("*")]:
        os.chown(path, owner, owner)


def inside(folder: Path, path: str) -> Path:
    """Return the path outside of the chroot of a path inside."""
    return folder / path.lstrip("/")


def mirror() -> tuple[str, str]:
    """Return the URL of apt's first mirror of this machine, and the release's code name."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME)", "Created-By: Packages"],
        check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    site, codename = listed[0].split()
    return site, codename.partition("-")[0]


def make_base(folder: Path) -> None:
    """Make a small Debian in a folder, like the base image: `python` and a pip that installs."""
    site, codename = mirror()
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}",
         codename, str(folder), site],
        check=True,
    )  # fmt: skip
    for name in HOST_FILES:
        source, target = Path("/", name), folder / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=False, dirs_exist_ok=True)
        elif source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    for config in (Path("~/.config/pip/pip.conf"), Path("~/.pip/pip.conf")):
        if config.expanduser().is_file():
            shutil.copy2(config.expanduser(), folder / "etc" / "pip.conf")
    (folder / "usr/bin/python").symlink_to("python3")
    for marker in (folder / "usr/lib").glob("python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    for name in ("proc", "dev", "sys"):
        subprocess.run(["mount", "--rbind", f"/{name}", str(folder / name)], check=True)


def main() -> None:
    """Perform all steps in a mount namespace of their own, and print the seconds of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--try", dest="tried", action="store_true", help="run the quick demo too")
    options = parser.parse_args()
    if os.environ.get("SLIDELAKE_CHROOT") != "1":
        os.environ["SLIDELAKE_CHROOT"] = "1"
        words = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork",
                 "--kill-child", sys.executable, "-m", "tests.worlds.image_in_chroot"]  # fmt: skip
        os.execvp("unshare", [*words, *sys.argv[1:]])
    folder = options.folder.absolute()
    start = time.monotonic()
    make_base(folder)
    print(f"{time.monotonic() - start:6.0f} s  FROM, by debootstrap", flush=True)
    image = Image(folder=folder)
    for word, rest in steps(DOCKERFILE.read_text()):
        start = time.monotonic()
        perform(image, word, rest)
        print(f"{time.monotonic() - start:6.0f} s  {word} {rest[:70]}", flush=True)
    image.run(image.command)
    image.run(["python", "-c", "import adlfs, gcsfs, onnxruntime, sksurv, torch, slidelake"])
    image.run(["sh", "-c", "id -u; ray --version; wget --version | head -n 1"])
    if options.tried:
        start = time.monotonic()
        image.run(["slidelake", "demo", "/home/ray/demo", "--quick", "--quiet"])
        print(f"{time.monotonic() - start:6.0f} s  slidelake demo --quick", flush=True)


if __name__ == "__main__":
    main()
