#!/usr/bin/env bash
# Trains the student with single parts of AddSR left out or changed, and scores each.
#
#     training/run-ablation.sh SHARDS_FOLDER VAL_FOLDER OUTPUT MINUTES [ARM ...] [-- --set TABLE.FIELD=VALUE ...]
#
# Arms, by default all in this order; a card that is free takes the next one:
#
#     baseline         recipes/student.toml from training/teacher.safetensors, fresh discriminator,
#                      distillation times 8, no perceptual term, no heads on features
#     baseline-1       the same with another seed: what lies between the two is chance
#     lr-regulated     the teacher sees the input and not the clean picture
#     constant         distillation weighs the same at every step
#     no-refinement    the last prediction is not in the condition of the next step
#     next             from training/gan.safetensors, distillation as in the recipe
#     next-sharpened   as next, L1 and Haar terms against sharpened targets
#     next-fifth       as next, with a fifth of the perceptual term
#     no-distillation  no distillation
#
# In the recipe as it is the perceptual term has the greatest part of the gradient and distillation a
# twentieth (docs/training-log.md): nothing that concerns distillation could be seen.
#
# Every arm takes STEPS steps (5000 if the environment has none), whatever the clock says: the schedule
# and the pictures seen are then the same. MINUTES (26 are meant, for two arms on each of two cards)
# is when all has to be over. An arm that is in OUTPUT/scores is not run again, one that was ended early
# goes on from its checkpoint, one that would not end in time is not begun: call it again, on another
# machine with OUTPUT/scores of the first. Code is compiled once for all arms (OUTPUT/compile.cache);
# an arm that fails is tried again without the cache, then without compilation.
#
# OUTPUT/results.tar has scores, docs (copy both, then `benchmarks/ablation.py --scores ...`) and logs;
# OUTPUT/pieces the averaged weights of the arms in KEEP ("next") in files of 16 MiB, for `cat`.
# OUTPUT/log says how far it is. NIQE_PARAMS in the environment is the published model's file.
# TINY=1 is a rehearsal of a minute on a CPU. SIGTERM stops with a checkpoint of each.
set -uo pipefail
if (($# < 4)); then
  sed -n '2,5p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=$1 val=$2 out=$3 minutes=$4
shift 4
arms=()
while (($#)) && [[ $1 != -- ]]; do
  arms+=("$1")
  shift
done
(($#)) && shift
more=("$@")
all=(baseline baseline-1 lr-regulated constant no-refinement next next-sharpened next-fifth
  no-distillation)
((${#arms[@]})) || arms=("${all[@]}")
for arm in "${arms[@]}"; do
  if [[ " ${all[*]} " != *" $arm "* ]]; then
    echo "arm: $arm is unknown; give some of ${all[*]}" >&2
    exit 2
  fi
done
if ! total=$(awk -v m="$minutes" 'BEGIN { if (m !~ /^[0-9]*[.]?[0-9]+$/ || m <= 0) exit 1
    printf "%d", m * 60 + 0.5 }'); then
  echo "MINUTES: $minutes is no number above 0" >&2
  exit 2
fi
steps=${STEPS:-5000}
[[ -n ${TINY:-} ]] && steps=${STEPS:-4}
if ! [[ $steps =~ ^[1-9][0-9]*$ ]]; then
  echo "STEPS: $steps is no whole number above 0" >&2
  exit 2
fi
for folder in "$data" "$val/lr" "$val/hr"; do
  [[ -d $folder ]] || { echo "$folder: is no folder" >&2; exit 2; }
done
niqe=()
if [[ -n ${NIQE_PARAMS:-} ]]; then
  [[ -f $NIQE_PARAMS ]] || { echo "NIQE_PARAMS: $NIQE_PARAMS is no file" >&2; exit 2; }
  niqe=(--niqe-params "$NIQE_PARAMS")
fi
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
cards=$(python3 -c 'import torch; print(max(1, torch.cuda.device_count()))') || exit 1
mkdir -p "$out/docs" "$out/logs" "$out/scores" "$out/train" || exit 1
rm -rf "$out/.taken"
mkdir "$out/.taken" || exit 1

say() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$out/log"; }
pack() { # what is worth carrying away; two cards may do so at a time
  local part=$out/.results.$BASHPID arm
  tar -cf "$part" -C "$out" docs scores logs log && mv "$part" "$out/results.tar"
  for arm in ${KEEP-next}; do
    if [[ -f $out/train/$arm/trained && ! -e $out/pieces/$arm.00 ]]; then
      mkdir -p "$out/pieces"
      split -d -b 16M "$out/train/$arm/weights/net-ema.safetensors" "$out/pieces/$arm."
    fi
  done
}

teacher=$root/training/teacher.safetensors gan=$root/training/gan.safetensors
device=cuda recipe=student.toml batch=64 reserve=100 compile=true
score=(--workers 6)
if [[ -n ${TINY:-} ]]; then
  device=cpu recipe=student-smoke.toml batch=4 reserve=5 compile=false cards=2
  score=(--limit 1 --steps 1,2 --weights 0,0.5 --fidelities 0.5)
  teacher=$out/teacher/weights/net-ema.safetensors gan=$teacher
  say "teacher of the rehearsal: begins"
  [[ -f $teacher ]] || python3 -m addsr.train teacher --config "$root/recipes/teacher-smoke.toml" \
    --set "data.train=[\"$data/*.tar\"]" --set data.val= \
    --output "$out/teacher" >"$out/logs/teacher.log" 2>&1 ||
    { echo "$out/logs/teacher.log: the rehearsal's teacher failed" >&2; exit 1; }
fi
[[ -f $teacher ]] || { echo "$teacher: is no file" >&2; exit 1; }
common=(--config "$root/recipes/$recipe" --set "data.train=[\"$data/*.tar\"]" --set data.val=
  --set "task.teacher=$teacher" --set run.tensorboard=false --set "run.steps=$steps"
  --set run.minutes=0 --set run.checkpoint_every=1500 --set run.checkpoints_limit=1)
[[ -z ${TINY:-} ]] && common+=(--set run.log_every=250)

stopped=0
run() { # COMMAND ...: in the foreground, but SIGTERM reaches it
  "$@" &
  local job=$! status
  trap 'stopped=1; kill -TERM "$job" 2>/dev/null' TERM INT
  wait "$job"
  status=$?
  ((stopped)) && wait "$job" && status=$?
  trap 'stopped=1' TERM INT
  return "$status"
}

await() { # JOB ...: until all are over, whatever signals come; 1 if one failed
  local job failed=0
  for job in "$@"; do
    until wait "$job"; do
      kill -0 "$job" 2>/dev/null && continue # a signal ended the waiting and not the job
      failed=1
      break
    done
  done
  return "$failed"
}

left() { echo $((total - SECONDS - reserve)); }

train() { # CARD ARM: 0 once it has all its steps
  local card=$1 arm=$2 folder=$out/train/$2 status try options
  local changes=(--init "$teacher" --set task.perceptual_weight=0 --set task.head_share=0
    --set task.distill_weight=8)
  [[ -f $folder/trained ]] && return 0
  case $arm in
    baseline-1) changes+=(--set run.seed=1) ;;
    lr-regulated) changes+=(--set task.regulation=lr) ;;
    constant) changes+=(--set task.ta_adaptive=false) ;;
    no-refinement) changes+=(--set task.psr_weight=0) ;;
    no-distillation) changes+=(--set task.distill_weight=0) ;;
    next*) changes+=(--init "$gan" --set task.distill_weight=1) ;;&
    next-sharpened) changes+=(--set task.sharpen=0.5) ;;
    next-fifth) changes+=(--set task.perceptual_weight=0.1) ;;
  esac
  for try in cache fresh eager; do
    (($(left) > 0)) || return 1
    options=(--set "run.compile=$compile") # the recipe's own, unless the first tries fail
    case $try in
      cache) options+=(--set "run.compile_cache=$out/compile.cache") ;;
      fresh) export TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 ;;
      eager) options=(--set run.compile=false) ;;
    esac
    # at the end of its time the first signal makes it write a checkpoint
    CUDA_VISIBLE_DEVICES=$card run timeout -k 30 "$(left)" python3 -m addsr.train student \
      "${common[@]}" "${changes[@]}" "${options[@]}" "${more[@]}" --resume latest \
      --output "$folder" >"$out/logs/$arm-$try.log" 2>&1
    status=$?
    unset TORCHINDUCTOR_FORCE_DISABLE_CACHES
    ((stopped)) && return 1
    ((status == 0)) && touch "$folder/trained" && return 0
    if ((status == 124 || status == 137)); then
      say "$arm: out of time; it goes on from its checkpoint if $folder is still there"
      return 1
    fi
    say "$arm: FAILED ($try), the end of its log:"
    tail -n 8 "$out/logs/$arm-$try.log" | tee -a "$out/log"
  done
  return 1
}

scores() { # CARD ARM FILE OPTION ...
  CUDA_VISIBLE_DEVICES=$1 timeout -k 10 $((total - SECONDS > 5 ? total - SECONDS : 5)) python3 \
    "$root/benchmarks/ablation.py" --score-only --net "$2=$3" --val "$val" --device "$device" \
    --batch "$batch" --docs "$out/docs" "${niqe[@]}" "${@:4}" >>"$out/logs/$2-scores.log" 2>&1
}

worker() { # CARD: arms, one after another, as long as they fit
  local card=$1 arm began took=0 jobs=() failed=0
  trap 'stopped=1' TERM INT
  for arm in "${arms[@]}"; do
    ((stopped)) && break
    # left to the other card, which may have the time; 0.6: the last arm may have compiled all that
    # this one finds in the cache
    if (($(left) <= took * 6 / 10)) && [[ ! -f $out/scores/$arm.json ]]; then continue; fi
    mkdir "$out/.taken/$arm" 2>/dev/null || continue
    if [[ -f $out/scores/$arm.json ]]; then
      say "$arm: has been scored, nothing to do"
      continue
    fi
    say "$arm: begins on card $card"
    began=$SECONDS
    if ! train "$card" "$arm"; then
      failed=1
      ((stopped)) && break
      continue
    fi
    took=$((SECONDS - began))
    say "$arm: trained in $took s"
    ( # beside the next arm, which compiles at first or reads pictures
      if scores "$card" "$arm" "$out/train/$arm/weights/net-ema.safetensors" \
        --scores "$out/scores" "${score[@]}"; then
        say "$arm: scored"
      else
        say "$arm: SCORES FAILED, see $out/logs/$arm-scores.log; its weights are kept"
        exit 1
      fi
      pack
    ) &
    jobs+=($!)
  done
  await "${jobs[@]}" || failed=1
  ((stopped)) && return 143
  return "$failed"
}

# a missing package or picture is told in the first minute, and not after the training
trial=
if [[ ! -f $out/tried ]]; then
  (
    if scores $((cards - 1)) baseline "$teacher" --scores "$out/.try" --limit 1 --steps 1 \
      --fidelities 0.5; then
      say "trial of the scores: done"
      touch "$out/tried"
    else
      say "trial of the scores: FAILED, see $out/logs/baseline-scores.log"
    fi
    rm -rf "$out/.try"
  ) &
  trial=$!
fi
jobs=()
for ((card = 0; card < cards; card++)); do
  worker "$card" &
  jobs+=($!)
done
trap 'stopped=1; kill -TERM "${jobs[@]}" $trial 2>/dev/null' TERM INT
failed=0
await "${jobs[@]}" $trial || failed=1
for arm in "${arms[@]}"; do
  [[ -d $out/.taken/$arm ]] || { say "$arm: not begun, it would not end in time"; failed=1; }
done
if compgen -G "$out/scores/*.json" >/dev/null; then
  python3 "$root/benchmarks/ablation.py" --scores "$out/scores" --docs "$out/docs" \
    >>"$out/logs/page.log" 2>&1 || { say "page: FAILED, see $out/logs/page.log"; failed=1; }
fi
say "all is over: $out/results.tar"
pack
((stopped)) && exit 143
exit "$failed"
