#!/usr/bin/env bash
# Trains the compact network conditioned by concatenation and as in StableSR for the same time.
#
#     training/run-time-aware.sh SHARDS_FOLDER OUTPUT MINUTES [VARIANT ...] [-- --set TABLE.FIELD=VALUE ...]
#
# Variants, by default the first two; each has a card of its own for MINUTES (compilation included):
#
#     concat       recipes/teacher.toml: the low-resolution picture beside the noisy one
#     time-aware   recipes/time-aware.toml: time-aware encoder and modulation, all trained together
#     time-blind   the same with an encoder that does not know the time (the paper's ablation)
#     frozen       the same with the paper's frozen prior: two thirds of MINUTES for a prior that sees
#                  no low-resolution picture, the rest for encoder and modulation alone
#
# More variants than cards take turns. Seed, data, batch and schedule are the same for all; what a
# variant does within the time is up to it. Weights: OUTPUT/VARIANT/weights/net-ema.safetensors.
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
for variant in "${variants[@]}"; do
  case $variant in
    concat | time-aware | time-blind | frozen) ;;
    *) echo "variant: $variant is unknown; give concat, time-aware, time-blind or frozen" >&2; exit 2 ;;
  esac
done
export PYTHONPATH=$root/src PYTHONUNBUFFERED=1
cards=$(python3 -c 'import torch; print(max(1, torch.cuda.device_count()))')
mkdir -p "$out"
common=(--set "data.train=[\"$data/*.tar\"]" --set data.val= --set run.tensorboard=false
  --set run.steps=1000000)

teacher() { # CARD FOLDER SECONDS RECIPE [OPTION ...]: CUDA graphs first; without if they fail
  local card=$1 folder=$2 end=$((SECONDS + $3)) recipe=$4 mode left
  shift 4
  for mode in reduce-overhead default; do
    left=$(python3 -c "print(max(0.05, ($end - $SECONDS) / 60))")
    rm -rf "$folder"
    if CUDA_VISIBLE_DEVICES=$card python3 -m addsr.train teacher --config "$root/recipes/$recipe" \
      "${common[@]}" --set run.minutes="$left" --set run.compile_mode="$mode" \
      --output "$folder" "$@" "${changes[@]}" >"$folder-$mode.log" 2>&1; then
      return 0
    fi
    echo "$folder: $mode failed, see $folder-$mode.log" >&2
  done
  return 1
}

variant() { # CARD NAME
  local card=$1 name=$2 all first
  all=$(python3 -c "print(round($minutes * 60))")
  local grey=(--set 'net.conditioning="time-aware"' --set 'net.base="grey"')
  case $name in
    concat) teacher "$card" "$out/concat" "$all" teacher.toml ;;
    time-aware) teacher "$card" "$out/time-aware" "$all" time-aware.toml ;;
    time-blind)
      teacher "$card" "$out/time-blind" "$all" time-aware.toml --set net.guide_time=false ;;
    frozen)
      first=$((all * 2 / 3))
      teacher "$card" "$out/prior" "$first" time-aware.toml "${grey[@]}" \
        --set task.lr_free=true || return 1
      teacher "$card" "$out/frozen" $((all - first)) time-aware.toml "${grey[@]}" \
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
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
done
exit "$failed"
