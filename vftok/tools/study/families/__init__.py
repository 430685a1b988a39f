"""Tokenizer families at equal data and compute: `python -m vftok.tools.study.families --out DIR --size pocket`."""
