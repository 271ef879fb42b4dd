#!/usr/bin/env bash
# Tests the kernels on a CUDA GPU, times all ops against other libraries, checks for races and memory errors, profiles
# and tunes, all within nine minutes. Leaves a folder of small files with a summary.md. Needs torch, triton, and pytest,
# but no network. Triton compiles the kernels with a C compiler and Python's headers; the C++ extension is not needed.
#
#   benchmarks/gpu.sh [OUT]             default OUT: runs/gpu; must be new, empty, or the folder of an earlier run
#   DRY_RUN=1 benchmarks/gpu.sh [OUT]   the same steps without a GPU: tiny sizes in Triton's interpreter
#   PYTHON=python3.12 PEERS=FOLDER      the Python to use; a folder of wheels of other libraries to compare with
#   BUDGET=520                          seconds for all steps; the last steps are dropped first (dry run: 2080)
#
# A failed step does not stop the others. Exit code: 1 if a step failed; 0 otherwise, even if some lacked time or tools.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "${1:-runs/gpu}" && cd "${1:-runs/gpu}" && pwd) || exit 2
summary=$out/summary.md
if [ ! -f "$summary" ] && [ -n "$(ls -A "$out")" ]; then
  echo "OUT must be an empty folder or the folder of an earlier run, got $out, which has other files" >&2
  exit 2
fi
rm -f "$out"/{bench_*,*.log,profile.md,launch_table.json,ncu.csv}
if ! python=$(type -P "${PYTHON:-python3}"); then
  echo "PYTHON must be a Python interpreter, got ${PYTHON:-python3}, which does not exist" >&2
  exit 2
fi
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
if [ -n "${PEERS:-}" ] && ! PEERS=$(cd "$PEERS" && pwd); then
  echo "PEERS must be an existing folder of wheels" >&2
  exit 2
fi
patience=${DRY_RUN:+4} # the interpreter is slow on a busy machine, so a dry run gets four times as long
patience=${patience:-1}
deadline=$((SECONDS + ${BUDGET:-$((520 * patience))}))
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
kit=$here/benchmarks/gpu_kit.py
checks=$here/benchmarks/gpu_checks.py
export PYTHONPATH=$work/site:$work/peers${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 LC_ALL=C
# Kernels compiled in one step are reused in later ones.
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor
unset TRITON_INTERPRET ATK_BACKEND ATK_LAUNCH_TABLE # the caller's settings would change what is tested and timed

ours=(--providers naive "atk triton")
if [ -n "${DRY_RUN:-}" ]; then
  export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=
  device=(--device cpu) tiny=(--tiny) bench=(--dtypes float32 --rounds 1 --sizes tiny --kinds forward step)
  tests=("$here"/tests/{kernels/test_normalize_triton,ops/test_info_nce_op}.py)
  tuned="[(3, 3, 9, 5, 16)], [torch.float32], device='cpu', repeats=1, choose=lambda *case: list(candidates(*case))[:2]"
  timed_first() {
    bench ops 90 --ops max_mean_similarity info_nce sigmoid_loss cross_attention_difference --providers naive nn "atk triton"
  }
  timed_last() {
    bench_model train_step 60 --ops aligned_train_step "${ours[@]}"
    bench aligned_info_nce 60 --ops aligned_info_nce "${ours[@]}"
  }
else
  device=(--device cuda) tiny=() bench=(--dtypes bfloat16)
  tests=("$here"/tests/ops/test_cuda_graphs.py "$here"/tests/kernels/test_*_triton.py
    "$here"/tests/ops/test_{aligned_skip_below,cross_attention*,info_nce_*,max_mean{,_varlen,_save_index},sigmoid}.py
    "$here"/tests/nn/test_difference_blocks.py)
  tuned="[(1024, 1024, 250, 32, 128)], [torch.bfloat16], seconds=15"
  timed_first() {
    bench clap_1024 90 --ops max_mean_similarity --sizes clap_1024 --kinds forward step
    bench clap_4096 40 --ops max_mean_similarity --sizes clap_4096 --kinds forward step --rounds 3 "${ours[@]}"
    bench info_nce 40 --ops info_nce --sizes batch_8192 batch_16384
    bench cross_attention 40 --ops cross_attention_difference --sizes thesis long_audio
    bench_model train_step 50 --ops aligned_train_step --sizes clap_256 --rounds 3 "${ours[@]}"
  }
  timed_last() {
    bench aligned_info_nce 30 --ops aligned_info_nce --sizes clap_1024 --kinds ragged_step "${ours[@]}"
    bench ragged 40 --ops max_mean_similarity --sizes clap_1024 --kinds ragged_forward ragged_step
    bench clap_256 40 --ops max_mean_similarity --sizes clap_256 --kinds forward step --dtypes bfloat16 float32
    bench sigmoid_loss 30 --ops sigmoid_loss --sizes batch_8192 batch_16384 "${ours[@]}"
    bench wide 30 --ops max_mean_similarity --sizes wide --kinds forward step
  }
fi

# line NAME STATUS SECONDS: prints a row of the table of steps
line() {
  echo "| $1 | $2 | $3 |" | tee -a "$summary"
}

# step NAME SECONDS COMMAND...: runs a step until its limit or the deadline; output goes to NAME.log
step() {
  local name=$1 limit=$(($2 * patience)) left=$((deadline - SECONDS)) start=$SECONDS
  shift 2
  if [ "$left" -lt 5 ]; then
    line "$name" "not run: out of time" ""
    return 1
  fi
  limit=$((left < limit ? left : limit))
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  local status=$? taken=$((SECONDS - start))
  if [ "$status" -eq 0 ]; then
    line "$name" "done" "$taken"
  elif [[ $status =~ ^(124|137)$ && $taken -ge $limit ]]; then # 137 before the limit: killed for its memory
    line "$name" "stopped at its limit; its results so far are below" "$taken"
  else
    line "$name" "FAILED ($status), see $name.log" "$taken"
  fi
  return $status
}

# bench NAME SECONDS OPTIONS...: atk bench; writes bench_NAME.md and .json after each case
bench() {
  local name=bench_$1 limit=$2
  shift 2
  step "$name" "$limit" "$python" -m atk.bench "${device[@]}" "${bench[@]}" --out "$out" --name "$name" "$@"
}

# bench_model NAME SECONDS OPTIONS...: bench for an op whose encoders need two more libraries
bench_model() {
  local missing
  missing=$("$python" -c 'import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if not find_spec(name)))' torchaudio transformers)
  if [ -n "$missing" ]; then
    line "bench_$1" "not installed: $missing" ""
    return
  fi
  bench "$@"
}

# run_tests FILES...: runs the tests in parallel processes, because most of the time goes into compiling the kernels,
# which does not need the GPU. Each test writes a line to part_*.log, so a process that is stopped leaves its results.
run_tests() {
  local pytest part parts status=0 pids=()
  parts=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # nproc obeys these variables
  parts=$((parts < 16 ? parts : 16)) # each uses half a gigabyte of GPU memory
  pytest=("$python" -m pytest -c "$here/pyproject.toml" -p no:cacheprovider -m triton)
  "${pytest[@]}" --collect-only "$@" >"$work/collected" || status=1
  echo "$(grep -c '^tests/.*::' "$work/collected") tests in $parts parts"
  [ $status -eq 0 ] || cat "$work/collected"
  awk -v here="$here" '/^tests\/.*::/ { print here "/" $0 }' "$work/collected" | split -n "r/$parts" - "$work/part_"
  for part in "$work"/part_*; do
    OMP_NUM_THREADS=1 xargs -r -d '\n' -a "$part" "${pytest[@]}" -vv --tb=short >"$part.log" 2>&1 &
    pids+=($!)
  done
  for part in "${pids[@]}"; do
    wait "$part" || status=1
  done
  return $status
}

# results_of_tests: prints the counts of passed, failed, and skipped tests per file, and the failed tests
results_of_tests() {
  grep -E ' tests in .* parts$' "$out/tests.log"
  sed -nE 's/^.*(test_\w+\.py)::.* (PASSED|FAILED|ERROR|SKIPPED)\b.*/\1: \2/p' "$out/tests.log" | sort | uniq -c
  grep -E '^(FAILED|ERROR) ' "$out/tests.log" | cut -c 1-200 | head -n 40
}

# tool NAME: prints the path of a CUDA tool, or nothing
tool() {
  local cuda=${CUDA_HOME:-/usr/local/cuda} path
  for path in "$(command -v "$1")" "$cuda/bin/$1" "$cuda"/*/"$1" /opt/nvidia/nsight-compute/*/"$1"; do
    [ -f "$path" ] && [ -x "$path" ] && echo "$path" && return
  done
}

# sanitize CHECK: runs compute-sanitizer on small calls; without PyTorch's memory cache every tensor has its own bounds
sanitize() {
  local sanitizer
  sanitizer=$(tool compute-sanitizer)
  if [ -z "$sanitizer" ]; then
    line "$1" "not installed: compute-sanitizer" ""
    return
  fi
  # The default launch timeout is 10 s, and Python's imports can take longer.
  step "$1" 50 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$1" --launch-timeout 60 --error-exitcode 9 \
    --print-limit 20 "$python" "$kit" calls "${device[@]}"
}

# counters: runs Nsight Compute on the slowest kernels of the profile; does not change the clocks
counters() {
  local ncu names ops metrics
  ncu=$(tool ncu)
  if [ -z "$ncu" ]; then
    line ncu "not installed: ncu" ""
    return
  fi
  if ! { read -r names && read -r -a ops && read -r metrics; } 2>/dev/null <"$work/slowest.txt" || [ -z "$names" ]; then
    line ncu "not run: no kernel in the profile" ""
    return
  fi
  step ncu 45 "$ncu" --csv --log-file "$out/ncu.csv" --clock-control none --kernel-name "regex:^($names)\$" \
    --launch-count 60 --metrics "$metrics" "$python" "$kit" once --ops "${ops[@]}" "${device[@]}" "${tiny[@]}"
}

commit=$(git -c safe.directory='*' -C "$here" describe --always --dirty --abbrev=12 2>/dev/null)
driver=$(timeout 10 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) || driver=none
driver=${driver%%$'\n'*} # one line per GPU
printf '# GPU kit%s\n\n- commit: %s\n- driver: %s\n' "${DRY_RUN:+, dry run}" "${commit:-unknown}" "$driver" >"$summary"
mkdir "$work/site" && cp -rL "$here/atk" "$work/site" && mkdir -p "$work"/site/atk/{kernels,bench} || exit 2
cp -rL "$here/kernels/." "$work/site/atk/kernels" || exit 2
cp -rL "$here/benchmarks/harness/." "$work/site/atk/bench" || exit 2
cd "$work" || exit 2 # a folder without an atk/ that would shadow the copy
timeout 60 "$python" "$kit" machine "${device[@]}" >>"$summary" 2>"$work/machine.log"
case $? in
  0) ;;
  3) cat "$work/machine.log" >&2 && rm "$summary" && exit 2 ;; # no GPU
  *) echo "- versions: unknown, $python failed: $(tail -n 1 "$work/machine.log")" >>"$summary" ;;
esac
printf '\n| step | status | seconds |\n|---|---|---:|\n' >>"$summary"

if [ -n "${PEERS:-}" ]; then
  step peers 60 "$python" -m pip install -q --no-index --no-deps --target "$work/peers" "$PEERS"/*.whl
fi
step doctor 20 "$python" -c "from atk.cli.doctor import report; print(report())"
step check 100 "$python" "$checks" check
export python here work
export -f run_tests
step tests 150 bash -c 'run_tests "$@"' "$0" "${tests[@]}"
cat "$work"/part_*.log >>"$out/tests.log" 2>/dev/null
timed_first
step profile 45 "$python" "$kit" profile --out "$work" "${device[@]}" "${tiny[@]}"
# The interpreter of a dry run replaces the compiler.
step clocks 45 env -u TRITON_INTERPRET "$python" "$checks" clocks "${device[@]}" "${tiny[@]}"
step calls 60 "$python" "$kit" calls "${device[@]}" # also compiles the kernels for the next two steps
sanitize memcheck
sanitize racecheck
step tune 60 "$python" -c "import sys, torch; from atk.kernels.tune import candidates, tune
print(tune($tuned, out=sys.argv[1]))" "$out/launch_table.json"
counters
timed_last

if [ -f "$work/profile.md" ]; then
  mv "$work/profile.md" "$out/profile.md"
fi
fence='```'
{
  printf '\nTotal: %d s.\n\n' "$SECONDS"
  timeout 30 "$python" "$kit" page --out "$out" 2>"$work/page.log" ||
    printf '## Key ratios\n\nNone: %s failed: %s\n' "$python" "$(tail -n 1 "$work/page.log")"
  printf '\n## What to send\n\nA tarball of this folder:\n\n    tar czf atk-gpu.tgz -C %q .\n' "$out"
  printf "\n## Tests\n\n$fence\n%s\n$fence\n" "$(results_of_tests)"
  for name in check clocks memcheck racecheck tune; do
    [ -f "$out/$name.log" ] && printf "\n## %s\n\n$fence\n%s\n$fence\n" "$name" "$(tail -n 30 "$out/$name.log")"
  done
  for table in "$out"/profile.md "$out"/bench_*.md; do
    [ -f "$table" ] && printf '\n## %s\n\n' "$(basename "$table" .md)" && cat "$table"
  done
} >>"$summary"

size=$(du -sk "$out" | cut -f 1)
echo "Send $out ($size KiB): tar czf atk-gpu.tgz -C $(printf %q "$out") ."
if [ "$size" -gt 1024 ]; then
  echo "Largest files in KiB:" && (cd "$out" && du -k -- * | sort -rn | head -n 3)
fi
! grep -q '^| .* | FAILED' "$summary"
