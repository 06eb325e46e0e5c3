# Sets what a build with the `cuda` feature needs, for the toolkit that setup.sh made:  . deploy/cuda/env.sh target/cuda
# CUDA_COMPUTE_CAP: the architecture to compile for, one at a time; 90 (Hopper) when not set.
# bash. Sourced, so it does not end the shell that sources it: look at its status.

_sconce_cuda=$(cd "${1:-target/cuda}" 2>/dev/null && echo "$PWD"/venv/lib/python3.*/site-packages/nvidia/cu13)
if [ -x "$_sconce_cuda/bin/nvcc" ]; then
    export CUDA_HOME=$_sconce_cuda CUDA_PATH=$_sconce_cuda NVCC=$_sconce_cuda/bin/nvcc
    export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
    case ":$PATH:" in *":$CUDA_HOME/bin:"*) ;; *) export PATH=$CUDA_HOME/bin:$PATH ;; esac
    # For the linker alone. LD_LIBRARY_PATH is left as it is: see setup.sh on the stub libcuda.
    export LIBRARY_PATH=$CUDA_HOME/lib:$CUDA_HOME/lib/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}
    unset _sconce_cuda
else
    unset _sconce_cuda
    echo "env.sh: no CUDA toolkit in '${1:-target/cuda}': run deploy/cuda/setup.sh first" >&2
    return 1
fi
