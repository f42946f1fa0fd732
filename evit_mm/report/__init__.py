"""What a run leaves behind for people to look at: tables, figures and pictures.

`evaluation` holds an evaluation class by class and writes it as CSV and JSON; `figures` draws it,
and the curves of a training; `pictures` draws boxes, masks and label maps on images. Nothing here
knows mmengine: `evit_mm.engine.hooks` calls it.
"""
