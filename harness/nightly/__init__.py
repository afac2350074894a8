"""A folder of nights: each runs the suites, is judged against the last good one, and makes room for the next."""
