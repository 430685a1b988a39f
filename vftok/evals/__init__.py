"""Measures of videos and tokens: `reconstruction` (tokenizers), `generation` (generators) and their parts."""
