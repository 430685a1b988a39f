"""Bytes <-> values: models on disk and on the Hub, token files, video files."""
