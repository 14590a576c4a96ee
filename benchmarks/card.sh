#!/usr/bin/env bash
# All that needs a GPU, stage by stage: bash benchmarks/card.sh tests|sanitize|train|millions|time OUT [TEXT VALID]
#
# Logs and results go into OUT. `train` uses all cards at once and goes on where it was; `time` wants the machine to itself.
# TEXT and VALID are files of text (.xz too). Nothing here is a test: `python -m pytest -m gpu` is.
set -u
STAGE=$1 OUT=$2 TEXT=${3:-} VALID=${4:-}
mkdir -p "$OUT/log"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
CARDS=$(python3 -c 'import torch; print(torch.cuda.device_count())')
PYTEST="python3 -m pytest -q -W default -p no:cacheprovider -m gpu"
MIRAS="python3 -c 'import sys; from zoo.cli import main; sys.exit(main())'"

in_log() { # NAME COMMAND...: both streams into a file, the exit status at its end
  local name=$1; shift
  "$@" > "$OUT/log/$name.txt" 2>&1
  echo "exit status $?" >> "$OUT/log/$name.txt"
}

devices() { # COUNT: so many names of cards, in turn
  local i; for ((i = 0; i < $1; i++)); do echo -n "cuda:$((i % CARDS)) "; done
}

case $STAGE in
  tests)
    in_log tests $PYTEST -n "${WORKERS:-8}" tests/test_kernels_*.py tests/test_attention.py
    grep -E "^(FAILED|ERROR)|passed|failed" "$OUT/log/tests.txt" ;;

  sanitize) # one case of every family of kernels
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    cases=(
      "matrix.py::test_on_device[huber, bounded-torch.bfloat16]" "matrix.py::test_on_device[delta rule with momentum-torch.bfloat16]"
      "matrix.py::test_tiles_on_device[log cosh-64-333]" "channels.py::test_tiles_on_device[kda-777-64]"
      "channels.py::test_on_device[chunks-torch.bfloat16]" "values.py::test_tiles_on_device[chunks-777-128]"
      "normed.py::test_on_device[bounded with momentum-torch.bfloat16]" "mlp.py::test_bfloat16[32-biases, bounded]"
      "mlp.py::test_bfloat16[64-memora]" "mlp.py::test_bfloat16[64-gains, bounded]" "mlp.py::test_bfloat16[64-gated]"
      "mlp.py::test_bfloat16[64-titans]"
    )
    for i in "${!cases[@]}"; do
      in_log "memcheck $i" timeout 170 compute-sanitizer --tool memcheck --error-exitcode 9 $PYTEST "tests/test_kernels_${cases[i]}" &
    done
    wait
    for i in "${!cases[@]}"; do echo "${cases[i]}: $(grep -hE 'ERROR SUMMARY|exit status' "$OUT/log/memcheck $i.txt" | tr '\n' ' ')"; done ;;

  train)
    python3 -c "
from titans.data import shards
from titans.train import Data
for split in ('train', 'valid'): shards(Data(source='$TEXT', valid='$VALID'), split)"
    common=(--text "$TEXT" --valid "$VALID")
    in_log books python3 -m benchmarks.books "${common[@]}" --out "$OUT/books" --devices $(devices 8) &
    in_log chunk eval "CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $MIRAS sweep chunk --models lmm yaad --steps 400 --seeds 3 \
      --text '$VALID' --out '$OUT/chunk' --devices cpu cpu cpu cpu cpu cpu" &
    in_log depth eval "CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $MIRAS sweep depth --models lmm yaad --steps 400 --seeds 3 \
      --text '$VALID' --out '$OUT/depth' --devices cpu cpu cpu cpu cpu cpu" &
    in_log tasks python3 -m benchmarks.tasks "${common[@]}" --out "$OUT/tasks" --devices $(devices 4) &
    wait
    cat "$OUT"/*/table.md ;;

  millions) # a model that has learned to find a passkey reads two million bytes
    in_log passkey eval "$MIRAS train --folder '$OUT/passkey' --steps 1500 --precision bfloat16 --model.kind mal --model.dim 256 \
      --model.depth 4 --model.heads 4 --data.source 'task:{\"name\": \"passkey\", \"repeats\": 6}' --data.length 2048 --data.batch 16 \
      --optimizer.lr 2e-3 --records.quiet"
    in_log millions python3 -m benchmarks.millions "$OUT/passkey" --length 2000000 --out "$OUT"
    tail -n 5 "$OUT/log/millions.txt" ;;

  time)
    for row in KDA GLA "TTT-Linear 16" "TTT-Linear 64" "one long sequence" "one long sequence, exact" "delta rule" "attention 4096" \
      "huber momentum" "exact delta" "exact delta momentum"; do
      in_log "compile $row" python3 -m benchmarks.gpu --compile --rows "$row" &
    done
    in_log "compile variants" python3 -m benchmarks.variants perceptron --only reverse --compile &
    wait
    in_log gpu python3 -m benchmarks.gpu --json "$OUT/gpu.json"
    in_log gpu_mlp python3 -m benchmarks.gpu_mlp --breakdown --json "$OUT/gpu_mlp.json"
    in_log variants python3 -m benchmarks.variants perceptron --only reverse
    in_log large python3 -m benchmarks.large
    in_log models python3 -m benchmarks.models --json "$OUT/models.json"
    cat "$OUT"/log/{gpu,gpu_mlp,variants,large,models}.txt ;;

  *) sed -n '2,5p' "$0"; exit 2 ;;
esac
