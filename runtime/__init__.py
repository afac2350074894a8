"""Runs bmodels through libbmlib and libbmrt, in a process of its own: simulator and board alike."""
