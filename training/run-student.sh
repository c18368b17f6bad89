#!/usr/bin/env bash
# How the student is trained on further within a fixed time on one or two GPUs.
#
#     training/run-student.sh SHARDS_FOLDER OUTPUT MINUTES [--set TABLE.FIELD=VALUE ...]
#
# The student starts from the embedded model, its discriminator and the teacher of this folder. The
# first step compiles for a minute or two in which the cards idle; phi' (recipes/features.toml)
# trains in that time. CUDA graphs are tried first; if they fail early, the run starts again without.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=$1 out=$2 minutes=$3
shift 3
export PYTHONPATH=$root/src PYTHONUNBUFFERED=1
cards=$(python3 -c 'import torch; print(max(1, torch.cuda.device_count()))')
mkdir -p "$out/start"
cp "$root/src/addsr/models/embedded/compact.safetensors" "$out/start/net.safetensors"
cp "$root/training/discriminator.safetensors" "$out/start/"
shards="data.train=[\"$data/*.tar\"]"
common=(--set "$shards" --set data.val= --set run.tensorboard=false)
end=$((SECONDS + minutes * 60))

student() { # MODE: of torch.compile
  local left
  left=$(python3 -c "print(max(0.1, ($end - $SECONDS) / 60))")
  torchrun --standalone --nproc_per_node="$cards" -m addsr.train student \
    --config "$root/recipes/student.toml" "${common[@]}" --init "$out/start" \
    --set task.teacher="$root/training/teacher.safetensors" --set run.minutes="$left" \
    --set run.steps=1000000 --set run.log_every=250 --set run.checkpoint_every=2000 \
    --set run.compile_mode="$1" --output "$out/student" "${@:2}"
}

(
  CUDA_VISIBLE_DEVICES=$((cards - 1)) timeout -k 15 110 python3 -m addsr.train features \
    --config "$root/recipes/features.toml" "${common[@]}" --set run.minutes=1.2 \
    --set run.compile=false --output "$out/features" >"$out/features.log" 2>&1
) &
if ! student reduce-overhead "$@" >"$out/student.log" 2>&1; then
  mv "$out/student.log" "$out/student-graphs.log"
  student default "$@" >"$out/student.log" 2>&1
fi
wait
