#!/usr/bin/env bash
# The mini tokenizer on one borrowed GPU, by the clock: `OUT=dir MINUTES=7 bash launch/gpu/train_mini.sh`
# Needs jax with CUDA, nothing fetched. VGG holds VGG16 (launch/gpu/pieces.py vgg), CLIPS the packed real clips.
# VAE is the one to train over (the shipped vftok-mini-vae), or with MINUTES_VAE=5 one is trained first. INIT goes on
# from a tokenizer. EXTRA is passed on, for a tiny run on a CPU; CACHE is the jax_cache.tgz of an earlier visit.
# Under OUT come back: weights as float16 pieces, logs, curves, and a profile of three steps as a table.
# shellcheck disable=SC2086  # EXTRA is several options
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
OUT=${OUT:-$PWD/runs/gpu_out}
runs=${RUNS:-runs/mini64}
python=${PYTHON:-python3}
mkdir -p "$OUT" "$runs"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TF_CPP_MIN_LOG_LEVEL=2
export VFTOK_CACHE=${VFTOK_CACHE:-$PWD/runs/cache} XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/runs/jax_cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=0
mkdir -p "$VFTOK_CACHE" "$JAX_COMPILATION_CACHE_DIR"
[ -f "${CACHE:-}" ] && tar xzf "$CACHE" -C "$JAX_COMPILATION_CACHE_DIR" # programs of an earlier visit to the same card
[ -n "${CLIPS:-}" ] && cp "$CLIPS" "$VFTOK_CACHE/clips64.npz"
[ -n "${VGG:-}" ] && $python launch/gpu/pieces.py vgg-back "$VGG"
say() { echo "== $SECONDS s: $*"; }
keep="--config.data.sources.world.keep=True --config.data.sources.world.count=${SCENES:-65536}"
fail=0

train() { # config, workdir, minutes, options
  local config=$1 name=$2 minutes=$3
  shift 3
  say "$name, $minutes min from its first step"
  XLA_FLAGS="--xla_dump_to=$runs/hlo_$name --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*train_step.* ${XLA_FLAGS:-}" \
    $python -m vftok.main --config="$config" --workdir="$runs/$name" --config.optim.schedule=clock \
    --config.minutes="$minutes" --config.profile="${PROFILE:-(600,603)}" $keep ${EXTRA:-} "$@" >"$OUT/$name.log" 2>&1 || fail=1
  tail -n 3 "$OUT/$name.log" | cut -c1-400
  local program
  program=$(find "$runs/hlo_$name" -name '*after_optimizations.txt' | head -n 1)
  [ -d "$runs/$name/profile" ] &&
    $python -m vftok.tools.trace "$runs/$name/profile" ${program:+--hlo "$program"} >"$OUT/$name.profile.md" && head -n 12 "$OUT/$name.profile.md"
}

vae=${VAE:-vftok-mini-vae}
if [ -n "${MINUTES_VAE:-}" ]; then
  train configs/vae.py:mini64 vae "$MINUTES_VAE"
  vae=$runs/vae/model
fi
last=$runs/vae
if [ -n "${MINUTES:-}" ]; then
  last=$runs/tok${INIT:+2}
  train configs/tokenizer.py:mini64 "$(basename "$last")" "$MINUTES" --config.vae="$vae" ${INIT:+--config.init_from="$INIT"}
fi
if [ -d "$last/model" ]; then $python launch/gpu/pieces.py out "$last/model" "$OUT"; else fail=1; fi
tar czf "$OUT/runs.tgz" --exclude=checkpoints --exclude='*.safetensors' --exclude=profile --exclude='hlo_*' -C "$runs" .
(cd "$OUT" && tar czf logs.tgz ./*.log ./*.md && rm -f ./*.log ./*.md)
# The compiled programs, for the next visit; a file that is too large to come back stays.
tar czf "$OUT/jax_cache.tgz" -C "$JAX_COMPILATION_CACHE_DIR" .
[ "$(stat -c %s "$OUT/jax_cache.tgz")" -lt 16000000 ] || rm "$OUT/jax_cache.tgz"
say "done"
ls -l "$OUT"
exit $fail
