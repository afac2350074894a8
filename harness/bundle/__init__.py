"""Folders that hold all that a deployer needs of a case, and a self-test that runs with the runtime worker alone."""
