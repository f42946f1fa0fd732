"""Datasets that are drawn from a seed, so that a whole training can be tried offline.

Who draws: `canvas`, `shapes`, `scenes`; who writes: `annotations`, `layouts`; whose folder it is:
`settings`, `folder`; all of it together: `generate`.
"""
