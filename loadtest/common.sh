# Sourced by the scripts in benches: build, start servers, run rounds. Needs bash, cargo, python3, taskset.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
server_core=${SERVER_CORE:-0}
generator_core=${GENERATOR_CORE:-1}
rounds=${ROUNDS:-5}
duration=${DURATION:-3}
warmup=${WARMUP:-1}

work=$(mktemp -d)
results=$work/results
pids=()

fail() { echo "${0##*/}: $*" >&2; exit 1; }
note() { echo "${0##*/}: $*" >&2; }

clean_up() {
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap clean_up EXIT

for core in "$server_core" "$generator_core"; do
    taskset -c "$core" true 2>/dev/null || fail "cannot run on core $core: two cores are needed (SERVER_CORE, GENERATOR_CORE)"
done

# build NAME...: sets $NAME to the binary for each of sconce, loadtest, compute, lifecycle, packing and simulator; SCONCE_BIN and the
# like name those that need no building. The whole workspace: parts of it would be built with fewer features, and all again for the others.
build() {
    local name variable bin bins=()
    for name in "$@"; do
        variable=${name^^}_BIN bin=sconce-$name
        [ "$name" != sconce ] || bin=sconce
        [ -n "${!variable:-}" ] || bins+=(--bin "$bin")
        declare -g "$name=${!variable:-$target/release/$bin}"
    done
    if [ "${#bins[@]}" -gt 0 ]; then
        note "building"
        cargo build --quiet --release --workspace --manifest-path "$root/Cargo.toml" --target-dir "$target" "${bins[@]}"
    fi
}

# Sets $minilm to the folder of all-MiniLM-L6-v2: MINILM, or the one that tests/setup installs.
find_minilm() {
    minilm=${MINILM:-$target/models/minilm}
    if [ -z "${MINILM:-}" ] && [ ! -d "$minilm" ] && [ -f "$target/clients.env" ]; then
        minilm=$(. "$target/clients.env" && echo "${SCONCE_MINILM:-}")
    fi
    [ -f "$minilm/model.safetensors" ] ||
        fail "no all-MiniLM-L6-v2 in '$minilm': run tests/setup, or set MINILM to a folder with its config.json, tokenizer.json and model.safetensors"
}

# start NAME PATTERN COMMAND...: runs COMMAND on the server's core, and waits for a line of its output that PATTERN, a sed
# expression, turns into the address. Sets $started_pid and $started_addr.
start() {
    local name=$1 pattern=$2 log=$work/$1.log
    shift 2
    : >"$log"
    taskset -c "$server_core" "$@" >>"$log" 2>&1 &
    started_pid=$!
    pids+=("$started_pid")
    local deadline=$((SECONDS + ${START_SECONDS:-120}))
    until started_addr=$(sed -nE "$pattern" "$log" | head -n 1) && [ -n "$started_addr" ]; do
        kill -0 "$started_pid" 2>/dev/null || { cat "$log" >&2; fail "$name did not start"; }
        [ "$SECONDS" -lt "$deadline" ] || { cat "$log" >&2; fail "$name is not ready after ${START_SECONDS:-120} s"; }
        sleep 0.1
    done
}

# start_sconce MODELS [FLAG...]
start_sconce() {
    local models=$1
    shift
    start sconce '/"message": *"ready"/s/.*"grpc": *"([^"]+)".*/\1/p' \
        "$sconce" serve --models "$models" --builtin identity,add_sub \
        --grpc 127.0.0.1:0 --admin 127.0.0.1:0 --http 127.0.0.1:0 "$@"
}

# measure CASE SERVER ADDR PID GENERATOR-ARGUMENTS...: one closed-loop run, appended to $results.
measure() {
    local case=$1 server=$2 addr=$3 pid=$4 line
    shift 4
    line=$(taskset -c "$generator_core" "$loadtest" closed "$addr" --server-pid "$pid" \
        --duration "$duration" --warmup "$warmup" --json "$@") || fail "the run against $server failed: $line"
    printf '%s\t%s\t%s\n' "$case" "$server" "$line" >>"$results"
}

# measure_open CASE SERVER ADDR PID RATE GENERATOR-ARGUMENTS...: one open loop with random gaps, appended to $results. It is no error
# that nothing succeeded.
measure_open() {
    local case=$1 server=$2 addr=$3 pid=$4 rate=$5 line
    shift 5
    line=$(taskset -c "$generator_core" "$loadtest" open "$addr" --rate "$rate" --poisson --server-pid "$pid" \
        --duration "$duration" --warmup "$warmup" --json "$@") || [ -n "$line" ] || fail "the run against $server failed"
    printf '%s\t%s\t%s\n' "$case" "$server" "$line" >>"$results"
}

# of_last COLUMN
of_last() { tail -n 1 "$results" | cut -f 3 | python3 -c "import json, sys; print(json.load(sys.stdin)['$1'])"; }

# product A B
product() { python3 -c "print(f'{$1 * $2:.1f}')"; }

# Where and when, for the head of a report.
describe() {
    local cpu commit
    cpu=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
    commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo "not committed")
    echo "${cpu:-unknown CPU}, Linux $(uname -r), $(date -u +%F), commit $commit; medians of $rounds interleaved rounds of $duration s;" \
        "server on core $server_core, generator on core $generator_core."
}
