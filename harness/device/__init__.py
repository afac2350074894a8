"""Where bmodels run: the simulator, or a board."""
