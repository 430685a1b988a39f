#!/usr/bin/env bash
# The mini VAE and tokenizer on one borrowed GPU, by the clock: `OUT=dir bash launch/gpu/train_mini.sh`
# Needs jax with CUDA, nothing fetched. VGG holds VGG16 (launch/gpu/pieces.py vgg), CLIPS the packed real clips.
# MINUTES_VAE and MINUTES_TOK say how long each trains; weights come back as float16 pieces under $OUT.
# CACHE is the jax_cache.tgz of an earlier visit. INIT goes on from a tokenizer (then no VAE is trained); EXTRA is passed to both, for a tiny run on a CPU.
# shellcheck disable=SC2086,SC2046  # EXTRA and the clock are several options
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
OUT=${OUT:-$PWD/gpu_out}
runs=${RUNS:-runs/mini64}
python=${PYTHON:-python3}
mkdir -p "$OUT" "$runs"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export VFTOK_CACHE=${VFTOK_CACHE:-$PWD/runs/cache} TF_CPP_MIN_LOG_LEVEL=2
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/runs/jax_cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=0
mkdir -p "$VFTOK_CACHE" "$JAX_COMPILATION_CACHE_DIR"
[ -f "${CACHE:-}" ] && tar xzf "$CACHE" -C "$JAX_COMPILATION_CACHE_DIR" # programs of an earlier visit to the same card
say() { echo "== $SECONDS s: $*"; }
[ -n "${CLIPS:-}" ] && cp "$CLIPS" "$VFTOK_CACHE/clips64.npz"
[ -n "${VGG:-}" ] && $python launch/gpu/pieces.py vgg-back "$VGG"

tokenizer() { # name, then options
  local name=$1
  shift
  $python -m vftok.main --config=configs/tokenizer.py:mini64 --workdir="$runs/$name" ${EXTRA:-} "$@"
}
clock() { echo "--config.optim.schedule=clock --config.minutes=$1"; }

if [ -z "${INIT:-}" ]; then
  say "VAE, ${MINUTES_VAE:-2.5} min from its first step; the tokenizer's programs are compiled beside it"
  export XLA_PYTHON_CLIENT_MEM_FRACTION=0.45
    train_vae() {
    $python -m vftok.main --config=configs/vae.py:mini64 --workdir="$runs/vae" ${EXTRA:-} ${EXTRA_VAE:-} \
      $(clock "${MINUTES_VAE:-2.5}") >"$OUT/vae.log" 2>&1
  }
  train_vae &
  vae=$!
  sleep "${WARM_AFTER:-45}"
  warm() { tokenizer warm --config.vae= --config.steps=3 --config.log_every=1 ${EXTRA_TOK:-} >"$OUT/warm.log" 2>&1; }
  warm || { # whatever this card's cuDNN does not take, XLA does
    say "the tokenizer failed, again without cuDNN's attention"
    tail -n 5 "$OUT/warm.log"
    cp "$OUT/warm.log" "$OUT/warm-cudnn.log"
    export VFTOK_ATTENTION=xla
    warm
  }
  say "compiled"
  tail -n 2 "$OUT/warm.log"
  wait $vae
  say "VAE: exit $?"
  tail -n 3 "$OUT/vae.log"
  [ -d "$runs/vae/model" ] || VFTOK_ATTENTION=xla train_vae
  start=("--config.vae=$runs/vae/model")
else
  start=("--config.vae=$INIT" "--config.init_from=$INIT")
fi
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
say "tokenizer, ${MINUTES_TOK:-4} min"
tokenizer tok "${start[@]}" $(clock "${MINUTES_TOK:-4}") ${EXTRA_TOK:-} >"$OUT/tok.log" 2>&1
say "tokenizer: exit $?"
tail -n 3 "$OUT/tok.log"
if [ -d "$runs/tok/model" ]; then
  $python launch/gpu/pieces.py out "$runs/tok/model" "$OUT"
else
  $python launch/gpu/pieces.py out "$runs/vae/model" "$OUT"
fi
for name in vae tok; do
  [ -d "$runs/$name" ] && tar czf "$OUT/$name.tgz" --exclude=checkpoints --exclude='*.safetensors' -C "$runs" "$name"
done
(cd "$OUT" && tar czf logs.tgz ./*.log ./vae.tgz ./tok.tgz 2>/dev/null && rm -f ./*.log ./vae.tgz ./tok.tgz)
# The compiled programs, for the next visit; a file that is too large to come back stays.
tar czf "$OUT/jax_cache.tgz" -C "$JAX_COMPILATION_CACHE_DIR" .
[ "$(stat -c %s "$OUT/jax_cache.tgz")" -lt 16000000 ] || rm "$OUT/jax_cache.tgz"
say "done"
ls -l "$OUT"
