#!/usr/bin/env bash
# On a machine with a CUDA GPU, torch, triton and pytest (no registry needed): compiles the kernels, tests, times and
# tunes them within nine minutes, and leaves a folder of small files with a summary.md. The C++ extension is not needed.
#
#   benchmarks/gpu.sh [OUT]             default OUT: runs/gpu
#   DRY_RUN=1 benchmarks/gpu.sh [OUT]   the same steps without a GPU, in Triton's interpreter, at tiny sizes
#   PYTHON=python3.12 PEERS=FOLDER      the interpreter; a folder of wheels of other libraries to time beside ours
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "${1:-runs/gpu}" && cd "${1:-runs/gpu}" && pwd)
python=${PYTHON:-python3}
deadline=$((SECONDS + 530))
summary=$out/summary.md
export PYTHONPATH=$out/site:$out/peers PYTHONDONTWRITEBYTECODE=1

if [ -n "${DRY_RUN:-}" ]; then
  export TRITON_INTERPRET=1
  device=(--device cpu --rounds 1)
  shapes=("tiny --sizes tiny --dtypes float32 --providers naive chunked atk")
  tuned="[(3, 3, 9, 5, 16)], [torch.float32], device='cpu', repeats=1, choose=lambda *case: list(candidates(*case))[:2]"
else
  device=(--device cuda)
  shapes=(
    "clap_1024 --sizes clap_1024 --dtypes bfloat16"
    "clap_256 --sizes clap_256 --dtypes bfloat16 float32"
    "wide --sizes wide --dtypes bfloat16 --kinds forward step"
    "clap_4096 --sizes clap_4096 --dtypes bfloat16 --kinds forward step --rounds 3 --providers naive atk"
  )
  tuned="[(1024, 1024, 250, 32, 128)], [torch.bfloat16], seconds=45"
fi

# step NAME SECONDS COMMAND...: output to NAME.log, one line to the summary; never beyond the deadline.
step() {
  local name=$1 limit=$2 left=$((deadline - SECONDS)) start=$SECONDS
  shift 2
  if [ "$left" -lt 5 ]; then
    echo "- $name: not run, out of time" | tee -a "$summary"
    return 1
  fi
  timeout $((left < limit ? left : limit)) "$@" >"$out/$name.log" 2>&1
  local status=$?
  case $status in
    0) echo "- $name: done, $((SECONDS - start)) s" ;;
    124) echo "- $name: stopped after $((SECONDS - start)) s" ;;
    *) echo "- $name: FAILED ($status), $((SECONDS - start)) s, see $name.log" ;;
  esac | tee -a "$summary"
  return $status
}

printf '# Max-mean similarity on %s\n\n' "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo "no GPU")" >"$summary"
cd "$here" || exit 1
rm -rf "$out/site" && mkdir -p "$out/site" && cp -r atk "$out/site/atk" && cp -r kernels "$out/site/atk/kernels" && cp -r benchmarks/harness "$out/site/atk/bench" || exit 1
if [ -n "${PEERS:-}" ]; then
  step peers 60 "$python" -m pip install -q --no-index --no-deps --target "$out/peers" "$PEERS"/*.whl
fi
cd "$out" || exit 1 # where no atk/ without its kernels shadows the built one
step doctor 30 "$python" -c "from atk.doctor import report; print(report())"
# A process a file: most of the time goes into compiling kernels, which does not need the GPU.
# shellcheck disable=SC2016  # the inner shell expands
step tests 200 xargs -P 6 -I{} sh -c '"$0" -m pytest -c "$1/pyproject.toml" -p no:cacheprovider -k triton \
  --junitxml "$2/$(basename {} .py).xml" "{}"' "$python" "$here" "$out" < <(printf '%s\n' \
  "$here"/tests/test_max_mean{,_modes}.py "$here"/tests/test_cross_attention{,_modes}.py "$here"/tests/test_*_triton.py)
for shape in "${shapes[@]}"; do
  read -r name arguments <<<"$shape"
  # shellcheck disable=SC2086  # the arguments are words
  step "$name" 120 "$python" -m atk.bench --ops max_mean_similarity "${device[@]}" $arguments --out "$out" --name "$name"
done
step tune 150 "$python" -c "import torch; from atk.kernels.tune import candidates, tune
print(tune($tuned, out='$out/launch_table.json'))"

rm -rf "$out/site" "$out/peers" "$out/.benchmarks"
for table in "$out"/*.md; do
  [ "$table" = "$summary" ] || { printf '\n## %s\n\n' "$(basename "$table" .md)" && cat "$table"; } >>"$summary"
done
tail -n 5 "$out/tests.log"
! grep -qE '^- .*(FAILED|stopped|not run)' "$summary"
