#!/usr/bin/env bash
# Trains the compact network conditioned by concatenation and as in StableSR for the same time.
#
#     training/run-time-aware.sh SHARDS_FOLDER OUTPUT MINUTES [VARIANT ...] [-- --set TABLE.FIELD=VALUE ...]
#
# Variants, by default the first two; each has a card of its own for MINUTES (compilation included,
# reading the shards not):
#
#     concat       recipes/teacher.toml: the low-resolution picture beside the noisy one
#     time-aware   recipes/time-aware.toml: time-aware encoder and modulation, all trained together
#     time-blind   the same with an encoder that does not know the time (the paper's ablation)
#     frozen       the same with the paper's frozen prior: two thirds of MINUTES for a prior that sees
#                  no low-resolution picture, the rest for encoder and modulation alone
#
# More variants than cards take turns. Seed, data, batch and schedule are the same for all; what a
# variant does within the time is up to it. Weights: OUTPUT/VARIANT/weights/net-ema.safetensors.
# What is in OUTPUT already is never written over. SIGTERM stops with a checkpoint of each.
set -uo pipefail
if (($# < 3)); then
  sed -n '2,5p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=$1 out=$2 minutes=$3
shift 3
variants=()
while (($#)) && [[ $1 != -- ]]; do
  variants+=("$1")
  shift
done
(($#)) && shift
changes=("$@")
((${#variants[@]})) || variants=(concat time-aware)
if ! seconds=$(awk -v m="$minutes" 'BEGIN { if (m !~ /^[0-9]*[.]?[0-9]+$/ || m <= 0) exit 1
    printf "%d", m * 60 + 0.5 }'); then
  echo "MINUTES: $minutes is no number above 0" >&2
  exit 2
fi
for variant in "${variants[@]}"; do
  case $variant in
    concat | time-aware | time-blind) folders=("$variant") ;;
    frozen) folders=(prior frozen) ;;
    *) echo "variant: $variant is unknown; give concat, time-aware, time-blind or frozen" >&2; exit 2 ;;
  esac
  for folder in "${folders[@]}"; do
    if [[ -e $out/$folder ]]; then
      echo "OUTPUT: $out/$folder is there already; give another folder, or move it away" >&2
      exit 2
    fi
  done
done
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
cards=$(python3 -c 'import torch; print(max(1, torch.cuda.device_count()))') || exit 1
mkdir -p "$out" || exit 1
common=(--set "data.train=[\"$data/*.tar\"]" --set data.val= --set run.tensorboard=false
  --set run.steps=1000000)

stopped=0
run() { # COMMAND ...: in the foreground, but SIGTERM reaches it
  "$@" &
  local job=$! status
  trap 'stopped=1; kill -TERM "$job" 2>/dev/null' TERM INT
  wait "$job"
  status=$?
  ((stopped)) && wait "$job" && status=$?
  trap - TERM INT
  return "$status"
}

teacher() { # CARD FOLDER SECONDS RECIPE [OPTION ...]: CUDA graphs first; without if they fail
  local card=$1 folder=$2 seconds=$3 end=$((SECONDS + $3)) recipe=$4 mode left resume=()
  shift 4
  for mode in reduce-overhead default; do
    left=$((end - SECONDS))
    # one that hangs must not hold the card for ever; the first signal makes it write its weights
    CUDA_VISIBLE_DEVICES=$card run timeout -k 30 $((left + 180)) \
      python3 -m addsr.train teacher --config "$root/recipes/$recipe" "${common[@]}" \
      --set run.minutes="$(awk "BEGIN { print $left / 60 }")" --set run.compile_mode="$mode" \
      --output "$folder" "$@" "${changes[@]}" "${resume[@]}" >"$folder-$mode.log" 2>&1 && return 0
    echo "$folder: $mode failed, see $folder-$mode.log" >&2
    ((stopped)) && return 1
    # too late to compile once more; weights of a checkpoint, if there is one, stay as they are
    ((end - SECONDS > seconds / 5)) || return 1
    resume=(--resume latest)
  done
  return 1
}

variant() { # CARD NAME
  local card=$1 name=$2 first
  local grey=(--set 'net.conditioning="time-aware"' --set 'net.base="grey"')
  case $name in
    concat) teacher "$card" "$out/concat" "$seconds" teacher.toml ;;
    time-aware) teacher "$card" "$out/time-aware" "$seconds" time-aware.toml ;;
    time-blind)
      teacher "$card" "$out/time-blind" "$seconds" time-aware.toml --set net.guide_time=false ;;
    frozen)
      first=$((seconds * 2 / 3))
      teacher "$card" "$out/prior" "$first" time-aware.toml "${grey[@]}" \
        --set task.lr_free=true || return 1
      ((stopped)) && return 1
      teacher "$card" "$out/frozen" $((seconds - first)) time-aware.toml "${grey[@]}" \
        --set task.prior="$out/prior/weights/net-ema.safetensors" ;;
  esac
}

failed=0
for ((start = 0; start < ${#variants[@]}; start += cards)); do
  jobs=()
  for ((card = 0; card < cards && start + card < ${#variants[@]}; card++)); do
    variant "$card" "${variants[start + card]}" &
    jobs+=($!)
  done
  trap 'stopped=1; kill -TERM "${jobs[@]}" 2>/dev/null' TERM INT
  for job in "${jobs[@]}"; do
    until wait "$job"; do
      # a signal ends the waiting and not the job
      kill -0 "$job" 2>/dev/null && continue
      failed=1
      break
    done
  done
  ((stopped)) && exit 143
done
exit "$failed"
