"""The image for CPUs, built by its Dockerfile and started. With --full: it compiles the server once more.

There is no registry of images here and no engine to run one. A Debian made of packages stands in for the base image, with this machine's
Rust toolchain and crates lent to it; what was built is started in its own root, as its own user."""

import json
import os
import re
import stat
import subprocess
import time
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from server import Server, setting, write_model
from stack import DEPLOY, FULL, number, output_of

pytestmark = [pytest.mark.skipif(not FULL, reason="compiles the server in an image; with --full"), pytest.mark.timeout(3600)]
LIMIT_BYTES = 120_000_000


def buildah(*words) -> str:
    home = Path(setting("SCONCE_IMAGE"))
    (home / "tmp").mkdir(exist_ok=True)
    where = ["--root", home / "storage", "--runroot", home / "run", "--storage-driver", "vfs"]
    # What is cached between builds, such as the folder that cargo compiles in, lies in the temporary folder.
    environment = {**os.environ, "TMPDIR": str(home / "tmp")}
    command = [str(word) for word in ["buildah", *where, *words]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image():
    """How the image is started, and a folder with its file system."""
    base = buildah("from", "scratch")
    buildah("copy", "--quiet", base, f"{setting('SCONCE_IMAGE')}/debian", "/")
    path = "PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    buildah("config", "--env", path, "--env", "CARGO_HOME=/usr/local/cargo", "--env", "CARGO_NET_OFFLINE=true", base)
    buildah("commit", "--quiet", "--rm", base, "localhost/rust")
    output_of("cargo", "fetch", "--locked", cwd=DEPLOY.parent)
    toolchain = output_of("rustc", "--print", "sysroot", cwd=DEPLOY.parent).strip()
    crates = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry"
    buildah(
        "build", "--isolation", "chroot", "--format", "docker", "--build-arg", "RUST=localhost/rust",
        "--volume", f"{toolchain}:/usr/local/rust:ro", "--volume", f"{crates}:/usr/local/cargo/registry",
        "--file", DEPLOY / "Dockerfile", "--tag", "localhost/sconce", DEPLOY.parent,
    )
    container = buildah("from", "localhost/sconce")
    yield json.loads(buildah("inspect", "--type", "image", "localhost/sconce"))["Docker"]["config"], Path(buildah("mount", container))
    buildah("rm", container)


def test_it_is_small_and_has_nothing_to_break_in_with(image):
    config, root = image
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    total = sum(path.stat().st_size for path in files)
    print(f"image: {total / 1e6:.1f} MB in {len(files)} files")
    assert total <= LIMIT_BYTES
    assert {path.name for path in files if path.stat().st_mode & 0o111} <= {"sconce"} | {path.name for path in root.rglob("*.so*")}
    assert not [path for path in files if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)]
    assert config["User"] == "65532:65532" and config["Entrypoint"] == ["/usr/bin/sconce"]
    assert config["Healthcheck"]["Test"] == ["CMD", "/usr/bin/sconce", "models"]
    assert not [one for one in config.get("Env") or [] if not one.startswith("PATH=")]
    assert config["ExposedPorts"].keys() == {"8000/tcp", "8001/tcp", "8002/tcp"}


def test_it_starts_as_its_user_and_answers(image, tmp_path, monkeypatch):
    _, root = image
    write_model(root / "models", "doubled", family="identity")
    start = tmp_path / "sconce"
    start.write_text(f'#!/bin/sh\nexec chroot --userspec=65532:65532 {root} /usr/bin/sconce "$@"\n')
    start.chmod(0o755)
    monkeypatch.setenv("SCONCE_BIN", str(start))
    started = time.monotonic()
    server = Server(Path("/models"))
    ready = time.monotonic() - started
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])
    print(f"image: ready after {ready * 1000:.0f} ms, {resident / 1000:.0f} MB resident")
    assert re.search(r"Uid:\s+65532\s+65532", status)
    with triton.InferenceServerClient(server.grpc) as client:
        assert client.infer("doubled", number("INPUT0", 3.0)).as_numpy("OUTPUT0").tolist() == [[3.0]]
    server.terminate()
    server.assert_clean_exit()
