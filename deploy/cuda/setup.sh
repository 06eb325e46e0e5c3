#!/usr/bin/env bash
# Makes a CUDA 13.0 toolkit out of Python packages: enough to compile and link Sconce with its `cuda` feature on a machine
# that has neither a toolkit nor a GPU. To be used where no CUDA toolkit is installed.
#
#   bash deploy/cuda/setup.sh target/cuda      # once; a second run does nothing
#   . deploy/cuda/env.sh target/cuda
#   cargo build --release --features cuda -p sconce
#
# Needs python3 (with venv), a C compiler and cargo. Takes about 1.2 GB in the folder.
# 13.0 and no later: the driver of the GPU's machine must understand what this compiler emits.
#
# The libcuda made here is a stub for the linker, each of whose functions answers with an error. Never put it on the library path
# of a machine that has a GPU: the driver's own libcuda must be found there.
set -euo pipefail

packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-nvrtc==13.0.88
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96 nvidia-curand==10.4.0.35 nvidia-cublas==13.1.0.3
)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ "$#" -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
key="$(sha256sum < "${BASH_SOURCE[0]}") $(sha256sum < "$root/Cargo.lock")"
[ "$(cat "$folder/.stamp" 2>/dev/null)" != "$key" ] || exit 0
rm -f "$folder/.stamp"

[ -x "$folder/venv/bin/pip" ] || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "${packages[@]}"

toolkit=$(echo "$folder"/venv/lib/python3.*/site-packages/nvidia/cu13)
cd "$toolkit/lib"
# The packages bring neither the names the linker asks for (libNAME.so) nor the folder some builds look in (lib64).
for file in lib*.so.*; do
    name=${file%%.so.*}.so
    [ -e "$name" ] || ln -s "$file" "$name"
done
# Several files start with libnvrtc: this is the one.
ln -sfn libnvrtc.so.13 libnvrtc.so
[ -e "$toolkit/lib64" ] || ln -s lib "$toolkit/lib64"

# libcuda comes with a driver, and there is none: a stub with every function that the bindings declare stands in for it.
bindings=$(cd "$root" && cargo metadata --format-version 1 --locked --all-features |
    python3 -c 'import json, os, sys
print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
mkdir -p "$toolkit/lib/stubs"
cd "$toolkit/lib/stubs"
grep -ohE '\bfn cu[A-Z][A-Za-z0-9_]*' "$bindings/src/driver/sys/mod.rs" | sort -u |
    sed 's/^fn \(.*\)/int \1(void) { return 100; }  \/* no device *\//' > cuda.c
[ -s cuda.c ] || { echo "$0: no driver functions found in the sources of cudarc" >&2; exit 1; }
"${CC:-cc}" -shared -fPIC -O1 -Wl,-soname,libcuda.so.1 -o libcuda.so.1 cuda.c
ln -sfn libcuda.so.1 libcuda.so

echo "$key" > "$folder/.stamp"
