"""Datasets that are drawn from a seed.

`shapes` and `scenes` draw images, with the tools of `canvas`; `annotations` and `layouts` write
them as COCO and ADE20K do; `settings` names the files, and `folder` creates, reuses and replaces
them; `generate` is the entry point.
"""
