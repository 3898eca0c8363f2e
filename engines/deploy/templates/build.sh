#!/usr/bin/env bash
# Builds the TensorRT engines of this bundle on the device: ./build.sh [--anyway]
#
# Needs bash, trtexec (JetPack has it), coreutils and, where the bundle brings no plugin library, CMake and nvcc.
# May be run again at any time: engines whose inputs did not change are kept. --anyway turns the checks of memory and
# disk into warnings. TRTEXEC names another trtexec than that of PATH or /usr/src/tensorrt/bin.
set -Eeuo pipefail
export LC_ALL=C

readonly NAME=@NAME@ PRESET=@PRESET@
readonly JETPACK=@JETPACK@ L4T=@L4T@ TENSORRT=@TENSORRT@ CHIP=@CHIP@ SM=@SM@ ARCHITECTURE=@ARCHITECTURE@ SHELL_VERSION=@SHELL_VERSION@
readonly SOURCE_SHA256=@SOURCE_SHA256@
readonly PLUGIN=plugin/@LIBRARY@ USES_PLUGIN=@USES_PLUGIN@
readonly NEED_MEMORY_MB=@NEED_MEMORY_MB@ NEED_DISK_MB=@NEED_DISK_MB@
readonly ROOT=${SVDQ_ROOT:-} # where another system's /etc and /proc lie, for tests

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}
trap 'fail "build.sh stopped at its line $LINENO, which should not happen: run it with bash -x and report the output."' ERR

anyway=0
case ${1:-} in
    '') ;;
    --anyway) anyway=1 ;;
    *) fail "$1 is no option of build.sh: it takes --anyway or nothing." ;;
esac

may_fail() { # a check that --anyway turns into a warning
    if ((anyway)); then
        printf 'warning: %s\n' "$1" >&2
    else
        fail "$1 Or run ./build.sh --anyway."
    fi
}

check_jetson() {
    local release=$ROOT/etc/nv_tegra_release model=$ROOT/proc/device-tree/model line major revision
    [[ -r $release ]] || fail "This is no Jetson (there is no $release): copy the bundle to a Jetson with JetPack $JETPACK."
    read -r line <"$release" || true
    [[ $line =~ ^#\ R([0-9]+)\ \(release\),\ REVISION:\ ([0-9.]+) ]] ||
        fail "$release does not say which Jetson Linux this is ('$line'): install JetPack $JETPACK."
    major=${BASH_REMATCH[1]} revision=${BASH_REMATCH[2]}
    [[ $major =~ ^($L4T)$ ]] ||
        fail "This is Jetson Linux $major.$revision, the bundle is for JetPack $JETPACK: bundle again with this device's --jetpack."
    [[ ! -r $model ]] || tr -d '\0' <"$model" | grep -qi "$CHIP" ||
        fail "This is a $(tr -d '\0' <"$model"), the bundle is for $CHIP: bundle again with --target for this device."
}

find_trtexec() {
    trtexec=${TRTEXEC:-$(command -v trtexec || true)}
    [[ -n $trtexec ]] || trtexec=$ROOT/usr/src/tensorrt/bin/trtexec
    [[ -x $trtexec ]] || fail "There is no trtexec ($trtexec): sudo apt-get install libnvinfer-bin, or set TRTEXEC."
    local banner number
    banner=$("$trtexec" --help 2>&1) || true
    [[ $banner =~ \[TensorRT\ v([0-9]+)\] ]] || fail "$trtexec does not say its version, so it cannot run here: run it to see why."
    number=${BASH_REMATCH[1]}
    if ((number >= 100000)); then
        version=$((number / 10000)).$((number / 100 % 100)).$((number % 100))
    else
        version=$((number / 1000)).$((number / 100 % 10)).$((number % 100))
    fi
    [[ ${version%.*} == "$TENSORRT" ]] ||
        fail "This is TensorRT $version, the bundle is for $TENSORRT (JetPack $JETPACK): bundle again with this device's --jetpack."
}

check_memory() {
    local available
    available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' "$ROOT/proc/meminfo")
    ((available >= NEED_MEMORY_MB)) ||
        may_fail "$available MB of memory are available and building takes about $NEED_MEMORY_MB: close programs, stop the desktop with sudo init 3, or add swap."
}

check_disk() {
    local free
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
    ((free >= NEED_DISK_MB)) ||
        may_fail "$free MB are free on this disk and building takes about $NEED_DISK_MB: make space or move the bundle."
}

check_files() {
    local bad
    [[ -r SHA256SUMS ]] || fail "SHA256SUMS is missing: copy the bundle again."
    bad=$(sha256sum --check --quiet --strict SHA256SUMS 2>/dev/null | head -n 1) || true
    [[ -z $bad ]] || fail "${bad%%: *} is missing or damaged: copy the bundle again."
}

build_plugin() {
    if ((!USES_PLUGIN)) || [[ -f $PLUGIN ]]; then
        return
    fi
    command -v cmake >/dev/null || fail "Building the plugin needs CMake: sudo apt-get install cmake."
    command -v nvcc >/dev/null || [[ -x $ROOT/usr/local/cuda/bin/nvcc ]] ||
        fail "Building the plugin needs nvcc: sudo apt-get install cuda-nvcc, or add its directory to PATH."
    echo "building $PLUGIN (some minutes; log in engines/plugin.log)"
    if ! { cmake -S plugin -B plugin/build -DSVDQ_ARCHS="$ARCHITECTURE" -DSVDQ_TENSORRT="$SHELL_VERSION" &&
        cmake --build plugin/build --parallel 2; } >engines/plugin.log 2>&1; then
        fail "The plugin could not be built ($(first_error engines/plugin.log)): see engines/plugin.log."
    fi
    mv "plugin/build/${PLUGIN##*/}" "$PLUGIN"
    rm -rf plugin/build
}

first_error() {
    local line
    line=$(grep -m 1 -iE '\[E\]|error|fatal' "$1" | cut -c 1-200) || true
    printf '%s' "${line:-it printed no error}"
}

digest() { sha256sum "$@" | cut -d ' ' -f 1; }

# build COMPONENT ONNX PLAN SHA256-OF-THE-ARTIFACT'S-ONNX USES-PLUGIN PROFILE FLAGS...
build() {
    local component=$1 onnx=$2 plan=$3 onnx_sha256=$4 uses_plugin=$5 profile=$6 plugin=null key status=0
    local log=engines/$component.log
    shift 6
    if ((uses_plugin)); then
        plugin="\"$(digest "$PLUGIN")\""
    fi
    key=$({ grep -F "  ${onnx%/*}/" SHA256SUMS && echo "$version $plugin $*"; } | digest)
    if [[ -f $plan && -f $plan.json ]] && grep -qF "\"inputs_sha256\": \"$key\"" "$plan.json" &&
        grep -qF "\"plan_sha256\": \"$(digest "$plan")\"" "$plan.json"; then
        echo "kept     $plan"
        return
    fi
    echo "building $plan (log in $log)"
    rm -f "$plan.json" "$plan"
    SECONDS=0
    { "$trtexec" "$@" || status=$?; } >"$log" 2>&1 # braces: bash's own word of a killed command goes there, too
    if ((status == 137)) || grep -qiE 'out ?of ?memory|cannot allocate memory' "$log" && ((status)); then
        fail "Memory ran out while $component was built: close programs, stop the desktop with sudo init 3, or add swap, and run build.sh again."
    fi
    if grep -qi 'no space left' "$log"; then
        fail "The disk is full: make space and run build.sh again."
    fi
    ((status == 0)) || fail "trtexec could not build $component ($(first_error "$log")): see $log."
    [[ -s $plan.partial ]] || fail "trtexec ended well but wrote no engine of $component: see $log."
    sync "$plan.partial"
    mv "$plan.partial" "$plan"
    printf '{"format": 1, "component": "%s", "preset": "%s", "sm": "%s", "tensorrt": "%s", "plugin_sha256": %s, "plugin_in_plan": false, "onnx_sha256": "%s", "source_sha256": "%s", "profiles": [%s], "refittable": false, "weight_streaming": false, "plan_sha256": "%s", "bytes": %s, "builder": "trtexec", "inputs_sha256": "%s"}\n' \
        "$component" "$PRESET" "$SM" "$version" "$plugin" "$onnx_sha256" "$SOURCE_SHA256" "$profile" \
        "$(digest "$plan")" "$(stat -c %s "$plan")" "$key" >"$plan.json.partial"
    mv "$plan.json.partial" "$plan.json"
    echo "         $SECONDS s, $(($(stat -c %s "$plan") / 1048576)) MB"
}

cd "$(dirname "${BASH_SOURCE[0]}")"
check_jetson
find_trtexec
{ mkdir -p engines && [[ -w engines ]]; } 2>/dev/null || fail "Cannot write $PWD/engines: move the bundle to a place that you can write to."
exec 9>engines/.lock
flock -n 9 || fail "Another build.sh is at work in $PWD: wait for it to end."
trap 'rm -f engines/*.partial' EXIT
check_files
check_disk
check_memory
echo "$NAME, $PRESET: TensorRT $version, JetPack $JETPACK"
build_plugin
@BUILDS@
echo "done: python3 run.py --prompt \"...\" --output image.png"
