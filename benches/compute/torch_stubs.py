"""Makes torch's PyPI wheel load without the gigabytes of CUDA libraries it links with and a CPU never calls.

Each missing library is replaced, inside of this virtual environment, by one of the same names that does nothing.
"""

import collections
import pathlib
import re
import subprocess
import sysconfig
import tempfile

MISSING = {
    "libcublas.so.13": "cublas",
    "libcublasLt.so.13": "cublasLt",
    "libcudnn.so.9": "cudnn",
    "libcufft.so.12": "cufft",
    "libcufile.so.0": "cuFile",
    "libcupti.so.13": "cupti",
    "libcusparse.so.12": "cusparse",
    "libcusparseLt.so.0": "cusparseLt",
    "libnccl.so.2": "nccl",
    "libnvrtc.so.13": "nvrtc",
    "libnvshmem_host.so.3": "nvshmem",
}
VERSIONS = {"NVSHMEM": "libnvshmem_host.so.3"}


def missing_names(libraries: pathlib.Path) -> dict[str, set[tuple[str, str]]]:
    """Of each missing library, the (name, version) pairs that torch's own libraries want."""
    names: dict[str, set[tuple[str, str]]] = collections.defaultdict(set)
    prefixes = sorted(((prefix, library) for library, prefix in MISSING.items()), reverse=True)
    for path in libraries.glob("*.so"):
        symbols = subprocess.run(["readelf", "--dyn-syms", "-W", path], check=True, capture_output=True, text=True)
        for name, version in re.findall(r" UND (\w+)(?:@(\S+))?", symbols.stdout):
            owner = next((library for prefix, library in prefixes if name.startswith(prefix)), None)
            owner = VERSIONS.get(version, version if version in MISSING else owner)
            if owner:
                names[owner].add((name, version))
    return names


def main() -> None:
    site = pathlib.Path(sysconfig.get_path("purelib"))
    names = missing_names(site / "torch/lib")
    with tempfile.TemporaryDirectory() as folder:
        source, script = pathlib.Path(folder, "stub.c"), pathlib.Path(folder, "stub.map")
        for library in MISSING:
            source.write_text("".join(f"void {name}(void) {{}}\n" for name, _ in sorted(names[library])))
            versions = sorted({version for _, version in names[library] if version})
            script.write_text("".join(f"{version} {{ global: *; }};\n" for version in versions))
            options = [f"-Wl,-soname,{library}"] + [f"-Wl,--version-script={script}"] * bool(versions)
            output = site / "nvidia/cu13/lib" / library
            subprocess.run(["cc", "-shared", "-nostdlib", "-fPIC", "-w", *options, "-o", output, source], check=True)


if __name__ == "__main__":
    main()
