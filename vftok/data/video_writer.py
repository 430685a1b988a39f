"""The old place of vftok/io/video_writer.py, for scripts that know it."""

from vftok.io.video_writer import to_uint8, video_writer, write_video

__all__ = ["to_uint8", "video_writer", "write_video"]
