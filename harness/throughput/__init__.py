"""How fast it is, as a user of a board reads it: the definitions stand in ``docs/throughput.md``."""
